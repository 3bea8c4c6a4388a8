"""The planner against exhaustive search, on both backends, and the properties that every optimum has."""

from __future__ import annotations

import copy
import json
import math
import re
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings

from orbitsplit import Problem, Stage, evaluate, solve
from tests.judges import planner as judge
from tests.support.paths import DATA
from tests.support.random_problems import random_problem, random_stages
from tests.support.solving import BACKENDS, QUICK, RANDOMS, check_backends_alike, solved

PROBLEMS = sorted((DATA / "problems").glob("*.json"))


def random_options(r: Random, data: dict) -> dict:
    """Draw options of a search; the number of tracked nodes is the planner's own affair."""
    objectives = ["latency", "latency", "throughput", "time_to_first_token"]
    if data.get("new_tokens", 0) >= 2:
        objectives.append("time_per_token")
    return {
        "objective": r.choice(objectives),
        "max_nodes": r.choice([None, None, 1, 2, 3]),
        "max_ng_size": r.choice([16, 16, 1, 0]),
        "max_bitset_nodes": r.choice([64, 0]),
    }


def check_against_judge(data: dict, backend: str, options: dict) -> None:
    limits = options["objective"], math.inf if options["max_nodes"] is None else options["max_nodes"]
    expected = judge.best(data, *limits)
    found = solved(backend, Problem.from_dict(data), **options)
    if math.isinf(expected):
        assert (found["status"], found["stages"]) == ("infeasible", [])
        assert found["reason"]
        return
    assert found["status"] == "optimal"
    assert found["objective_s"] == pytest.approx(expected, rel=1e-9)
    assert found["lower_bound_s"] == found["objective_s"]
    stages = [(node, start, stop, None if level < 0 else level) for node, start, stop, level in found["stages"]]
    assert judge.cost(data, stages, *limits) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("path", PROBLEMS, ids=lambda path: path.stem)
def test_bundled_problems(path, backend):
    problem = Problem.load(path)
    solution = solve(problem)
    assert solution.status == problem.expected["status"] == "optimal"
    assert solution.objective_s == pytest.approx(problem.expected["objective_s"], rel=2e-6)
    assert (solution.gap, solution.reason, solution.lower_bound_s) == (0, None, solution.objective_s)
    assert evaluate(problem, solution).is_feasible


@given(RANDOMS)
@settings(max_examples=1500, **QUICK)
def test_equal_to_exhaustive_search_native(r):
    data = random_problem(r)
    check_against_judge(data, "native", random_options(r, data))


@given(RANDOMS)
@settings(max_examples=500, **QUICK)
def test_equal_to_exhaustive_search_numba(r):
    data = random_problem(r, most_layers=5, most_nodes=3)
    check_against_judge(data, "numba", random_options(r, data))


@pytest.mark.parametrize("block", range(10))
def test_equal_to_exhaustive_search_on_larger_problems(block):
    for seed in range(5 * block, 5 * block + 5):
        data = random_problem(Random(1000 + seed), most_layers=7, most_nodes=5, order="fixed")
        check_against_judge(data, "native", random_options(Random(seed), data))


@pytest.mark.parametrize("block", range(10))
def test_both_backends_plan_alike_to_the_last_bit(block):
    for seed in range(20 * block, 20 * block + 20):
        data = random_problem(Random(seed), most_layers=9, most_nodes=5)
        options = random_options(Random(seed), data)
        check_backends_alike(Problem.from_dict(data), **options)


def objective(data: dict) -> float:
    found = solve(Problem.from_dict(data)).objective_s
    return math.inf if found is None else found


