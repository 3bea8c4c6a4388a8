"""Planning in time: carriages against exhaustive search, plans against an event simulation, what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import orbitsplit as osp
from orbitsplit import ModelProfile, Node, leo
from orbitsplit.leo._orbits.topology import Nearest
from orbitsplit.leo._scheduling.sharing import _part, shared
from orbitsplit.leo._scheduling.store_and_forward import Carriage, Carrier
from orbitsplit.leo._scheduling.strategies import on_ground, on_satellite, split_at
from tests.support.satellite_train import (
    MUNICH,
    STEP_S,
    SVALBARD,
    by_range,
    first_contact,
    judged,
    profile,
    train,
    workload,
)

# Links over time


def test_a_timetable_has_the_links_of_the_network_at_an_instant() -> None:
    fleet = train(by_range)
    contact = first_contact(fleet, "sat-1")
    start = contact.start - timedelta(minutes=3)
    table = leo.Timetable.of(fleet, start, start + timedelta(minutes=20), step_s=STEP_S)
    assert np.all(np.diff(table.edges_s) > 0)
    nodes = dict.fromkeys(fleet.names, fleet.equipment.node) | {"svalbard": SVALBARD.node}  # type: ignore[union-attr]
    wide = fleet.served_by(replace(SVALBARD, antennas=None))
    seen = 0
    for k in range(0, len(table.edges_s) - 1, 2):
        middle = float(table.edges_s[k] + table.edges_s[k + 1]) / 2
        ours, theirs = table.network(middle, middle, nodes, [0]), wide.network(table.datetime(middle))
        rates = {(link.source, link.destination): (link.bytes_per_s, link.latency_s) for link in theirs.links}
        assert {(link.source, link.destination) for link in ours.links} == set(rates)
        for link in ours.links:
            assert (link.bytes_per_s, link.latency_s) == pytest.approx(rates[link.source, link.destination], rel=1e-6)
            seen += link.destination == "svalbard"
    assert seen > 20
    first = float(table.edges_s[:-1][np.any(table.down_bytes_per_s[:, 1] > 0, axis=1)].min())
    assert table.datetime(first) - contact.start < timedelta(milliseconds=1)
    ends = table.until_s(first, [("sat-1", "svalbard")])
    assert (contact.stop - table.datetime(ends)).total_seconds() == pytest.approx(1.0, abs=1e-3)  # the guard


@pytest.mark.parametrize("topology", [Nearest(), Nearest(1), Nearest(max_range_km=90.0), Nearest(acquisition_s=30.0)])
def test_links_between_satellites_are_those_of_the_topology(topology: Nearest) -> None:
    fleet = train(count=4)
    assert fleet.equipment is not None
    fleet = fleet.equipped(replace(fleet.equipment, topology=topology))
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=2))
    for k in range(5, len(table.edges_s) - 1, 20):
        pairs, _ = fleet.links(table.datetime(float(table.edges_s[k] + table.edges_s[k + 1]) / 2))
        expected = np.zeros((4, 4), dtype=bool)
        expected[pairs[:, 0], pairs[:, 1]] = expected[pairs[:, 1], pairs[:, 0]] = True
        assert np.array_equal(table.isl_bytes_per_s[k] > 0, expected)


def test_the_antenna_needs_its_time_in_contact() -> None:
    fleet = train().served_by(replace(SVALBARD, acquisition_s=60.0))
    contact = first_contact(fleet, "sat-0")
    # A timetable that starts amid the contact knows when it began.
    for start in (contact.start - timedelta(minutes=3), contact.start + timedelta(seconds=20)):
        table = leo.Timetable.of(fleet, start, start + timedelta(minutes=20))
        first = float(table.edges_s[:-1][table.down_bytes_per_s[:, 0, 0] > 0].min())
        assert (table.datetime(first) - contact.start).total_seconds() == pytest.approx(60, abs=0.01)


# Carrying files


def random_table(r: np.random.Generator, cells: int, satellites: int) -> Any:
    """Return a timetable of random links, that come and go, as far as a carrier looks at it."""
    edges = np.concatenate([[0.0], np.cumsum(r.uniform(1, 3, cells))])
    isl = np.where(r.random((cells, satellites, satellites)) < 0.4, r.uniform(1, 4, (cells, satellites, satellites)), 0)
    isl = np.maximum(isl, np.swapaxes(isl, 1, 2)) * ~np.eye(satellites, dtype=bool)
    down = np.where(r.random((cells, satellites, 1)) < 0.3, r.uniform(1, 4, (cells, satellites, 1)), 0.0)
    equipment = leo.Equipment(Node("obc", 1, slowdown=1.0))
    fleet = train(count=satellites).equipped(equipment)
    zeros, names = np.zeros_like(isl), tuple(fleet.names)
    return leo.Timetable(fleet, fleet.epoch, names, edges, isl, zeros, down, down, np.zeros_like(down))


def widest(rates: np.ndarray, a: int, b: int) -> float:
    """Return the rate of the widest path, over all paths."""
    nodes = [n for n in range(len(rates) - 1) if n not in (a, b)]
    paths = [(a, *via, b) for size in range(len(nodes) + 1) for via in itertools.permutations(nodes, size)]
    return max(min(rates[x, y] for x, y in itertools.pairwise(path)) for path in paths)


def exhaustive(table: Any, rates: list[np.ndarray], holder: int, left: float, at: float, best: float, k: int) -> float:
    """Return the earliest arrival on the ground: at every edge, stream on or hand all that is left to anyone."""
    ground, edges = len(table.satellites), table.edges_s
    if k >= len(rates) or at >= best:
        return best
    rate = widest(rates[k], holder, ground)
    if rate > 0 and at + left / rate <= edges[k + 1]:
        best = min(best, at + left / rate)
    else:
        best = exhaustive(table, rates, holder, left - rate * (edges[k + 1] - at), edges[k + 1], best, k + 1)
    if at not in (0.0, edges[k]):
        return best  # handed over within a cell: the next hand-over is at an edge
    for other in range(ground):
        moved, now, cell = 0.0, at, k
        while other != holder and cell < len(rates):
            rate = widest(rates[cell], holder, other)
            if rate > 0 and moved + rate * (edges[cell + 1] - now) >= left:
                arrives = now + (left - moved) / rate
                best = exhaustive(table, rates, other, left, arrives, best, cell)
                break
            moved, now, cell = moved + rate * (edges[cell + 1] - now), edges[cell + 1], cell + 1
    return best


def test_carriages_are_the_earliest_of_their_kind() -> None:
    r = np.random.default_rng(3)
    found = handed = 0
    for _ in range(60):
        table = random_table(r, 7, 3)
        carrier = Carrier(table, (), (0,))
        size = float(r.uniform(2, 12))
        carriage = carrier.carry(0, carrier.ground, size, 0.0)
        rates = [np.zeros((4, 4)) for _ in range(7)]
        for k, matrix in enumerate(rates):
            matrix[:3, :3] = table.isl_bytes_per_s[k]
            matrix[:3, 3] = table.down_bytes_per_s[k, :, 0]
        best = exhaustive(table, rates, 0, size, 0.0, 1e9, 0)
        assert (carriage is None) == (best == 1e9)
        if carriage is not None:
            found += 1
            handed += any(sending.path[-1] != "svalbard" for sending in carriage.sendings)
            assert carriage.arrival_s == pytest.approx(best)
            keeps_to_its_links(carriage, table, size)
    assert found > 30
    assert handed > 5


def keeps_to_its_links(carriage: Carriage, table: Any, size: float) -> None:
    """Fail unless every sending carries what its links can, in its span, and all arrives."""
    for sending in carriage.sendings:
        part = table.cells(sending.start_s, sending.stop_s)
        dt = np.minimum(table.edges_s[1:], sending.stop_s) - np.maximum(table.edges_s[:-1], sending.start_s)
        rates = np.stack([table.rate_bytes_per_s(a, b) for a, b in itertools.pairwise(sending.path)]).min(axis=0)
        assert sending.bytes <= float((rates * dt)[part].sum()) * (1 + 1e-9)
        assert sending.stop_s <= sending.closes_s + 1e-9
    down = [sending for sending in carriage.sendings if sending.path[-1] == "svalbard"]
    assert sum(sending.bytes for sending in down) == pytest.approx(size)
    assert carriage.at_s(size) == pytest.approx(carriage.arrival_s)
    assert carriage.at_s(size / 2) <= carriage.at_s(size)


def test_a_better_link_never_delays_a_file() -> None:
    r = np.random.default_rng(5)
    for _ in range(40):
        table = random_table(r, 8, 3)
        cell, better = int(r.integers(8)), table.down_bytes_per_s.copy()
        better[cell, int(r.integers(3)), 0] += 2
        wide = replace(table, down_bytes_per_s=better)
        before, after = (Carrier(t, (), (0,)).carry(0, 3, 6.0, 0.0) for t in (table, wide))
        if before is not None:
            assert after is not None
            assert after.arrival_s <= before.arrival_s + 1e-9


# Plans against the event simulation

CASES: dict[str, dict[str, Any]] = {
    # A large input just before a pass, and activations larger still: it goes down, in that pass and the next.
    "ground": {"before_s": 60, "input_bytes": 7e8, "output_bytes": 1e4, "seconds": 3.0, "count": 300, "cut": 100_000},
    # A small task after a pass: done by the time of the next one.
    "satellite": {"before_s": 3000, "input_bytes": 4e8, "output_bytes": 1e4, "seconds": 0.1, "count": 20},
    # No satellite holds the model, the gap is long enough for three.
    "split": {"before_s": 3000, "input_bytes": 4e8, "output_bytes": 1e4, "seconds": 0.5, "count": 20,
              "weight_bytes": 150_000_000},
    # Input and result are large, what lies between is not.
    "deferred": {"before_s": 3000, "input_bytes": 2e9, "output_bytes": 8e8, "seconds": 0.1, "count": 20},
    # Within a contact, satellites and server share the work; the input is too large to go down.
    "mixed": {"before_s": -60, "input_bytes": 9e8, "output_bytes": 1e4, "seconds": 1.0, "count": 20},
    # In a contact that ends too soon for all: the ground takes what comes down, two satellites the rest.
    "shared": {"before_s": -200, "input_bytes": 7e8, "output_bytes": 1e4, "seconds": 3.0, "count": 300,
               "weight_bytes": 150_000_000},
    # A result too large for one pass, and no server.
    "large result": {"before_s": 3000, "input_bytes": 1e6, "output_bytes": 8e8, "seconds": 0.1, "count": 20},
}  # fmt: skip


def fleet_of(name: str, rate: Any = None) -> leo.Constellation:
    fleet = train(rate)
    return fleet.served_by(replace(SVALBARD, node=None)) if name == "large result" else fleet


def case(name: str, fleet: leo.Constellation) -> tuple[ModelProfile, dict[str, Any]]:
    given = CASES[name]
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=given["before_s"])
    model = profile(given["seconds"], given.get("weight_bytes", 20_000_000), given.get("cut", 1000))
    asked = {"requested": at, "source": "sat-2", "deadline_s": 30_000.0, "step_s": STEP_S}
    return model, asked | {key: given[key] for key in ("input_bytes", "output_bytes")}


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_what_the_event_simulation_finds(name: str) -> None:
    fleet = fleet_of(name)
    model, asked = case(name, fleet)
    timed = leo.plan_in_time(model, fleet, workload(CASES[name]["count"]), **asked, shares=name == "shared")
    if name != "large result":
        assert timed.way == name
    else:
        assert timed.result[-1].path[-1] == "svalbard"
        assert timed.handovers
    assert judged(fleet, timed, asked, model) == pytest.approx(timed.duration_s, abs=STEP_S)
    assert timed.start >= timed.requested
    assert timed.compute_start <= timed.latest_start
    assert timed.compute_stop <= timed.completion
    for transfer in (*timed.input, *timed.activation, *timed.result):
        assert transfer.start < transfer.stop <= transfer.closes
    for other in timed.alternatives:
        assert other.completion is None or other.completion >= timed.completion - timedelta(seconds=0.1)
        assert (other.completion is None) == (other.reason is not None)
    assert leo.TimedPlan.from_dict(json.loads(json.dumps(timed.to_dict()))) == timed
    assert str(timed).startswith(timed.way)


@pytest.mark.parametrize("name", ["ground", "satellite", "deferred"])
def test_rates_by_range_are_integrated(name: str) -> None:
    fleet = train(by_range)
    model, asked = case(name, fleet)
    timed = leo.plan_in_time(model, fleet, workload(CASES[name]["count"]), **asked)
    executed = judged(fleet, timed, asked, model, down=lambda km: float(by_range(km)))
    assert executed == pytest.approx(timed.duration_s, abs=STEP_S)


def test_planning_is_never_later_than_starting_now_or_waiting() -> None:
    fleet = train()
    r = np.random.default_rng(0)
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=20), step_s=STEP_S)
    model, earlier = profile(0.5), 0
    for at in r.uniform(0, 36_000, 6):
        asked = {"source": "sat-2", "input_bytes": 6e8, "output_bytes": 1e4}
        asked["requested"] = fleet.epoch + timedelta(seconds=float(at))
        timed = leo.plan_in_time(model, table, workload(150), **asked)
        assert judged(fleet, timed, asked, model) == pytest.approx(timed.duration_s, abs=STEP_S)
        for rule in (leo.start_now, leo.wait_for_pass):
            other = rule(model, table, workload(150), **asked)
            assert judged(fleet, other, asked, model) == pytest.approx(other.duration_s, abs=STEP_S)
            # A tenth of a second chooses no way, and light's time no path.
            assert timed.completion <= other.completion + timedelta(milliseconds=150)
            earlier += timed.completion < other.completion
    assert earlier >= 6


@pytest.mark.parametrize("way", ["satellite", "split"])
def test_micro_batches_are_shared_as_two_plans_of_their_own_would_have_it(way: str) -> None:
    """Of every share: the ground's part where no satellite can compute, the board's where no station can."""
    fleet = train()
    asked = case("shared", fleet)[1] | {"output_bytes": 1e6}
    model, begin, count = profile(40.0, 20_000_000 if way == "satellite" else 150_000_000), asked["requested"], 24
    stop = begin + timedelta(seconds=asked["deadline_s"])
    table, unserved = (
        leo.Timetable.of(one, begin, stop, step_s=STEP_S)
        for one in (fleet, fleet.served_by(replace(SVALBARD, node=None)))
    )
    small = Node("small", 1, slowdown=1.0)
    computers = {"sat-0": small, "sat-1": small} if way == "satellite" else {}
    best = leo.plan_in_time(model, table, workload(count), **asked, computers=computers)
    assert best.way == "shared"
    assert best.beside is not None
    assert best.beside.way == way
    assert best.plan.workload.micro_batches + best.beside.plan.workload.micro_batches == count
    assert judged(fleet, best, asked, model) == pytest.approx(best.duration_s, abs=STEP_S)

    def part_s(number: int, where: leo.Timetable, computers: dict[str, Node]) -> float:
        part = {key: asked[key] * number / count for key in ("input_bytes", "output_bytes")}
        return leo.plan_in_time(model, where, workload(number), **{**asked, **part}, computers=computers).duration_s

    ends = [
        max(part_s(count - n, table, dict.fromkeys(fleet.names, small)), part_s(n, unserved, computers))
        for n in range(1, count)
    ]
    # On their own they use links and other satellites as if alone: sooner by what a pass of those differs.
    assert min(ends) - 1e-3 <= best.duration_s <= min(ends) + 45.0


def test_shares_are_the_best_of_all_even_where_results_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result waits for a pass and for the input to be sent: times rise and fall with the share more than once."""
    fleet, r, seen = train(), np.random.default_rng(7), []
    contact = first_contact(fleet, "sat-0")

    def compared(asked: Any, server: str, from_s: float, before_s: float, is_powered: Any) -> Any:
        found = shared(asked, server, from_s, before_s, is_powered)
        count, best = asked.workload.micro_batches, np.inf
        here = asked.carrier.carry(asked.source, asked.source, 0.0, from_s)
        for n in range(1, count):
            board = _part(asked, n)
            for down in (asked, replace(asked, carrier=asked.direct_carrier)):
                ground = on_ground(_part(down, count - n), server, from_s, before_s)
                if isinstance(ground, str):
                    continue
                how = {"before_s": before_s, "result_from_s": ground.input[-1].stop_s}
                other = (
                    on_satellite(board, board.source, from_s, **how)
                    if down is asked
                    else split_at(board, here, from_s, with_ground=False, **how)
                )
                if not isinstance(other, str):
                    best = min(best, max(ground.completion_s, other.completion_s))
        seen.append((np.inf if isinstance(found, str) else found.completion_s, best))
        return found

    monkeypatch.setattr("orbitsplit.leo._scheduling.plan_in_time.shared", compared)
    for _ in range(20):
        at = contact.start - timedelta(seconds=float(r.uniform(-350, 1500)))
        sizes = {"input_bytes": float(10 ** r.uniform(8.5, 9.4)), "output_bytes": float(10 ** r.uniform(7, 8.7))}
        model = profile(float(10 ** r.uniform(-1, 1.5)), 20_000_000 if r.random() < 0.5 else 150_000_000)
        leo.plan_in_time(model, fleet, workload(int(r.integers(30, 50))), requested=at, source="sat-2",
                         deadline_s=30_000.0, step_s=STEP_S, **sizes)  # fmt: skip
    assert sum(np.isfinite(best) for _, best in seen) >= 5
    for found, best in seen:
        assert found <= best + 1.0 or found == best


