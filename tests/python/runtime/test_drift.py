"""When the times of stages and links count as drifting: over a window, in both of its halves, of one session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit._plans.plan_parts import PlanLink
from orbitsplit._plans.rebalance import Measured, MeasuredLink
from orbitsplit.runtime._messages.control import Heartbeat
from orbitsplit.runtime._parent.drift import LEAST_STEPS, WINDOW_S, Drift
from tests.support.toy_plan import planned

STEP_S = 0.1


def a_plan() -> osp.Plan:
    plan = planned()
    assert plan.prediction is not None
    prediction = replace(plan.prediction, decode_stage_s=(STEP_S, STEP_S))
    return replace(plan, prediction=prediction, links=(PlanLink(1000.0, 0.5),))


def drift(
    factor: Callable[[float], float], seconds: float = WINDOW_S + 1, rate: Callable[[float], float] = lambda _: 1000.0
) -> Measured:
    """Return the drift of a plan whose second stage takes `factor(time)` times as long, and whose link has a rate."""
    found, plan, beats, count = Drift(), a_plan(), 0, [0.0, 0.0, 0.0]
    time_s = 0.0
    while time_s <= seconds:
        found.add(time_s, 1, [_beat(beats, STEP_S * beats * 5, count[1]), _beat(beats, count[0], 0.0)])
        time_s += 0.5
        beats += 1
        count[0] += 5 * STEP_S * factor(time_s)
        count[1] += 100 / rate(time_s)
    return found.measured(plan)


def _beat(beats: int, seconds: float, link_s: float) -> Heartbeat:
    """Return a heartbeat after five steps for each one before it; two tenths of their seconds are of decoding."""
    times = ((5 * beats, 0.8 * seconds), (0, 0.0), (5 * beats, 0.2 * seconds))
    return Heartbeat(beats, "serving", 1, sent_bytes=100 * beats, link_s=link_s, step_times=times)


def test_what_is_as_predicted_does_not_drift() -> None:
    assert not drift(lambda _: 1.19)
    assert not drift(lambda _: 0.9)


@pytest.mark.parametrize("factor", [1.3, 2.0, 0.5])
def test_a_stage_that_takes_longer_or_less_for_the_whole_window_drifts(factor: float) -> None:
    second = a_plan().stages[1].node
    found = drift(lambda _: factor)
    assert found.factors == pytest.approx({second: factor})
    assert found.links == {}
    assert found.described() == [f'node "{second}" takes {factor:.2f} times as long as predicted']


def test_nothing_drifts_before_the_window_is_full() -> None:
    assert not drift(lambda _: 9.0, seconds=WINDOW_S / 2)


def step_drift(steps_per_s: Callable[[int], float], seconds: int) -> Measured:
    """Return the drift of a plan whose stages take three times the seconds that are predicted of a step."""
    found, plan, steps = Drift(), a_plan(), 0.0
    for now_s in range(seconds + 1):
        times = ((int(steps), int(steps) * 3 * STEP_S), (0, 0.0), (0, 0.0))
        found.add(float(now_s), 1, [Heartbeat(now_s, "serving", 1, step_times=times)] * 2)
        steps += steps_per_s(now_s)
    return found.measured(plan)


def test_the_window_of_slow_stages_grows() -> None:
    # Below four steps a second nothing was ever said.
    assert not step_drift(lambda _: 0.5, 4 * LEAST_STEPS - 4)
    for seconds in (4 * LEAST_STEPS + 4, 300):
        assert step_drift(lambda _: 0.5, seconds).factors == pytest.approx(dict.fromkeys(("a", "b"), 3.0))


def test_the_window_is_short_again_where_there_are_more_steps() -> None:
    assert not step_drift(lambda now_s: 9.0 if now_s > 300 else 0.0, 304)
    assert step_drift(lambda now_s: 9.0 if now_s > 300 else 0.0, 312)


def test_a_burst_does_not_drift() -> None:
    """In the mean over the window it takes twice as long, and half of the window is as predicted."""
    assert not drift(lambda time_s: 5.0 if 2 < time_s < 5 else 1.0)


def test_an_emulated_link_that_is_slower_drifts() -> None:
    plan = a_plan()
    ends = plan.stages[0].node, plan.stages[1].node
    found = drift(lambda _: 1.0, rate=lambda _: 500.0)
    assert found.factors == {}
    assert found.links == {ends: MeasuredLink(pytest.approx(500.0), 0.5)}
    assert "has 500 B/s" in found.described()[0]


def test_another_session_begins_another_window() -> None:
    found, plan = Drift(), a_plan()
    for beats in range(30):
        found.add(beats / 2, 1, [_beat(beats, beats * 5 * 0.3, 0.0)] * 2)
    assert found.measured(plan).factors == pytest.approx(dict.fromkeys(("a", "b"), 3.0))
    found.add(15.5, 2, [None, None])
    assert not found.measured(plan)


def test_a_plan_without_a_prediction_has_nothing_to_drift_from() -> None:
    found = Drift()
    for beats in range(30):
        found.add(beats / 2, 1, [_beat(beats, beats * 5 * 0.3, 0.0)] * 2)
    assert not found.measured(osp.Plan.manual(cuts=[2], layers=4))