@given(RANDOMS)
@settings(max_examples=100, **QUICK)
def test_a_better_link_more_memory_or_a_larger_budget_never_worsens(r):
    data = random_problem(r)
    before = objective(data)
    better = copy.deepcopy(data)
    a, b = r.randrange(len(data["nodes"])), r.randrange(len(data["nodes"]))
    better["bandwidth_bytes_per_s"][a][b] += 1.0
    if data["bandwidth_bytes_per_s"][a][b] > 0 or "new_tokens" not in data:
        # A new link may return tokens more slowly than the chain: only then may it worsen a plan.
        assert objective(better) <= before * (1 + 1e-9)
    better = copy.deepcopy(data)
    better["nodes"][a]["memory_bytes"] += 3.0
    assert objective(better) <= before * (1 + 1e-9)
    if "loss_budget" in data:
        assert objective({**data, "loss_budget": data["loss_budget"] * 1.5}) <= before * (1 + 1e-9)


@given(RANDOMS)
@settings(max_examples=100, **QUICK)
def test_relabelling_nodes_keeps_the_cost_in_free_order(r):
    data = random_problem(r, order="free")
    chain = list(range(len(data["nodes"])))
    r.shuffle(chain)
    renamed = copy.deepcopy(data)
    times = (
        "layer_time_s",
        "layer_earlier_time_s",
        "layer_decode_time_s",
        "stage_overhead_s",
        "stage_decode_overhead_s",
    )
    for key in ("nodes", *times):
        if key in data:
            renamed[key] = [data[key][n] for n in chain]
    for key in ("bandwidth_bytes_per_s", "latency_s"):
        renamed[key] = [[data[key][a][b] for b in chain] for a in chain]
        for external in ("ingress", "egress"):
            if external in data:
                renamed[external][key] = [data[external][key][n] for n in chain]
    pins = renamed.get("pins", {})
    pins["layers"] = {layer: chain.index(node) for layer, node in pins.get("layers", {}).items()}
    for key in ("required", "forbidden"):
        pins[key] = [chain.index(node) for node in pins.get(key, [])]
    renamed["pins"] = pins
    assert objective(renamed) == pytest.approx(objective(data), rel=1e-9)


def bundled(name: str, **changes: object) -> dict:
    path = next(path for path in PROBLEMS if path.stem == name)
    return {**json.loads(path.read_text(encoding="utf-8")), **changes}


def test_the_same_problem_gives_the_same_solution():
    problem = Problem.from_dict(bundled("example_32_free"))
    first, second = solved("native", problem), solved("native", problem)
    assert first == second


def test_a_limit_returns_the_incumbent_with_a_proven_gap(backend, monkeypatch):
    monkeypatch.setattr("orbitsplit._planner.solve.MAX_NG_SIZE", 0)
    problem = Problem.from_dict(bundled("example_32_free"))
    solution = solve(problem, max_labels=500)
    optimum = problem.expected["objective_s"]
    assert solution.status == "feasible"
    assert solution.reason == "the limit of 500 labels was reached"
    assert evaluate(problem, solution).objective_s == solution.objective_s
    assert 0 < solution.lower_bound_s < optimum < solution.objective_s < 1.01 * optimum
    assert solution.gap == (solution.objective_s - solution.lower_bound_s) / solution.objective_s


def test_a_limit_is_the_same_on_both_backends():
    problem = Problem.from_dict(bundled("example_32_free"))
    for limit in ({"max_labels": 500}, {"max_bytes": 200_000}):
        native = check_backends_alike(problem, max_ng_size=0, **limit)
        assert native["status"] == "feasible"
    assert native["reason"] == "the limit of 200 kB was reached"
    assert native["labels"] < 200_000 / 300


