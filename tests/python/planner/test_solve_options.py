"""The options of a search: one object or its fields as keywords, with the same result for every function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from random import Random
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit import Problem, SolveOptions
from tests.support.paths import DATA
from tests.support.random_problems import random_problem

PROBLEM = Problem.load(DATA / "problems" / "example_16_free.json")
STAGES = osp.solve(PROBLEM).stages

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "solve": lambda **options: replace(osp.solve(PROBLEM, **options), seconds=0),
    "certificate": lambda **options: osp.certificate(PROBLEM, **options),
    "pareto": lambda **options: osp.pareto(PROBLEM, resolution=0.5, **options),
    "replan": lambda **options: osp.replan(STAGES, PROBLEM, **options),
}


def plain(answer: Any) -> Any:
    """Return an answer without what no two searches have in common: their seconds."""
    return (
        [asdict(replace(point.solution, seconds=0)) for point in answer.points] if hasattr(answer, "points") else answer
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("options", [{}, {"max_nodes": 3}, {"max_nodes": 3, "max_labels": 100_000, "max_bytes": 10**9}])
def test_an_object_and_keywords_give_the_same(function: str, options: dict[str, Any]) -> None:
    call = FUNCTIONS[function]
    assert plain(call(options=SolveOptions(**options))) == plain(call(**options))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_way_at_a_time_and_no_unknown_keyword(function: str) -> None:
    call = FUNCTIONS[function]
    with pytest.raises(TypeError, match=rf"{function}\(\) got options= and max_nodes=, which is a field of it"):
        call(options=SolveOptions(), max_nodes=3)
    with pytest.raises(TypeError, match=rf"{function}\(\) got an unexpected keyword argument 'speed'"):
        call(speed=3)
    with pytest.raises(TypeError, match="options is 3, must be a SolveOptions"):
        call(options=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objective": "speed"},
            'objective is "speed"; valid are latency, throughput, time_to_first_token and',
        ),
        ({"max_nodes": 0}, "max_nodes is 0, must be at least 1"),
        ({"max_nodes": 2**31}, "max_nodes is 2147483648, must be at most 2147483647"),
        ({"gap": 1.0}, "gap is 1, must be at least 0 and below 1"),
        ({"gap": float("nan")}, "gap is nan, must be at least 0 and below 1"),
        ({"time_limit_s": -1.0}, "time_limit_s is -1, must be at least 0"),
        ({"max_labels": 0}, "max_labels is 0, must be at least 1"),
        ({"max_bytes": 2**63}, "max_bytes is 9223372036854775808, must be at most 9223372036854775807"),
        ({"threads": 0}, "threads is 0, must be at least 1"),
        ({"threads": 257}, "threads is 257, must be at most 256"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SolveOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": None}, "objective is None, must be a string"),
        ({"max_nodes": 2.5}, "max_nodes is 2.5, must be an integer"),
        ({"max_nodes": True}, "max_nodes is True, must be an integer"),
        ({"gap": "0.1"}, "gap is '0.1', must be a number"),
        ({"time_limit_s": "1 s"}, "time_limit_s is '1 s', must be a number"),
        ({"max_labels": 1e6}, "max_labels is 1000000.0, must be an integer"),
    ],
)
def test_wrong_types_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        SolveOptions(**options)


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SolveOptions().gap = 0.5  # type: ignore[misc]


def test_a_certificate_of_a_search_with_a_gap() -> None:
    found = osp.certificate(PROBLEM, gap=0.5)
    assert (found.status, found.gap) == ("feasible", pytest.approx(0.5))
    # No search is complete: where a better plan was found its seconds are an upper bound, and nothing is proven slack
    # that exact searches find binding.
    assert not any(binding.is_proven for binding in found.binding)
    exact = {binding.constraint for binding in osp.certificate(PROBLEM).binding}
    assert not exact & set(found.slack)


def test_a_front_that_ends_at_a_limit_of_labels_is_incomplete() -> None:
    assert osp.pareto(PROBLEM, max_labels=1).is_complete is False


def test_what_a_function_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gap is 0\.1, must be 0: every point of a Pareto front is proven"):
        osp.pareto(PROBLEM, options=SolveOptions(gap=0.1))
    with pytest.raises(ValueError, match="objective is throughput, must be latency to replan a running plan"):
        osp.replan(STAGES, PROBLEM, objective="throughput")


@pytest.mark.parametrize("seed", range(20))
def test_a_gap_of_replanning_is_proven(seed: int) -> None:
    r = Random(seed)
    problem = Problem.from_dict(random_problem(r, most_layers=5, most_nodes=3))
    before = osp.solve(problem)
    if not before.stages:
        pytest.skip("no plan was running")
    stores = [node.name for node in problem.nodes]
    exact, rough = (osp.replan(before, problem, stores=stores, gap=gap) for gap in (0.0, 0.3))
    assert rough.lower_bound_s <= exact.lower_bound_s * (1 + 1e-9)
    assert exact.chosen.total_s <= rough.chosen.total_s <= exact.chosen.total_s / 0.7 * (1 + 1e-9)
