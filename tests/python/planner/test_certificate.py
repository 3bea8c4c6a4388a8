"""Binding constraints, alternatives and relaxations: every answer against enumeration."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from dataclasses import replace
from random import Random

import pytest

import orbitsplit as osp
from orbitsplit import Certificate, Problem
from orbitsplit.__main__ import main
from tests.judges import planner as judge
from tests.support.paths import DATA
from tests.support.random_problems import random_problem

PROBLEMS = DATA / "problems"


def relaxed(data: dict, constraint: str, first: int, last: int) -> dict:
    """Relax a constraint as the certificate did, on the plain dict."""
    p = copy.deepcopy(data)
    names = [node["name"] for node in p["nodes"]]
    if constraint == "loss budget":
        del p["loss_budget"]
    elif constraint == "pins":
        del p["pins"]
    elif constraint == "memory of all nodes":
        for node in p["nodes"]:
            node["memory_bytes"] = 1e9
    elif constraint.startswith("memory of "):
        p["nodes"][names.index(constraint.removeprefix("memory of "))]["memory_bytes"] = 1e9
    elif constraint.startswith("speed of "):
        n = names.index(constraint.removeprefix("speed of "))
        for key in {"layer_time_s", "layer_earlier_time_s", "layer_decode_time_s"} & set(p):
            p[key][n] = [seconds / 2 for seconds in p[key][n]]
        for key in {"stage_overhead_s", "stage_decode_overhead_s"} & set(p):
            p[key][n] /= 2
    elif constraint.startswith("link "):
        a, b = (names.index(name) for name in constraint.removeprefix("link ").split(" -> "))
        p["bandwidth_bytes_per_s"][a][b] *= 2
        p["latency_s"][a][b] /= 2
    else:
        key, n = ("ingress", first) if constraint.startswith("ingress") else ("egress", last)
        p[key]["bandwidth_bytes_per_s"][n] *= 2
        p[key]["latency_s"][n] /= 2
    return p


def random_aim(r: Random, data: dict) -> dict:
    """Draw an objective, most often latency, and a limit on the nodes."""
    objectives = ["latency", "latency", "throughput", "time_to_first_token"]
    if data.get("new_tokens", 0) >= 2:
        objectives.append("time_per_token")
    return {"objective": r.choice(objectives), "max_nodes": r.choice([None, None, 1, 2])}


def best(data: dict, aim: dict) -> float:
    return judge.best(data, aim["objective"], aim["max_nodes"] or math.inf)


@pytest.mark.parametrize("seed", range(80))
def test_binding_constraints_and_alternatives(seed) -> None:
    r = Random(seed)
    data = random_problem(r, most_layers=5, most_nodes=3)
    aim = random_aim(r, data)
    problem = Problem.from_dict(data)
    solution = osp.solve(problem, **aim)
    if solution.status == "infeasible":
        pytest.skip("infeasible: the test below")
    found = osp.certificate(problem, solution, **aim)
    assert (found.status, found.total_s, found.unanswered) == ("optimal", solution.objective_s, ())
    ends = solution.stages[0].node, solution.stages[-1].node
    without_limit = {**aim, "max_nodes": None}
    for binding in found.binding:
        assert binding.is_proven
        lifted = binding.constraint == "number of nodes"
        optimum = best(data, without_limit) if lifted else best(relaxed(data, binding.constraint, *ends), aim)
        assert binding.total_s == pytest.approx(optimum)
        assert optimum < solution.objective_s
    assert list(found.binding) == sorted(found.binding, key=lambda binding: binding.total_s)
    for constraint in found.slack:
        lifted = constraint == "number of nodes"
        optimum = best(data, without_limit) if lifted else best(relaxed(data, constraint, *ends), aim)
        assert optimum == pytest.approx(solution.objective_s)
    check_alternatives(data, found, aim)


def check_alternatives(data: dict, found: Certificate, aim: dict) -> None:
    names = [node["name"] for node in data["nodes"]]
    for other in found.alternatives:
        p = copy.deepcopy(data)
        if other.name.startswith("without node"):
            if other.breaks == "the pins require it":
                continue
            pins = p.setdefault("pins", {})
            pins.setdefault("forbidden", []).append(names.index(other.name.removeprefix("without ")))
        elif other.name == "without compression":
            raw = [k for k, level in enumerate(p["levels"]) if level["ratio"] == 1]
            p["levels"] = [p["levels"][k] for k in raw]
            p["loss"] = [[row[k] for k in raw] for row in p["loss"]]
        elif other.name == "on a single node" and not other.breaks:
            p["bandwidth_bytes_per_s"] = [[0] * len(names) for _ in names]
        else:
            continue
        assert (math.inf if other.total_s is None else other.total_s) == pytest.approx(best(p, aim))


def least_memory(data: dict, nodes: range) -> float | None:
    """Add one byte after the other: layers have at most 36 bytes together."""
    for more in range(40):
        p = copy.deepcopy(data)
        for n in nodes:
            p["nodes"][n]["memory_bytes"] += more
        if judge.best(p) < math.inf:
            return more
    return None


def fewest_links(data: dict) -> float:
    """The smallest number of links that some plan lacks, without those back while generating."""
    p = {**copy.deepcopy(data), "new_tokens": 0}
    nodes = range(len(p["nodes"]))
    p["bandwidth_bytes_per_s"] = [[1.0] * len(nodes) for _ in nodes]
    for key in {"ingress", "egress"} & set(p):
        p[key]["bandwidth_bytes_per_s"] = [1.0 for _ in nodes]
    fewest = math.inf
    for stages in judge.plans(p):
        if judge.cost(p, stages) == math.inf:
            continue
        chain = [stage[0] for stage in stages]
        lacks = [data["bandwidth_bytes_per_s"][a][b] == 0 for a, b in itertools.pairwise(chain)]
        ends = {"ingress": chain[0], "egress": chain[-1]}
        lacks += [data[key]["bandwidth_bytes_per_s"][n] == 0 for key, n in ends.items() if key in data]
        fewest = min(fewest, sum(lacks))
    return fewest


def infeasible_problems() -> list[dict]:
    drawn = (random_problem(Random(seed), most_layers=4, most_nodes=3) for seed in range(200))
    return [data for data in drawn if judge.best(data) == math.inf][:40]


@pytest.mark.parametrize("data", infeasible_problems(), ids=lambda data: "")
def test_the_least_relaxation_of_each_kind(data) -> None:
    found = osp.certificate(Problem.from_dict(data))
    assert (found.status, found.total_s, found.binding, found.unanswered) == ("infeasible", None, (), ())
    amounts = {relaxation.kind: relaxation.amount for relaxation in found.relaxations}
    assert amounts["memory"] == least_memory(data, range(len(data["nodes"])))
    loss = judge.least_loss(data)
    if math.isinf(loss) or "loss_budget" not in data:
        assert amounts["loss"] is None
    else:
        assert amounts["loss"] == pytest.approx(loss, rel=1e-8)
    fewest = fewest_links(data)
    if math.isinf(fewest):
        assert amounts["links"] is None
    else:
        back = 1 if data.get("new_tokens", 0) >= 2 else 0
        assert fewest <= amounts["links"] <= fewest + back
    unpinned = {key: value for key, value in data.items() if key != "pins"}
    assert amounts.get("pins") == (1.0 if data.get("pins") and judge.best(unpinned) < math.inf else None)


def test_more_nodes_may_make_a_problem_feasible() -> None:
    problem = Problem.load(PROBLEMS / "example_16_free.json")
    found = osp.certificate(problem, max_nodes=1)
    assert [(relaxation.kind, relaxation.amount) for relaxation in found.relaxations][-1] == ("nodes", 3.0)
    # Three nodes are what the best plan takes anyway.
    assert "number of nodes" in osp.certificate(problem, max_nodes=3).slack


def test_text_and_json() -> None:
    problem = Problem.load(PROBLEMS / "example_16_free.json")
    found = osp.certificate(problem)
    text = str(found)
    assert text.startswith("optimal: 218 ms, lower bound 218 ms (gap 0 %)\nbinding constraints:\n")
    for part in ("speed of n2", "memory of n0", "loss budget", "slack constraints: memory of n1", "do not split: "):
        assert part in text
    assert Certificate.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    with pytest.raises(ValueError, match='unknown key "colour"'):
        Certificate.from_dict({**found.to_dict(), "colour": "red"})


def test_out_of_time_leaves_questions_open() -> None:
    problem = replace(Problem.load(PROBLEMS / "example_80_fixed.json"), order="free")
    solution = osp.solve(problem, time_limit_s=0.5)
    found = osp.certificate(problem, solution, time_limit_s=0)
    assert (found.status, found.total_s) == ("feasible", solution.objective_s)
    # Without any search, the same plan on a faster node or link is known to take less.
    names = {binding.constraint for binding in found.binding}
    assert {f"speed of {problem.nodes[stage.node].name}" for stage in solution.stages} <= names
    assert "memory of n0" in {*names, *found.unanswered}
    assert not any(binding.is_proven for binding in found.binding)
    without = [other for other in found.alternatives if other.name.startswith("without ")]
    assert not any(other.is_proven for other in without)


def test_infeasible_text_names_amounts_and_nodes() -> None:
    data = json.loads((PROBLEMS / "example_16_free.json").read_text())
    for node in data["nodes"]:
        node["memory_bytes"] *= 0.3
    lines = str(osp.certificate(Problem.from_dict(data))).splitlines()
    assert lines[0].startswith("infeasible: the layers need 7.01044 GB together")
    assert lines[1:] == [
        "smallest relaxation of each kind:",
        "  memory: 987 MB more on every node, or 4.07 GB more on n1 alone",
        "  loss: no budget is enough",
        "  links: no number is enough",
    ]


def test_the_command_prints_the_certificate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PROBLEMS / "example_16_free.json"
    for option in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["orbitsplit", "solve", str(path), "--certificate", *option])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert not exit_info.value.code
    text, printed = capsys.readouterr().out.rsplit("\n", 2)[:2]
    found = Certificate.from_dict(json.loads(printed)["certificate"])
    assert found == osp.certificate(Problem.load(path))
    assert text.endswith(str(found))