@pytest.mark.parametrize(
    ("changes", "batches", "reason"),
    [
        ({}, 1, "only several micro-batches of prefill can be shared"),
        ({"source": "svalbard"}, 24, "only where the input is on a satellite"),
        (
            {"computers": {"sat-2": Node("x", 1000**3, slowdown=4.0, half_duplex=True)}},
            24,
            "sat-2 cannot compute while",
        ),
        ({"shares": False}, 24, None),
    ],
)
def test_what_cannot_be_shared_is_not(changes: dict[str, Any], batches: int, reason: str | None) -> None:
    fleet = train()
    timed = leo.plan_in_time(profile(40.0), fleet, workload(batches), **{**case("shared", fleet)[1], **changes})
    assert timed.way != "shared"
    found = [other.reason for other in timed.alternatives if other.way == "shared with svalbard"]
    assert found == [] if reason is None else [reason in str(one) for one in found] == [True]


def test_what_is_left_goes_with_the_next_pass() -> None:
    fleet = train()
    model, asked = case("ground", fleet)
    timed = leo.plan_in_time(model, fleet, workload(300), **asked, shares=False)
    first, *_, last = timed.input
    assert timed.handovers[-1].next_start == last.start
    assert last.start > first.closes
    assert sum(transfer.bytes for transfer in timed.input if transfer.path[-1] == "svalbard") == pytest.approx(7e8)
    for handover in timed.handovers:
        assert 0 < handover.bytes_left <= 7e8


