"""Levels that a cut does not have, and losses of any magnitude beside them: absent is no number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import orbitsplit as osp
from orbitsplit import Problem, Stage
from orbitsplit._backend import use_backend
from tests.judges import planner as judge
from tests.python.planner.test_planner import check_against_judge, random_options
from tests.support.random_problems import random_losses, random_problem
from tests.support.solving import BACKENDS, QUICK, RANDOMS, check_backends_alike, solved


def chain(**changes: Any) -> dict[str, Any]:
    """Return three layers on two nodes that hold two each; the last cut does not have the level that halves bytes."""
    return {
        "layers": ["a", "b", "c"],
        "nodes": [{"name": "left", "memory_bytes": 2}, {"name": "right", "memory_bytes": 2}],
        "layer_memory_bytes": [1, 1, 1],
        "layer_time_s": [[1, 2, 4], [2, 1, 3]],
        "cut_bytes": [8, 12],
        "bandwidth_bytes_per_s": [[0, 4], [0, 0]],
        "latency_s": [[0, 0], [0, 0]],
        "levels": [{"name": "raw", "ratio": 1}, {"name": "half", "ratio": 2}],
        "loss": [[0, 0.1], [0, None]],
        **changes,
    }


@given(RANDOMS)
@settings(max_examples=600, **QUICK)
def test_equal_to_exhaustive_search_native(r: Random) -> None:
    data = random_losses(r, random_problem(r))
    check_against_judge(data, "native", random_options(r, data))


@given(RANDOMS)
@settings(max_examples=250, **QUICK)
def test_equal_to_exhaustive_search_numba(r: Random) -> None:
    data = random_losses(r, random_problem(r, most_layers=5, most_nodes=3))
    check_against_judge(data, "numba", random_options(r, data))


@pytest.mark.parametrize("block", range(5))
def test_both_backends_plan_alike_to_the_last_bit(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        data = random_losses(Random(seed), random_problem(Random(seed), most_layers=9, most_nodes=5))
        options = random_options(Random(seed), data)
        check_backends_alike(Problem.from_dict(data), **options)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6, 1e50, 1e100])
@pytest.mark.parametrize("seed", range(6))
def test_a_front_has_every_point_and_no_absent_level(seed: int, scale: float) -> None:
    data = random_problem(Random(seed), most_layers=5, most_nodes=3)
    r = Random(seed)
    data["loss"] = [[None if r.random() < 0.3 else scale * loss for loss in row] for row in data["loss"]]
    data.pop("loss_budget", None)
    expected: list[tuple[float, float]] = []
    for stages in sorted(judge.plans(data), key=lambda stages: judge.loss(data, stages)):
        seconds = judge.cost(data, stages)
        if seconds < min((best for _, best in expected), default=math.inf) * (1 - 1e-9):
            loss = judge.loss(data, stages)
            expected = [point for point in expected if point[0] < loss * (1 - 1e-8)] + [(loss, seconds)]
    found = osp.pareto(Problem.from_dict(data))
    assert found.is_complete
    assert [(point.limit, point.solution.objective_s) for point in found.points] == [
        (pytest.approx(loss, rel=1e-9), pytest.approx(seconds, rel=1e-9)) for loss, seconds in expected
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e99])
def test_a_lifted_loss_budget_does_not_bring_absent_levels(scale: float, backend: str) -> None:
    loss = [[0, 0.2 * scale], [0, None]]
    data = chain(loss=loss, loss_budget=0.1 * scale, pins={"layers": {"b": 0}})
    with use_backend(backend):
        answer = osp.certificate(Problem.from_dict(data))
    # Pinned to the last cut, which has only the raw level, no budget helps; without the pin the first cut has both.
    assert "loss budget" in answer.slack
    del data["pins"]
    with use_backend(backend):
        answer = osp.certificate(Problem.from_dict(data))
    lifted = {found.constraint: found.total_s for found in answer.binding}
    assert lifted["loss budget"] == judge.best({**data, "loss_budget": math.inf}) == 1 + 1 + 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e99])
def test_the_smallest_sufficient_budget_is_found_above_any_loss(scale: float, backend: str) -> None:
    nodes = [{"name": name, "memory_bytes": 1} for name in "xyz"]
    data = chain(
        nodes=nodes,
        layer_time_s=[[1, 1, 1]] * 3,
        bandwidth_bytes_per_s=[[0, 1, 1], [0, 0, 1], [0, 0, 0]],
        latency_s=[[0] * 3] * 3,
        loss=[[None, 0.9 * scale], [0.8 * scale, None]],
        loss_budget=0.5 * scale,
    )
    with use_backend(backend):
        answer = osp.certificate(Problem.from_dict(data))
    (found,) = (relaxation for relaxation in answer.relaxations if relaxation.kind == "loss")
    assert found.amount == pytest.approx(1.7 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [None, 0.5])
def test_an_evaluation_names_the_cut_and_the_level(budget: float | None, backend: str) -> None:
    with use_backend(backend):
        problem = Problem.from_dict(chain(loss_budget=budget))
        result = osp.evaluate(problem, [Stage(0, 0, 2, 1), Stage(1, 2, 3)])
        present = osp.evaluate(problem, [Stage(0, 0, 1, 1), Stage(1, 1, 3)])
    assert result.violations == ('cut 1, after layer "b", does not have level "half"',)
    assert (result.loss, result.is_feasible, result.objective_s) == (math.inf, False, 3 + 1.5 + 3)
    assert (present.loss, present.violations) == (0.1, ())


@pytest.mark.parametrize("order", ["fixed", "free"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [None, 0.5, 1e100])
def test_cuts_without_any_level_are_the_reason(budget: float | None, backend: str, order: str) -> None:
    problem = Problem.from_dict(chain(loss=[[None, None]] * 2, loss_budget=budget, order=order))
    found = solved(backend, problem)
    assert found["status"] == "infeasible"
    assert found["reason"] == (
        "no plan that fits has a level at each of its cuts: a cut does not have the levels whose loss is infinite there"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reason_is_memory_where_levels_would_not_help(backend: str) -> None:
    nodes = [{"name": "left", "memory_bytes": 1}, {"name": "right", "memory_bytes": 2.5}]
    problem = Problem.from_dict(chain(nodes=nodes, layer_memory_bytes=[1, 2, 0.25], bandwidth_bytes_per_s=[[0, 0]] * 2))
    assert solved(backend, problem)["reason"].startswith("no link joins any two nodes")


def test_null_none_and_infinity_are_the_same(tmp_path: Path) -> None:
    problem = Problem.from_dict(chain())
    assert problem.loss.tolist() == [[0, 0.1], [0, math.inf]]
    assert problem.to_dict()["loss"] == [[0, 0.1], [0, None]]
    for same in (np.array([[0, 0.1], [0, math.inf]]), np.array([[0, 0.1], [0, None]]), ((0, 0.1), (0, math.inf))):
        assert Problem.from_dict(chain(loss=same)) == problem
    problem.save(tmp_path / "problem.json")
    assert json.loads((tmp_path / "problem.json").read_text())["loss"] == [[0, 0.1], [0, None]]
    assert Problem.load(tmp_path / "problem.json") == problem


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (math.nan, r"loss\[1\]\[0\] is nan, must be finite"),
        (-math.inf, r"loss\[1\]\[0\] is -inf, must be finite"),
        (1.1e100, r"loss\[1\]\[0\] is 1\.1e\+100, must be at most 1e\+100"),
    ],
)
def test_what_is_neither_a_loss_nor_absent_is_refused(loss: float, message: str, backend: str) -> None:
    with use_backend(backend), pytest.raises(ValueError, match=message):
        Problem.from_dict(chain(loss=[[0, 0], [loss, None]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [0.1, 5e99])
def test_a_file_that_has_1e100_for_an_absent_level_has_the_same_plan(budget: float, backend: str) -> None:
    old, new = (chain(loss=[[0, 0.1], [0, absent]], loss_budget=budget) for absent in (1e100, None))
    assert solved(backend, Problem.from_dict(old)) == solved(backend, Problem.from_dict(new))


def test_a_split_that_fits_no_node_is_still_scored_with_a_level_that_its_cut_has() -> None:
    nodes = [{"name": "left", "memory_bytes": 1}, {"name": "right", "memory_bytes": 0}]
    stages = osp.uniform(Problem.from_dict(chain(nodes=nodes, loss=[[0.4, None], [0.4, None]])))
    assert [stage.level for stage in stages] == [0, None]