@pytest.mark.parametrize("max_bitset_nodes", [64, 0])
def test_memory_is_bounded_and_leaves_a_true_bound(max_bitset_nodes):
    for seed in range(150):
        data = random_problem(Random(seed), order="free" if max_bitset_nodes == 0 else None)
        optimum = judge.best(data)
        for max_bytes in (1, 2_000, 20_000):
            found = solved(
                "native", Problem.from_dict(data), max_bytes=max_bytes, max_bitset_nodes=max_bitset_nodes, max_ng_size=0
            )
            assert found["lower_bound_s"] <= optimum * (1 + 1e-9)
            assert found["objective_s"] >= optimum * (1 - 1e-9)
            assert found["labels"] <= max(max_bytes / 300 + 7 * 5 * 3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_bitset_nodes", [64, 0])
def test_a_plan_to_start_from_changes_no_proof(backend, max_bitset_nodes):
    r = Random(5)
    helped = 0
    for seed in range(150 if backend == "native" else 30):
        data = random_problem(Random(seed))
        options = {**random_options(Random(seed), data), "max_bitset_nodes": max_bitset_nodes}
        problem = Problem.from_dict(data)
        cold = solved(backend, problem, **options)
        some = random_stages(r, data)
        given = [(node, start, stop, -1 if level is None else level) for node, start, stop, level in some]
        for incumbent in (given, cold["stages"]):
            warm = solved(backend, problem, **options, incumbent=incumbent)
            assert warm["status"] == cold["status"]
            assert warm["objective_s"] == pytest.approx(cold["objective_s"], rel=1e-9)
            helped += warm["labels"] < cold["labels"]
    assert helped > 0 or backend == "numba"  # which tries fewer


def test_a_plan_to_start_from_is_the_least_that_is_returned(backend):
    problem = Problem.from_dict(bundled("example_80_fixed", order="free"))
    fixed = solve(Problem.from_dict(bundled("example_80_fixed")))
    assert solve(problem, time_limit_s=0).objective_s > fixed.objective_s
    assert solve(problem, time_limit_s=0, incumbent=fixed).objective_s <= fixed.objective_s
    with pytest.raises(ValueError, match="stage 0 starts at layer 1, must start at 0"):
        solve(problem, incumbent=[(0, 1, 80, None)])
    for nothing in (None, "plan"):
        with pytest.raises(TypeError, match=r"incumbent is a (NoneType|str), it must be stages or have them"):
            solve(problem, incumbent=nothing)


@pytest.mark.parametrize("block", range(10))
def test_an_unfinished_search_proves_a_true_bound(block, monkeypatch):
    monkeypatch.setattr("orbitsplit._planner.solve.MAX_NG_SIZE", 0)
    for seed in range(20 * block, 20 * block + 20):
        data = random_problem(Random(seed))
        optimum = judge.best(data)
        for max_labels in (1, 3, 10):
            solution = solve(Problem.from_dict(data), max_labels=max_labels)
            if math.isinf(optimum):
                assert solution.status in ("infeasible", "unknown")
                continue
            assert solution.lower_bound_s <= optimum * (1 + 1e-9)
            assert solution.status == "unknown" or solution.objective_s >= optimum * (1 - 1e-9)


def test_a_free_order_is_no_worse_than_the_fixed_one_even_unproven(monkeypatch):
    monkeypatch.setattr("orbitsplit._planner.solve.MAX_NG_SIZE", 4)
    problem = Problem.from_dict(bundled("example_80_fixed", order="free"))
    solution = solve(problem, max_labels=2_000)
    assert solution.status == "feasible"
    assert solution.lower_bound_s < solution.objective_s < problem.expected["objective_s"]


def test_a_time_limit_is_kept(backend):
    problem = Problem.from_dict(bundled("example_80_fixed", order="free"))
    solution = solve(problem, time_limit_s=0)
    assert solution.status == "feasible"
    assert solution.reason == "the time limit of 0 s was reached"
    assert solution.lower_bound_s <= problem.expected["objective_s"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_limit_s": -1}, "time_limit_s is -1, must be at least 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan, must be at least 0"),
        ({"max_labels": 0}, "max_labels is 0, must be at least 1"),
        ({"max_bytes": 0}, "max_bytes is 0, must be at least 1"),
        ({"gap": -0.5}, "gap is -0.5, must be at least 0 and below 1"),
        ({"gap": 1}, "gap is 1, must be at least 0 and below 1"),
        ({"max_nodes": 0}, "max_nodes is 0, must be at least 1"),
        (
            {"objective": "speed"},
            'objective is "speed"; valid are latency, throughput, time_to_first_token and time_per_token',
        ),
        ({"objective": "time_per_token"}, "objective is time_per_token, new_tokens is 0, must be at least 2"),
    ],
)
def test_wrong_options_are_refused(backend, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        solve(Problem.from_dict(line()), **options)


def test_a_gap_that_is_allowed_is_proven(backend):
    for seed in range(60):
        data = random_problem(Random(seed))
        best = judge.best(data)
        solution = solve(Problem.from_dict(data), gap=0.3)
        assert (solution.status == "infeasible") == math.isinf(best)
        if solution.objective_s is not None:
            assert solution.reason == "the gap of 0.3 was proven"
            assert solution.gap <= 0.3 * (1 + 1e-9)
            assert solution.lower_bound_s <= best * (1 + 1e-9)
            assert best * (1 - 1e-9) <= solution.objective_s <= best / 0.7 * (1 + 1e-9)


def test_a_large_free_problem_is_proven_to_one_percent():
    problem = Problem.from_dict(bundled("example_80_fixed", order="free"))
    found = [solved(backend, problem, gap=0.01) for backend in BACKENDS]
    assert found[0] == found[1]
    assert found[0]["gap"] <= 0.01 * (1 + 1e-9)
    assert found[0]["objective_s"] < problem.expected["objective_s"]


@pytest.mark.parametrize("order", ["fixed", "free"])
def test_too_few_nodes_are_named(order, backend):
    reason = solve(Problem.from_dict(line(order=order)), max_nodes=1).reason
    assert reason == "no chain of at most 1 linked nodes holds the layers in their order; 4 GB more on every node would"
    pins = {"required": ["x", "y", "z"]}
    reason = solve(Problem.from_dict(line(order=order, pins=pins)), max_nodes=2).reason
    assert (
        reason == "no chain of at most 2 linked nodes joins those that ingress, egress and pins ask for, "
        "whatever their memory"
    )


def test_objectives_are_fields_of_the_evaluation(backend):
    returns = {"bandwidth_bytes_per_s": [[1] * 3] * 3}
    problem = Problem.from_dict(line(**{**GENERATION, **returns, "order": "free", "micro_batches": 4}))
    for objective, field in (
        ("latency", "objective_s"),
        ("throughput", "bottleneck_s"),
        ("time_to_first_token", "prefill_s"),
        ("time_per_token", "token_step_s"),
    ):
        solution = solve(problem, objective=objective)
        assert solution.status == "optimal"
        assert solution.objective_s == getattr(evaluate(problem, solution), field)


def line(**changes: object) -> dict:
    """Four layers of 2 GB on three nodes of 4 GB, linked one way in a line."""
    return {
        "layers": ["a", "b", "c", "d"],
        "nodes": [{"name": name, "memory_bytes": 4e9} for name in ("x", "y", "z")],
        "layer_memory_bytes": [2e9] * 4,
        "layer_time_s": [[1] * 4] * 3,
        "cut_bytes": [1] * 3,
        "bandwidth_bytes_per_s": [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
        "latency_s": [[0] * 3] * 3,
        "levels": [{"name": "raw", "ratio": 1}],
        "loss": [[0.25]] * 3,
        **changes,
    }


def external(*bandwidth: float) -> dict:
    return {"bytes": 1, "bandwidth_bytes_per_s": bandwidth, "latency_s": [0] * 3}


GENERATION = {"new_tokens": 4, "layer_decode_time_s": [[1] * 4] * 3, "cut_decode_bytes": [1] * 3}
INFEASIBLE = [
    ({"layer_memory_bytes": [1e9, 9.1e9, 0, 0]}, 'layer 1 ("b") needs 9.1 GB, the largest node has 4 GB'),
    ({"layer_memory_bytes": [4e9] * 4}, "the layers need 16 GB together, the nodes hold 12 GB"),
    (
        {"layer_memory_bytes": [3e9, 3e9, 2e9, 3e9]},
        "no chain of linked nodes holds the layers in their order; 1 GB more on every node would",
    ),
    ({"loss_budget": 0.2}, "the smallest loss any plan that fits reaches is 0.25, the budget is 0.2"),
    ({"ingress": external(0, 0, 0)}, "no node may be first: ingress reaches none that the pins allow"),
    ({"egress": external(0, 0, 0)}, "no node may be last: egress leaves none that the pins allow"),
    (
        {"egress": external(1, 0, 0), "ingress": external(0, 1, 1)},
        "no chain of linked nodes joins those that ingress, egress and pins ask for, whatever their memory",
    ),
    (
        {"bandwidth_bytes_per_s": [[0] * 3] * 3, "pins": {"required": ["x", "y"]}},
        "no link joins any two nodes that may follow each other, and no node alone may run every layer",
    ),
    (
        {"bandwidth_bytes_per_s": [[0] * 3] * 3},
        "no link joins any two nodes that may follow each other, and no node alone may run every layer",
    ),
    ({"pins": {"forbidden": [0, 1, 2]}}, "every node is forbidden"),
    (
        {
            "pins": {"layers": {"a": "x"}},
            "nodes": [{"name": n, "memory_bytes": m} for n, m in zip("xyz", (1e9, 9e9, 9e9), strict=True)],
        },
        'layer 0 ("a") needs 2 GB, node "x" to which it is pinned has 1 GB',
    ),
    (
        GENERATION,
        "no plan that fits can return its tokens from the last node to the first: links lead one way only",
    ),
]


@pytest.mark.parametrize("order", ["fixed", "free"])
@pytest.mark.parametrize(("changes", "reason"), INFEASIBLE)
def test_infeasible_problems_say_why(changes, reason, order, backend):
    solution = solve(Problem.from_dict(line(order=order, **changes)))
    assert (solution.status, solution.reason) == ("infeasible", reason)
    assert (solution.objective_s, solution.lower_bound_s, solution.gap, solution.loss) == (None,) * 4
    assert solution.stages == ()


def test_a_limit_before_any_plan_leaves_the_question_open(backend):
    solution = solve(Problem.from_dict(line(**GENERATION)), max_labels=1)
    assert (solution.status, solution.reason) == ("unknown", "the limit of 1 labels was reached")
    assert (solution.objective_s, solution.gap, solution.loss, solution.stages) == (None, None, None, ())
    assert solution.lower_bound_s is not None


def test_the_smallest_loss_named_is_enough(backend):
    for seed in range(200):
        data = random_problem(Random(seed), most_layers=5, most_nodes=3)
        solution = solve(Problem.from_dict(data))
        reported = re.match("the smallest loss any plan that fits reaches is (.*), the budget", solution.reason or "")
        if reported and data.get("new_tokens", 0) < 2:
            assert float(reported[1]) == pytest.approx(judge.least_loss(data), rel=1e-5)


def test_one_layer_one_node_no_link_no_level(backend):
    data = {
        "layers": ["only"],
        "nodes": [{"name": "alone", "memory_bytes": 1}],
        "layer_memory_bytes": [1],
        "layer_time_s": [[2]],
        "cut_bytes": [],
        "bandwidth_bytes_per_s": [[0]],
        "latency_s": [[0]],
        "levels": [],
        "loss": [],
        "micro_batches": 3,
    }
    for order in ("fixed", "free"):
        solution = solve(Problem.from_dict({**data, "order": order}))
        assert (solution.status, solution.objective_s) == ("optimal", 6)
        assert solution.stages == (Stage(0, 0, 1, None),)


def random_grid(r: Random, planes: int, in_plane: int) -> dict:
    """Draw a small model on a torus of nodes, each linked both ways to its four neighbours."""
    nodes, layers = planes * in_plane, 5
    bandwidth = [[0.0] * nodes for _ in range(nodes)]
    for a in range(nodes):
        plane, place = divmod(a, in_plane)
        for b in ((plane + 1) % planes * in_plane + place, plane * in_plane + (place + 1) % in_plane):
            bandwidth[a][b] = bandwidth[b][a] = r.choice([1.0, 1.0, 2.0])
    speeds = [r.uniform(0.5, 1.5) for _ in range(nodes)]
    return {
        "layers": [f"layer {i}" for i in range(layers)],
        "nodes": [{"name": str(n), "memory_bytes": r.choice([2.0, 3.0])} for n in range(nodes)],
        "layer_memory_bytes": [1.0] * layers,
        "layer_time_s": [[1 / speed] * layers for speed in speeds],
        "cut_bytes": [1.0] * (layers - 1),
        "bandwidth_bytes_per_s": bandwidth,
        "latency_s": [[0.1] * nodes] * nodes,
        "levels": [{"name": "raw", "ratio": 1}, {"name": "half", "ratio": 2}],
        "loss": [[0.0, r.uniform(0.1, 1)] for _ in range(layers - 1)],
        "loss_budget": 0.5,
        "micro_batches": r.choice([1, 4]),
        "order": "free",
    }


@pytest.mark.parametrize("seed", range(4))
def test_more_nodes_than_a_word_has_bits(seed):
    data = random_grid(Random(seed), 7, 10)
    expected = min(judge.cost(data, stages) for stages in judge.linked_plans(data, 3))
    native, numba = (solved(backend, Problem.from_dict(data), max_nodes=3) for backend in BACKENDS)
    assert native == numba
    assert native["status"] == "optimal"
    assert native["objective_s"] == pytest.approx(expected, rel=1e-9)
    assert solved("native", Problem.from_dict(data))["objective_s"] <= expected * (1 + 1e-9)


def test_a_limit_on_large_networks_leaves_a_true_bound(backend):
    problem = Problem.from_dict(random_grid(Random(1), 7, 10))
    optimum = solve(problem, max_nodes=4).objective_s
    for limits in ({"time_limit_s": 0}, {"max_labels": 1}):
        solution = solve(problem, max_nodes=4, **limits)
        assert 0 < solution.lower_bound_s <= optimum * (1 + 1e-9)
        assert solution.objective_s >= optimum * (1 - 1e-9)


def test_free_order_of_too_many_links_is_refused(backend):
    nodes, layers = 400, 1300
    data = line(
        layers=[str(i) for i in range(layers)],
        nodes=[{"name": str(n), "memory_bytes": 4e9} for n in range(nodes)],
        layer_memory_bytes=[0] * layers,
        layer_time_s=[[1] * layers] * nodes,
        cut_bytes=[1] * (layers - 1),
        loss=[[0]] * (layers - 1),
        bandwidth_bytes_per_s=(1 - np.eye(nodes)).tolist(),
        latency_s=[[0] * nodes] * nodes,
        order="free",
    )
    message = "order is free with 1300 layers and 159600 links, at most 2e\\+08 layers times links can be searched"
    with pytest.raises(ValueError, match=f"^{message}$"):
        solve(Problem.from_dict(data))


def test_too_little_memory_in_all_is_seen_without_a_search(backend):
    # Twelve nodes in free order that hold half of the layers once searched until the time limit, and said nothing.
    data = bundled("example_80_fixed", order="free")
    data["layer_memory_bytes"] = [10 * size for size in data["layer_memory_bytes"]]
    solution = solve(Problem.from_dict(data), time_limit_s=0)
    assert solution.status == "infeasible"
    assert re.search("layers need .* together, the nodes hold|the largest node has", solution.reason)