def test_a_split_plan_is_valid_while_its_links_are() -> None:
    fleet = train()
    model, asked = case("mixed", fleet)
    timed = leo.plan_in_time(model, fleet, workload(20), **asked, shares=False)
    sender = timed.plan.stages[-2].node
    begin = asked["requested"] - timedelta(minutes=5)
    contact = next(c for c in fleet.contacts(begin, begin + timedelta(minutes=25)) if c.satellite == sender)
    assert (contact.stop - timed.valid_until).total_seconds() == pytest.approx(1.0, abs=1e-3)
    assert timed.latest_start == timed.valid_until - (timed.compute_stop - timed.compute_start)


def test_an_empty_input_must_still_be_told_to_the_ground() -> None:
    fleet = train()
    asked = case("ground", fleet)[1] | {"computers": dict.fromkeys(fleet.names, Node("small", 1, slowdown=1.0))}
    none, byte = (leo.plan_in_time(profile(), fleet, workload(5), **{**asked, "input_bytes": x}) for x in (0.0, 1.0))
    assert none.way == byte.way == "ground"
    assert none.completion == byte.completion > asked["requested"] + timedelta(seconds=59)


def test_input_may_come_from_a_station() -> None:
    fleet = train().served_by(replace(SVALBARD, node=None))
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=100)
    asked = {"requested": at, "source": "svalbard", "input_bytes": 1e7, "output_bytes": 1e6, "deadline_s": 20_000.0}
    model = profile(0.1)
    timed = leo.plan_in_time(model, fleet, workload(10), **asked)
    assert timed.input[0].path[0] == timed.result[-1].path[-1] == "svalbard"
    assert judged(fleet, timed, asked, model) == pytest.approx(timed.duration_s, abs=STEP_S)
    served = train()
    timed = leo.plan_in_time(model, served, workload(10), **asked)
    assert timed.completion == at + timedelta(seconds=6)
    assert timed.reason == "svalbard computes, on the ground as the input"
    for wrong in ("teleport", ["ground"]):
        with pytest.raises(ValueError, match="must be one of ground, satellite, split, mixed, deferred, shared"):
            leo.TimedPlan.from_dict(timed.to_dict() | {"way": wrong})


