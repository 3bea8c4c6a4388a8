"""Requests of planning in time: as objects or keywords; what makes no sense is refused by name, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from orbitsplit import leo
from orbitsplit.leo._scheduling.request import PlanKeywords, RequestKeywords
from tests.support.satellite_train import profile, train, workload

SCENARIO = leo.Scenario.load("cubesat")
PLANNERS: list[Callable[..., Any]] = [leo.plan_in_time, leo.start_now, leo.wait_for_pass]
SIZES = {"source": "sat-0", "input_bytes": 1.0, "output_bytes": 1.0, "deadline_s": 9000.0}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requested": 2461041.6}, "requested is 2461041.6, must be a datetime with a time zone"),
        ({"requested": "now"}, "requested is 'now', must be a datetime with a time zone"),
        ({"deadline_s": "60"}, "deadline_s is '60', must be a number"),
        ({"input_bytes": "1 GB"}, "input_bytes is '1 GB', must be a number"),
        ({"source": 3}, "source is 3, must be a string"),
        ({"destination": "munich"}, r"destination is the string 'munich', must be a sequence of names: \['munich'\]"),
        ({"destination": [3]}, "a name in destination is 3, must be a string"),
        ({"computers": {"sat-0": "jetson"}}, "the computer of 'sat-0' is 'jetson', must be a Node"),
        ({"computers": "sat-0"}, "computers is 'sat-0', must be nodes by name"),
    ],
)
def test_other_types_are_refused(planner: Callable[..., Any], changes: dict[str, Any], message: str) -> None:
    fleet = train()
    with pytest.raises(TypeError, match=message):
        planner(profile(), fleet, workload(1), **{"requested": fleet.epoch, **SIZES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"satellites": "sat-0"}, r"satellites is the string 'sat-0', must be a sequence of names: \['sat-0'\]"),
        ({"power": "sat-0"}, "power is 'sat-0', must be a Power"),
        ({"power": {"sat-0": 9.0}}, "the power of 'sat-0' is 9.0, must be a Power"),
        ({"step_s": "10"}, "step_s is '10', must be a number"),
    ],
)
def test_other_types_of_who_takes_part_are_refused(changes: dict[str, Any], message: str) -> None:
    fleet = train()
    with pytest.raises(TypeError, match=message):
        leo.plan_in_time(profile(), fleet, workload(1), **{"requested": fleet.epoch, **SIZES, **changes})


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SCENARIO, "the constellation is the Scenario 'cubesat'; pass its .constellation"),
        ("cubesat", "the constellation is 'cubesat', must be a Constellation or a Timetable"),
    ],
)
def test_what_is_no_constellation_is_refused(planner: Callable[..., Any], given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        planner(profile(), given, workload(1), requested=SCENARIO.constellation.epoch, **SIZES)


@pytest.mark.parametrize("is_table", [False, True])
def test_a_naive_request_is_shown_as_it_was_given(is_table: bool) -> None:
    fleet: Any = train()
    if is_table:
        fleet = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=1))
    for planner in PLANNERS:
        with pytest.raises(ValueError, match="requested is 2026-01-01T00:00:00, which has no time zone"):
            planner(profile(), fleet, workload(1), requested=datetime(2026, 1, 1), **SIZES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"destination": []}, "destination is empty, at least one station is needed; the stations are svalbard"),
        ({"satellites": []}, "satellites is empty, at least one must take part"),
        (
            {"satellites": ["sat-1", "sat-2"]},
            "the source 'sat-0' does not take part; the satellites that do are sat-1, sat-2",
        ),
    ],
)
def test_nobody_is_refused(changes: dict[str, Any], message: str) -> None:
    fleet = train()
    with pytest.raises(ValueError, match=message):
        leo.plan_in_time(profile(), fleet, workload(1), **{"requested": fleet.epoch, **SIZES, **changes})


def test_a_request_is_an_object_or_its_fields_as_keywords() -> None:
    fleet = train()
    fields: dict[str, Any] = {"requested": fleet.epoch, **SIZES, "deadline_s": 30_000.0, "destination": ["svalbard"]}
    request, options = leo.TimedRequest(**fields), leo.StrategyOptions(shares=False, max_nodes=1)
    assert request.destination == ("svalbard",)
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=9))
    for planner in PLANNERS:
        assert planner(profile(), table, workload(2), request) == planner(profile(), table, workload(2), **fields)
    with_options = leo.plan_in_time(profile(), table, workload(2), request=request, options=options)
    assert with_options == leo.plan_in_time(profile(), table, workload(2), **fields, shares=False, max_nodes=1)
    assert not [other for other in with_options.alternatives if other.strategy.startswith("shared")]
    mixed = leo.plan_in_time(profile(), table, workload(2), request, shares=False, max_nodes=1)
    assert mixed == with_options


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_argument_is_given_once_and_known(planner: Callable[..., Any]) -> None:
    fleet = train()
    fields = {"requested": fleet.epoch, **SIZES}
    request = leo.TimedRequest(**fields)  # type: ignore[arg-type]
    name = planner.__name__
    for keywords, message in (
        ({"request": request, "source": "sat-0"}, rf"{name}\(\) got request= and source=, which is a field of it"),
        ({"request": fields}, "request is {.*, must be a TimedRequest"),
        ({**fields, "sauce": "sat-0"}, rf"{name}\(\) got an unexpected keyword argument 'sauce'"),
        ({"source": "sat-0", "requested": fleet.epoch}, "missing 2 required .*'input_bytes' and 'output_bytes'"),
    ):
        with pytest.raises(TypeError, match=message):
            planner(profile(), fleet, workload(1), **keywords)


def test_options_are_given_once() -> None:
    fleet = train()
    request = leo.TimedRequest(requested=fleet.epoch, source="sat-0", input_bytes=1.0, output_bytes=1.0)
    options = leo.StrategyOptions()
    with pytest.raises(TypeError, match=r"plan_in_time\(\) got options= and shares=, which is a field of it"):
        leo.plan_in_time(profile(), fleet, workload(1), request, options=options, shares=False)
    with pytest.raises(TypeError, match="options is 'fast', must be a StrategyOptions"):
        leo.plan_in_time(profile(), fleet, workload(1), request, options="fast")  # type: ignore[arg-type]


def test_keywords_are_typed_as_the_fields_of_the_objects() -> None:
    """The keywords of the planners repeat the fields for type checkers: neither may have one that the other lacks."""
    for keywords, kinds in (
        (RequestKeywords, (leo.TimedRequest,)),
        (PlanKeywords, (leo.TimedRequest, leo.StrategyOptions)),
    ):
        fields = {field.name: field.type for kind in kinds for field in dataclasses.fields(kind)}
        assert {name: hint.__forward_arg__ for name, hint in keywords.__annotations__.items()} == fields
