"""Parts of a flight by hand: its clock and scale, links of a contact plan, files on links, and energy."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import LinkShape, Node, leo
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.trace import Trace, TraceEvent
from orbitsplit.flight import FlightLog, FlightRequest, FlightTransmission, FlownRequest
from orbitsplit.flight._clock import FlightClock, changed_rates, scaled_conditions, scaled_plan, too_fast
from orbitsplit.flight._contact_links import contact_links
from orbitsplit.flight._energy import energy_of
from orbitsplit.flight._execution import frames_of
from orbitsplit.flight._file_links import FileLinks
from orbitsplit.flight._fly import slower_computers
from tests.judges.flight import misuses
from tests.support.satellite_train import RATE, first_contact, profile, train


def test_a_clock_counts_seconds_of_the_flight() -> None:
    clock = FlightClock(100.0, 60.0)
    assert clock.of_s(101.0) == 60.0
    assert clock.monotonic_s(90.0) == 101.5


def test_a_plan_takes_less_of_everything_that_it_counts() -> None:
    nodes = (Node("a", 10**9, slowdown=300.0), Node("b", 10**9, slowdown=600.0))
    network = osp.Network("two", nodes, (osp.Link("a", "b", 1e6, 0.012), osp.Link("b", "a", 1e6, 0.012)))
    plan = osp.plan(profile(weight_bytes=200_000_000), network, osp.Workload(prompt_tokens=100))
    assert len(plan.stages) == 2
    scaled = scaled_plan(plan, 60.0)
    assert [stage.slowdown for stage in scaled.stages] == [stage.slowdown / 60 for stage in plan.stages]
    assert scaled.links[0].bytes_per_s == 60e6
    assert scaled.links[0].latency_s == pytest.approx(0.0002)
    assert plan.prediction is not None
    assert scaled.prediction is not None
    assert scaled.prediction.total_s == pytest.approx(plan.prediction.total_s / 60)
    assert scaled.prediction.stage_s == pytest.approx(tuple(s / 60 for s in plan.prediction.stage_s))
    assert scaled.prediction.stage_memory_bytes == plan.prediction.stage_memory_bytes
    assert too_fast([plan], 300.0) is None
    assert "a speed of at most 300 fits, or a factor `slower` 1.01 times as large" in str(too_fast([plan], 301.0))
    # Half as slow as this machine: no speed that is allowed fits.
    fast = replace(plan, stages=tuple(replace(stage, slowdown=0.5) for stage in plan.stages))
    assert str(too_fast([fast], 60.0)).endswith("120 times faster: a factor `slower` 120 times as large")


def test_links_are_faster_for_a_shorter_time() -> None:
    link = LinkShape("a", "b", latency_s=6.0, rates=((0.0, 10.0), (60.0, 20.0)), down=((120.0, math.inf),))
    (scaled,) = scaled_conditions(LinkConditions((link,)), 60.0).links
    assert scaled.rates == ((0.0, 600.0), (1.0, 1200.0))
    assert scaled.down == ((2.0, math.inf),)
    assert scaled.latency_s == pytest.approx(0.1)


def test_rates_change_where_they_do_and_outages_keep_the_rate_before() -> None:
    assert changed_rates([0, 1, 2, 3, 4, 5], [0, 5, 5, 0, 7]) == ((0.0, 5), (4, 7))
    assert changed_rates([0, 1], [0]) == ()


def test_the_links_are_those_of_the_contact_plan() -> None:
    fleet = train()
    contact = first_contact(fleet, "sat-1")
    start = contact.start - timedelta(minutes=10)
    table = leo.Timetable.of(fleet, start, start + timedelta(minutes=40))
    conditions = contact_links(table, ["svalbard"])
    assert len(conditions.links) == 3 * 2 + 3 * 2
    down = conditions.of("sat-1", "svalbard")
    assert down is not None
    (before, after) = down.down
    assert before[0] == 0.0
    assert before[1] == pytest.approx(600, abs=0.1)
    assert after[0] == pytest.approx(600 + contact.duration_s - 1, abs=0.1)  # the guard
    assert after[1] == math.inf
    assert down.rates == ((0.0, RATE),)
    # At the mask of 10 deg a satellite at 500 km is some 1,700 km away.
    assert down.latency_s == pytest.approx(1700e3 / 299_792_458, rel=0.05)
    between = conditions.of("sat-0", "sat-1")
    assert between is not None
    assert between.down == ()
    # No link of the train reaches a station that is never seen.
    early = leo.Timetable.of(fleet, start, start + timedelta(minutes=5))
    unseen = contact_links(early, ["svalbard"]).of("sat-0", "svalbard")
    assert unseen is not None
    assert unseen.down == ((0.0, math.inf),)


def test_a_file_streams_along_its_path_and_waits_for_a_link() -> None:
    links = (
        LinkShape("a", "b", latency_s=0.0, rates=((0.0, 1000.0),)),
        LinkShape("b", "c", latency_s=0.5, rates=((0.0, 1000.0),), down=((0.0, 20.0),)),
    )
    clock = FlightClock(50.0, 60.0)
    files = FileLinks(scaled_conditions(LinkConditions(links), 60.0), clock)
    arrival_s, sent = files.send(("a", "b", "c"), 6400, 10.0, carried="result", request=3)
    # The first link takes 6.4 s from 10 s on, the second one is up at 20 s; then light takes half a second.
    assert arrival_s == pytest.approx(20 + 6.4 + 0.5)
    first, second = sent
    assert first[:4] == ("a", "b", "result", 3)
    assert first[4:] == pytest.approx((10.0, 16.4, 6400))
    assert second[4:] == pytest.approx((20.0, 26.4, 6400))
    # What follows waits for what is under way.
    _, later = files.send(("b", "c"), 1000, 21.0, carried="input", request=4)
    assert later[0].start_s == pytest.approx(26.4)
    # An open path streams: the second link is one chunk behind.
    arrival_s, _ = files.send(("a", "b", "c"), 6400, 100.0, carried="input", request=5)
    assert arrival_s == pytest.approx(100 + 6.4 + 0.1 + 0.5)


def test_energy_is_that_of_what_nodes_did() -> None:
    fleet = train()
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=4))
    events = (TraceEvent("sat-0", "compute", 0, 0, 10.0, 100.0), TraceEvent("sat-0", "wait", 0, 0, 100.0, 900.0),
              TraceEvent("sat-0", "encode", 0, 0, 900.0, 910.0))  # fmt: skip
    sent = FlightTransmission("sat-0", "svalbard", "result", 0, 1000.0, 1005.0, 1)
    log = FlightLog(fleet.epoch.isoformat(), 60.0, transmissions=(sent,))
    trace = Trace(("sat-0",), events, flight=log)
    power = leo.Power(busy_w=12, idle_w=2, transmit_w=4, average_w=8, battery_j=50_000)
    plan = leo.plan_in_time(profile(), table, requested=fleet.epoch, source="sat-0", input_bytes=1, output_bytes=1)
    joules, shortfall = energy_of(trace, table, [plan], [(10.0, 100.0)], power)
    assert joules == {"sat-0": pytest.approx(10 * 100 + 4 * 5)}
    assert shortfall is None
    _, shortfall = energy_of(trace, table, [plan], [(10.0, 100.0)], replace(power, average_w=2.1))
    assert shortfall is not None
    assert "sat-0 would consume" in shortfall
    assert energy_of(trace, table, [plan], [(10.0, 100.0)], None) == ({}, None)


def test_a_slow_computation_is_seen_beside_hours_of_waiting() -> None:
    fleet = train()
    at = fleet.epoch
    request = leo.TimedRequest(requested=at, source="sat-0", input_bytes=1, output_bytes=1)
    plan = leo.plan_in_time(profile(), fleet, request=request)
    times = {"compute_start": at, "compute_stop": at + timedelta(seconds=10), "completion": at + timedelta(hours=2)}
    flown = FlownRequest(
        FlightRequest(request, (1,)), replace(plan, **times), (1,), at, at + timedelta(seconds=30), times["completion"]
    )
    assert (flown.compute_lag_s, flown.compute_deviation, flown.deviation) == (20.0, 2.0, 0.0)


def test_computers_are_slower_by_a_factor() -> None:
    found = slower_computers(leo.Scenario.load("cubesat"), {"sat-2": Node("fast", 1, slowdown=0.5)}, 10.0)
    assert {name: node.slowdown for name, node in found.items()} == {
        "sat-0": 40.0, "sat-1": 30.0, "sat-2": 5.0, "sat-3": 45.0, "munich": 10.0,
    }  # fmt: skip
    paper = leo.Scenario.load("paper")
    own, slow = slower_computers(paper, None, 1.0), slower_computers(paper, None, 4.0)
    assert set(own) == {*paper.chain, *(station.name for station in paper.constellation.stations)}
    for name, node in own.items():
        assert node.flop_per_s is not None
        assert slow[name].flop_per_s == pytest.approx(node.flop_per_s / 4)
        assert np.isclose(slow[name].memory_bytes_per_s or 0.0, (node.memory_bytes_per_s or 0.0) / 4)


def test_frames_have_the_bytes_that_their_link_carried() -> None:
    spans = [(-1, 0.0, 3.0), (0, 3.0, 4.0), (1, 5.0, 5.5), (2, 6.0, 6.5)]
    events = [TraceEvent("a", "send", 0, *span) for span in spans]
    others = [TraceEvent("a", "compute", 0, 0, 0.0, 9.0), TraceEvent("b", "send", 0, 0, 0.0, 9.0)]
    link = osp.LinkMetrics(frames=4, prefill_bytes=800, decode_bytes=100, source="a", destination="b", busy_s=5.0)
    found = list(frames_of(Trace(("a", "b"), (*events, *others)), link))
    assert found == list(zip(events, (600, 200, 50, 50), strict=True))


def test_the_judge_adds_up_what_a_link_carries_at_once() -> None:
    fleet = train()
    table: dict[str, Any] = {"epoch": fleet.epoch.isoformat()}

    def judged(*sent: tuple[str, float, float, int]) -> list[str]:
        rows = [["sat-0", "sat-1", carried, 0, *span] for carried, *span in sent]
        return misuses({"flight": table | {"transmissions": rows}}, fleet, lambda _a, _b: 100.0)

    assert judged(("activation", 1.0, 2.0, 100), ("activation", 2.0, 3.0, 100)) == []
    assert judged(("input", 1.0, 2.0, 100), ("activation", 1.5, 2.5, 100)) == []
    # Each of these alone is within the rate.
    (sentence,) = judged(("activation", 1.0, 2.0, 100), ("context", 1.5, 2.5, 100), ("activation", 4.0, 5.0, 1))
    assert sentence == "sat-0 to sat-1 from 1.00 s to 2.50 s: 200 bytes are more than the link carries"
