"""How much of what users give a message repeats: about 200 characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit._io.validation import check_count, check_number, listed, quoted

LONG = "x" * 1_000_000
MANY = [f"sat-{k}" for k in range(5000)]
NODE = osp.Node("a", 1000, slowdown=1.0)
FLEET = tuple(osp.Node(name, 1000, slowdown=1.0) for name in MANY)
LAYER = osp.LayerProfile("layer", 1, 0, None, 1, 1, 1.0, 1.0)
PROFILE = osp.ModelProfile("toy", "Toy", "float32", 512, 1, 16, (LAYER,) * 3, 64, 1, 0, threads=1)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        ([1, 2], "1, 2"),
        (["x" * 79, "y" * 79], f"{'x' * 79}, {'y' * 79}"),
        (["x" * 80, "y" * 80], f"{'x' * 80} and 1 more"),
        (["x" * 1000, "b"], f"{'x' * 80}..., b"),
        (MANY, f"{', '.join(MANY[:21])} and 4,979 more"),
    ],
)
def test_a_list_is_named_as_far_as_it_fits(values: list[Any], text: str) -> None:
    assert listed(values) == text


def test_numbers_that_python_refuses_to_print_are_named() -> None:
    assert quoted(10**5000) == "an integer of about 5,000 digits"
    for call in (lambda: check_count("n", 10**5000, 0), lambda: check_count("n", -(10**5000), 0)):
        with pytest.raises(ValueError, match="n is an integer of about 5,000 digits, must be at"):
            call()
    with pytest.raises(ValueError, match=r"n has 5001 digits, must be at most 1\.8e308"):
        check_number("n", 10**5000)


CALLS: list[Callable[[], Any]] = [
    lambda: osp.Network("n", FLEET, (osp.Link("sat-1", LONG, 1.0),)),
    lambda: osp.Network("n", FLEET).without([LONG]),
    lambda: osp.Network("n", (NODE,), pins=((LONG, ()),)),
    lambda: osp.Network.sample(LONG),
    lambda: osp.Node(LONG, -1, slowdown=1.0),
    lambda: osp.Link(LONG, LONG, 1.0),
    lambda: osp.Link(LONG, "b" * 1_000_000, -1.0),
    lambda: osp.Plan.from_dict({**osp.Plan.manual([1], 2).to_dict(), LONG: 1}),
    lambda: osp.Plan.from_dict({**osp.Plan.manual([1], 2).to_dict(), "format": LONG}),
    lambda: osp.Plan.manual([1], 2, nodes=[LONG, LONG]),
    lambda: osp.PlanStage(LONG, 0, 2, half_duplex=LONG),  # type: ignore[arg-type]
    lambda: osp.LinkConditions((osp.LinkShape("a", LONG),)).check(MANY),
    lambda: osp.LinkShape("a", LONG, rates=((LONG,),)),  # type: ignore[arg-type]
    lambda: osp.build_problem(PROFILE, osp.Network("n", FLEET), osp.Workload(), pins={LONG: []}),
    lambda: osp.build_problem(PROFILE, osp.Network("n", (NODE,)), osp.Workload(), pins={"a": [LONG]}),
    lambda: osp.plan(PROFILE, osp.Network("n", (NODE,)), **{"x" * 10_000: 1}),  # type: ignore[misc]
    lambda: osp.Workload(micro_batches=LONG),  # type: ignore[arg-type]
    lambda: osp.GenerationOptions(max_new_tokens=1, eos_token_id=LONG),  # type: ignore[arg-type]
    lambda: osp.frame_bytes((2, 2), LONG),
    lambda: osp.frame_bytes(LONG, "float32"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", CALLS)
def test_a_message_repeats_little_of_what_was_given(call: Callable[[], Any]) -> None:
    """Regression: messages of up to megabytes, and names of all satellites."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert len(str(caught.value)) < 500


def test_a_name_that_a_problem_does_not_have_is_named_with_some_that_it_has() -> None:
    problem = osp.build_problem(PROFILE, osp.Network("n", FLEET[:200]), osp.Workload())
    with pytest.raises(
        ValueError, match=r'^nodes\[0\] is "xxx.*\.\.\.", the name of 0 out of: sat-0, .* and \d+ more$'
    ) as caught:
        osp.without(problem, nodes=[LONG])
    assert len(str(caught.value)) < 400
    record = problem.to_dict()
    with pytest.raises(ValueError, match='has the unknown key "xxx') as caught:
        osp.Problem.from_dict(json.loads(json.dumps({**record, LONG: 1})))
    assert len(str(caught.value)) < 1000
