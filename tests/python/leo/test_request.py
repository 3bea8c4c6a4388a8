"""What planning in time is asked: arguments that make no sense are refused by name, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from orbitsplit import leo
from tests.support.satellite_train import profile, train, workload

SCENARIO = leo.Scenario.load("cubesat")
PLANNERS: list[Callable[..., Any]] = [leo.plan_in_time, leo.start_now, leo.wait_for_pass]
SIZES = {"source": "sat-0", "input_bytes": 1.0, "output_bytes": 1.0, "deadline_s": 9000.0}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requested": 2461041.6}, "requested is 2461041.6, expected a datetime with a time zone"),
        ({"requested": "now"}, "requested is 'now', expected a datetime with a time zone"),
        ({"deadline_s": "60"}, "deadline_s is '60', expected a number"),
        ({"input_bytes": "1 GB"}, "input_bytes is '1 GB', expected a number"),
        ({"source": 3}, "source is 3, expected a string"),
        ({"destination": "munich"}, r"destination is the string 'munich', expected a sequence of names: \['munich'\]"),
        ({"destination": [3]}, "destination holds 3, expected names"),
        ({"computers": {"sat-0": "jetson"}}, "the computer of 'sat-0' is 'jetson', expected a Node"),
        ({"computers": "sat-0"}, "computers is 'sat-0', expected nodes by name"),
    ],
)
def test_other_types_are_refused(planner: Callable[..., Any], changes: dict[str, Any], message: str) -> None:
    fleet = train()
    with pytest.raises(TypeError, match=message):
        planner(profile(), fleet, workload(1), **{"requested": fleet.epoch, **SIZES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"satellites": "sat-0"}, r"satellites is the string 'sat-0', expected a sequence of names: \['sat-0'\]"),
        ({"power": "sat-0"}, "power is 'sat-0', expected a Power"),
        ({"power": {"sat-0": 9.0}}, "the power of 'sat-0' is 9.0, expected a Power"),
        ({"step_s": "10"}, "step_s is '10', expected a number"),
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
        ("cubesat", "the constellation is 'cubesat', expected a Constellation or a Timetable"),
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
