"""Emulated links and nodes: delivery times by hand, and work stretched to a slower node's."""

from __future__ import annotations

import time

import pytest

from orbitsplit._trace import Recorder
from orbitsplit.runtime._emulation import LinkShaper, Pace, sleep_until


def test_messages_queue_for_the_rate_and_travel_at_the_same_time() -> None:
    link = LinkShaper(bytes_per_s=100.0, latency_s=5.0)
    assert link.stamp(200, now_s=10.0) == (10.0, 12.0, 17.0)
    assert link.stamp(100, now_s=11.0) == (12.0, 13.0, 18.0)  # waits for the rate, not for the delivery
    assert link.stamp(100, now_s=20.0) == (20.0, 21.0, 26.0)


def test_an_unshaped_link_has_no_occupancy_and_keeps_its_latency() -> None:
    assert LinkShaper(latency_s=0.5).stamp(10**9, now_s=3.0) == (3.0, 3.0, 3.5)


@pytest.mark.parametrize("slowdown", [1.0, 5.0])
def test_work_lasts_slowdown_times_its_processor_time(slowdown: float) -> None:
    recorder = Recorder()
    pace = Pace(recorder, slowdown=slowdown)
    assert pace.run("compute", 1, 2, lambda: sum(range(300_000))) == sum(range(300_000))
    ((kind, group, step, start_s, stop_s),) = recorder.events
    assert (kind, group, step) == ("compute", 1, 2)
    assert stop_s - start_s >= slowdown * pace.cpu_s > 0


def test_waiting_is_not_stretched() -> None:
    recorder = Recorder()
    Pace(recorder, slowdown=1000.0).run("compute", 0, 0, lambda: sleep_until(time.monotonic() + 0.01))
    ((*_, start_s, stop_s),) = recorder.events
    assert stop_s - start_s < 1.0  # ten milliseconds of sleep take microseconds of processor time


def test_a_node_held_by_its_transmission_starts_no_work_before() -> None:
    recorder = Recorder()
    pace = Pace(recorder)
    free_s = time.monotonic() + 0.02
    pace.hold_until(free_s)
    pace.run("compute", 0, 1, lambda: None)
    pace.run("compute", 0, 2, lambda: None)
    kinds = [event[0] for event in recorder.events]
    assert kinds == ["wait", "compute", "compute"]
    assert recorder.events[1][3] >= free_s


def test_a_moment_in_the_past_is_not_waited_for() -> None:
    before_s = time.monotonic()
    sleep_until(before_s - 100.0)
    assert time.monotonic() - before_s < 1.0
