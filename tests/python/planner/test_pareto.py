"""The front of delay against loss budget or memory: every point and no other, against enumeration."""

from __future__ import annotations

import json
import math
import sys
from random import Random

import pytest

import orbitsplit as osp
from orbitsplit import Problem
from orbitsplit.__main__ import main
from tests.judges import planner as judge
from tests.support.paths import DATA
from tests.support.random_problems import random_problem

PROBLEMS = DATA / "problems"


def needed_scale(data: dict, stages) -> float:
    scales = [0.0]
    for node, start, stop, *_ in stages:
        need = sum(data["layer_memory_bytes"][start:stop])
        if need > 0:
            scales.append((need + data["nodes"][node]["headroom_bytes"]) / data["nodes"][node]["memory_bytes"])
    return max(scales)


def front(data: dict, limit, objective="latency", max_nodes=math.inf) -> list[tuple[float, float]]:
    """Every plan without the limit, then those that no other beats in both."""
    found = sorted((limit(stages), judge.cost(data, stages, objective, max_nodes)) for stages in judge.plans(data))
    best, kept = math.inf, []
    for at, seconds in found:
        if seconds < best * (1 - 1e-9):
            best = seconds
            if kept and at <= kept[-1][0] * (1 + 1e-8):
                kept.pop()
            kept.append((at, seconds))
    return kept


def check(data: dict, over: str, expected: list[tuple[float, float]], **aim) -> None:
    found = osp.pareto(Problem.from_dict(data), over, **aim)  # type: ignore[arg-type]
    assert found.is_complete
    assert [point.limit for point in found.points] == pytest.approx([at for at, _ in expected])
    seconds = [point.solution.objective_s for point in found.points]
    assert seconds == pytest.approx([best for _, best in expected])


@pytest.mark.parametrize("seed", range(60))
def test_loss_budget(seed) -> None:
    data = random_problem(Random(seed), most_layers=5, most_nodes=3)
    data.pop("loss_budget", None)
    check(data, "loss_budget", front(data, lambda stages: judge.loss(data, stages)))


@pytest.mark.parametrize("seed", range(60))
def test_memory(seed) -> None:
    data = random_problem(Random(seed), most_layers=5, most_nodes=3)
    roomy = {**data, "nodes": [{**node, "memory_bytes": 1e9} for node in data["nodes"]]}
    check(data, "memory", front(roomy, lambda stages: needed_scale(data, stages)))


@pytest.mark.parametrize("seed", range(20))
def test_another_objective_on_few_nodes(seed) -> None:
    data = random_problem(Random(seed), most_layers=5, most_nodes=3)
    data.pop("loss_budget", None)
    aim = {"objective": "throughput", "max_nodes": 2}
    check(data, "loss_budget", front(data, lambda stages: judge.loss(data, stages), **aim), **aim)


def test_every_point_keeps_its_limit_and_no_less() -> None:
    problem = Problem.load(PROBLEMS / "example_16_free.json")
    losses = osp.pareto(problem)
    assert len(losses.points) > 3
    for point in losses.points:
        again = osp.solve(Problem.from_dict({**problem.to_dict(), "loss_budget": point.limit}))
        assert again.objective_s == pytest.approx(point.solution.objective_s, rel=1e-12)
    for point in osp.pareto(problem, "memory").points:
        nodes = [{**node, "memory_bytes": node["memory_bytes"] * point.limit} for node in problem.to_dict()["nodes"]]
        assert osp.evaluate(Problem.from_dict({**problem.to_dict(), "nodes": nodes}), point.solution).is_feasible


def test_resolution_leaves_out_points() -> None:
    problem = Problem.load(PROBLEMS / "example_16_free.json")
    fine, coarse = osp.pareto(problem), osp.pareto(problem, resolution=0.3)
    assert len(coarse.points) < len(fine.points)
    for lower, upper in zip(coarse.points, coarse.points[1:], strict=False):
        assert lower.limit <= upper.limit * 0.7 * (1 + 1e-9)


def test_an_incomplete_front_says_so() -> None:
    found = osp.pareto(Problem.load(PROBLEMS / "example_32_free.json"), time_limit_s=0)
    assert not found.is_complete
    assert str(found) == "(incomplete: the search ended before the smallest limits)"


def test_text_and_json() -> None:
    problem = Problem.load(PROBLEMS / "example_16_free.json")
    found = osp.pareto(problem, "memory")
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["over"] == "memory"
    assert [point["limit"] for point in record["points"]] == [point.limit for point in found.points]
    assert record["points"][0]["stages"][0].keys() == {"node", "start", "stop", "level"}
    assert str(found).splitlines()[0].startswith("memory 0.")


def test_a_node_without_memory_holds_nothing_at_any_scale() -> None:
    data = json.loads((PROBLEMS / "example_16_free.json").read_text())
    data["nodes"][0]["memory_bytes"] = 0
    points = osp.pareto(Problem.from_dict(data), "memory").points
    assert points
    assert all(stage.node != 0 for point in points for stage in point.solution.stages)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = PROBLEMS / "example_16_free.json"
    monkeypatch.setattr(sys, "argv", ["orbitsplit", "pareto", str(path), "--over", "memory", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out) == osp.pareto(Problem.load(path), "memory").to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"over": "latency"}, "over is 'latency'"), ({"resolution": 1.0}, "resolution is 1.0, must be at least 0")],
)
def test_nonsense(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        osp.pareto(Problem.load(PROBLEMS / "example_16_free.json"), **arguments)