def test_a_destination_is_kept_to() -> None:
    fleet = train().served_by(SVALBARD, MUNICH)
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=600)
    asked = {"requested": at, "source": "sat-0", "input_bytes": 1e6, "output_bytes": 1e4}
    anywhere, munich = (
        leo.plan_in_time(profile(), fleet, workload(1), destination=names, **asked) for names in (None, ["munich"])
    )
    assert munich.completion > anywhere.completion
    assert {t.path[-1] for t in (*munich.input, *munich.activation, *munich.result)} <= {"munich", *fleet.names}
    assert "svalbard" not in [stage.node for stage in munich.plan.stages]


def test_a_tie_goes_to_the_way_named_first() -> None:
    fleet = train(count=1)
    model, asked = case("satellite", train())
    asked["source"] = "sat-0"
    asked["input_bytes"] = 0.0
    timed = leo.plan_in_time(replace(model, layers=tuple(replace(x, prefill_s=0.0) for x in model.layers)), fleet,
                             workload(1), **{**asked, "output_bytes": 0.0})  # fmt: skip
    assert timed.way == "ground"


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "sat-9"}, "no satellite or station 'sat-9'; there are sat-0, sat-1, sat-2, svalbard"),
        ({"destination": ["rome"]}, "no station 'rome'; the stations are svalbard"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0, must be finite and > 0"),
        ({"step_s": 100.0}, "step_s is 100.0, must be from 0.1 to 60"),
        ({"input_bytes": -1.0}, "input_bytes is -1.0, must be finite and at least 0"),
        ({"computers": {"sat-7": Node("x", 1, slowdown=1.0)}}, "computers name 'sat-7'"),
        ({"power": {"svalbard": leo.Power(1, 0, 0, 1, 1)}}, "power names 'svalbard'"),
        ({"satellites": ["sat-1", "nobody"]}, "no satellite 'nobody'"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    fleet = train()
    asked = {"requested": fleet.epoch, "source": "sat-0", "input_bytes": 1.0, "output_bytes": 1.0, "deadline_s": 9000.0}
    with pytest.raises(ValueError, match=message):
        leo.plan_in_time(profile(), fleet, workload(1), **{**asked, **changes})


def test_a_deadline_too_soon_says_of_each_way_what_is_in_the_way() -> None:
    fleet = train()
    asked = {"source": "sat-0", "input_bytes": 1e9, "output_bytes": 1e4, "deadline_s": 1000.0}
    asked["requested"] = first_contact(fleet, "sat-0").stop + timedelta(seconds=60)
    with pytest.raises(
        osp.InfeasiblePlanError, match=r"no result in 1000 s\. ground, svalbard: the input is not on the"
    ):
        leo.plan_in_time(profile(), fleet, workload(1), **asked)


def test_a_request_outside_the_timetable_is_refused() -> None:
    fleet = train()
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=1))
    asked = {"requested": fleet.epoch + timedelta(days=1), "source": "sat-0", "input_bytes": 1, "output_bytes": 1}
    with pytest.raises(ValueError, match="the timetable is of 2026-01-01 00:00:00"):
        leo.plan_in_time(profile(), table, **asked)


def test_too_many_satellites_are_named_instead() -> None:
    shell = leo.walker_delta(70, 7, 1, altitude_km=550, inclination_deg=53,
                             equipment=leo.Equipment(Node("obc", 10**9, slowdown=1.0)), stations=(MUNICH,))  # fmt: skip
    with pytest.raises(ValueError, match="70 satellites are to be planned over time, at most 64 can"):
        leo.Timetable.of(shell, shell.epoch, shell.epoch + timedelta(hours=1))
