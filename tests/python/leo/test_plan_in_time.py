"""Planning in time: deliveries against exhaustive search, plans against an event simulation, what is refused."""

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
from orbitsplit.leo._scheduling.sharing import shared
from orbitsplit.leo._scheduling.store_and_forward import ContactGraph, Delivery
from orbitsplit.leo._scheduling.strategies import on_ground, on_satellite, split_at
from orbitsplit.leo._scheduling.task import Task
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
    # A timetable that starts during the contact knows when it began.
    for start in (contact.start - timedelta(minutes=3), contact.start + timedelta(seconds=20)):
        table = leo.Timetable.of(fleet, start, start + timedelta(minutes=20))
        first = float(table.edges_s[:-1][table.down_bytes_per_s[:, 0, 0] > 0].min())
        assert (table.datetime(first) - contact.start).total_seconds() == pytest.approx(60, abs=0.01)


# Deliveries


def random_table(r: np.random.Generator, cells: int, satellites: int) -> Any:
    """Return a timetable of random links that open and close, with what a contact graph needs."""
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


def exhaustive(
    table: Any, rates: list[np.ndarray], custodian: int, left: float, at: float, best: float, k: int
) -> float:
    """Return the earliest arrival on the ground: at every edge, stream or transfer custody of all that is left."""
    ground, edges = len(table.satellites), table.edges_s
    if k >= len(rates) or at >= best:
        return best
    rate = widest(rates[k], custodian, ground)
    if rate > 0 and at + left / rate <= edges[k + 1]:
        best = min(best, at + left / rate)
    else:
        best = exhaustive(table, rates, custodian, left - rate * (edges[k + 1] - at), edges[k + 1], best, k + 1)
    if at not in (0.0, edges[k]):
        return best  # received within a cell: the next custody transfer is at an edge
    for other in range(ground):
        moved, now, cell = 0.0, at, k
        while other != custodian and cell < len(rates):
            rate = widest(rates[cell], custodian, other)
            if rate > 0 and moved + rate * (edges[cell + 1] - now) >= left:
                arrives = now + (left - moved) / rate
                best = exhaustive(table, rates, other, left, arrives, best, cell)
                break
            moved, now, cell = moved + rate * (edges[cell + 1] - now), edges[cell + 1], cell + 1
    return best


def test_deliveries_are_the_earliest_of_their_kind() -> None:
    r = np.random.default_rng(3)
    found = transferred = 0
    for _ in range(60):
        table = random_table(r, 7, 3)
        graph = ContactGraph(table, (), (0,))
        size = float(r.uniform(2, 12))
        delivery = graph.earliest_delivery(0, graph.ground, size, 0.0)
        rates = [np.zeros((4, 4)) for _ in range(7)]
        for k, matrix in enumerate(rates):
            matrix[:3, :3] = table.isl_bytes_per_s[k]
            matrix[:3, 3] = table.down_bytes_per_s[k, :, 0]
        best = exhaustive(table, rates, 0, size, 0.0, 1e9, 0)
        assert (delivery is None) == (best == 1e9)
        if delivery is not None:
            found += 1
            transferred += any(sent.path[-1] != "svalbard" for sent in delivery.transmissions)
            assert delivery.arrival_s == pytest.approx(best)
            keeps_to_its_links(delivery, table, size)
    assert found > 30
    assert transferred > 5


def keeps_to_its_links(delivery: Delivery, table: Any, size: float) -> None:
    """Fail unless no transmission exceeds its links in its span, and all bytes arrive."""
    for sent in delivery.transmissions:
        part = table.cells(sent.start_s, sent.stop_s)
        dt = np.minimum(table.edges_s[1:], sent.stop_s) - np.maximum(table.edges_s[:-1], sent.start_s)
        rates = np.stack([table.rate_bytes_per_s(a, b) for a, b in itertools.pairwise(sent.path)]).min(axis=0)
        assert sent.bytes <= float((rates * dt)[part].sum()) * (1 + 1e-9)
        assert sent.stop_s <= sent.closes_s + 1e-9
    down = [sent for sent in delivery.transmissions if sent.path[-1] == "svalbard"]
    assert sum(sent.bytes for sent in down) == pytest.approx(size)
    assert delivery.arrival_of_s(size) == pytest.approx(delivery.arrival_s)
    assert delivery.arrival_of_s(size / 2) <= delivery.arrival_of_s(size)


def test_a_better_link_never_delays_a_file() -> None:
    r = np.random.default_rng(5)
    for _ in range(40):
        table = random_table(r, 8, 3)
        cell, better = int(r.integers(8)), table.down_bytes_per_s.copy()
        better[cell, int(r.integers(3)), 0] += 2
        wide = replace(table, down_bytes_per_s=better)
        before, after = (ContactGraph(t, (), (0,)).earliest_delivery(0, 3, 6.0, 0.0) for t in (table, wide))
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
    request = {"requested": at, "source": "sat-2", "deadline_s": 30_000.0, "step_s": STEP_S}
    return model, request | {key: given[key] for key in ("input_bytes", "output_bytes")}


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_what_the_event_simulation_finds(name: str) -> None:
    fleet = fleet_of(name)
    model, request = case(name, fleet)
    timed = leo.plan_in_time(model, fleet, workload(CASES[name]["count"]), **request, shares=name == "shared")
    if name != "large result":
        assert timed.strategy == name
    else:
        assert timed.result[-1].path[-1] == "svalbard"
        assert timed.handovers
    assert judged(fleet, timed, request, model) == pytest.approx(timed.duration_s, abs=STEP_S)
    assert timed.start >= timed.requested
    assert timed.compute_start <= timed.latest_start
    assert timed.compute_stop <= timed.completion
    for transfer in (*timed.input, *timed.activation, *timed.result):
        assert transfer.start < transfer.stop <= transfer.closes
    for other in timed.alternatives:
        assert other.completion is None or other.completion >= timed.completion - timedelta(seconds=0.1)
        assert (other.completion is None) == (other.reason is not None)
    assert leo.TimedPlan.from_dict(json.loads(json.dumps(timed.to_dict()))) == timed
    assert str(timed).startswith(timed.strategy)


@pytest.mark.parametrize("name", ["ground", "satellite", "deferred"])
def test_rates_by_range_are_integrated(name: str) -> None:
    fleet = train(by_range)
    model, request = case(name, fleet)
    timed = leo.plan_in_time(model, fleet, workload(CASES[name]["count"]), **request)
    executed = judged(fleet, timed, request, model, down=lambda km: float(by_range(km)))
    assert executed == pytest.approx(timed.duration_s, abs=STEP_S)


def test_planning_is_never_later_than_starting_now_or_waiting() -> None:
    fleet = train()
    r = np.random.default_rng(0)
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=20), step_s=STEP_S)
    model, earlier = profile(0.5), 0
    for at in r.uniform(0, 36_000, 6):
        request = {"source": "sat-2", "input_bytes": 6e8, "output_bytes": 1e4}
        request["requested"] = fleet.epoch + timedelta(seconds=float(at))
        timed = leo.plan_in_time(model, table, workload(150), **request)
        assert judged(fleet, timed, request, model) == pytest.approx(timed.duration_s, abs=STEP_S)
        for baseline in (leo.start_now, leo.wait_for_pass):
            other = baseline(model, table, workload(150), **request)
            assert judged(fleet, other, request, model) == pytest.approx(other.duration_s, abs=STEP_S)
            # A tenth of a second chooses no strategy, and propagation delay no path.
            assert timed.completion <= other.completion + timedelta(milliseconds=150)
            earlier += timed.completion < other.completion
    assert earlier >= 6


@pytest.mark.parametrize("strategy", ["satellite", "split"])
def test_micro_batches_are_shared_as_two_plans_of_their_own_would_be(strategy: str) -> None:
    """Of every share: the ground's part where no satellite can compute, the board's where no station can."""
    fleet = train()
    request = case("shared", fleet)[1] | {"output_bytes": 1e6}
    model, begin, count = (
        profile(40.0, 20_000_000 if strategy == "satellite" else 150_000_000),
        request["requested"],
        24,
    )
    stop = begin + timedelta(seconds=request["deadline_s"])
    table, unserved = (
        leo.Timetable.of(one, begin, stop, step_s=STEP_S)
        for one in (fleet, fleet.served_by(replace(SVALBARD, node=None)))
    )
    small = Node("small", 1, slowdown=1.0)
    computers = {"sat-0": small, "sat-1": small} if strategy == "satellite" else {}
    best = leo.plan_in_time(model, table, workload(count), **request, computers=computers)
    assert best.strategy == "shared"
    assert best.concurrent is not None
    assert best.concurrent.strategy == strategy
    assert best.plan.workload.micro_batches + best.concurrent.plan.workload.micro_batches == count
    assert judged(fleet, best, request, model) == pytest.approx(best.duration_s, abs=STEP_S)

    def part_s(number: int, where: leo.Timetable, computers: dict[str, Node]) -> float:
        part = {key: request[key] * number / count for key in ("input_bytes", "output_bytes")}
        return leo.plan_in_time(model, where, workload(number), **{**request, **part}, computers=computers).duration_s

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

    def compared(task: Any, server: str, from_s: float, before_s: float, is_powered: Any) -> Any:
        found = shared(task, server, from_s, before_s, is_powered)
        count, best = task.workload.micro_batches, np.inf
        here = task.graph.earliest_delivery(task.source, task.source, 0.0, from_s)
        for n in range(1, count):
            board = task.part(n)
            for down in (task, task.without_isl):
                ground = on_ground(down.part(count - n), server, from_s, before_s)
                if isinstance(ground, str):
                    continue
                how = {"before_s": before_s, "result_from_s": ground.input[-1].stop_s}
                other = (
                    on_satellite(board, board.source, from_s, **how)
                    if down is task
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


def test_sharing_plans_each_node_once_for_a_number_of_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every share solved the plans of its single nodes again, for both searches."""
    solved: list[tuple[str, int]] = []
    plan_on = Task.plan_on

    def counted(task: Task, network: osp.Network, first: str, lasts: Any) -> Any:
        if len(network.nodes) == 1:
            solved.append((network.nodes[0].name, task.workload.micro_batches))
        return plan_on(task, network, first, lasts)

    monkeypatch.setattr(Task, "plan_on", counted)
    fleet = train()
    model, request = case("shared", fleet)
    assert leo.plan_in_time(model, fleet, workload(300), **request).strategy == "shared"
    assert len(solved) > 50
    assert len(solved) == len(set(solved))


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
    assert timed.strategy != "shared"
    found = [other.reason for other in timed.alternatives if other.strategy == "shared with svalbard"]
    assert found == [] if reason is None else [reason in str(one) for one in found] == [True]


def test_what_is_left_goes_with_the_next_pass() -> None:
    fleet = train()
    model, request = case("ground", fleet)
    timed = leo.plan_in_time(model, fleet, workload(300), **request, shares=False)
    first, *_, last = timed.input
    assert timed.handovers[-1].next_start == last.start
    assert last.start > first.closes
    assert sum(transfer.bytes for transfer in timed.input if transfer.path[-1] == "svalbard") == pytest.approx(7e8)
    for handover in timed.handovers:
        assert 0 < handover.bytes_left <= 7e8


def test_a_split_plan_is_valid_while_its_links_are() -> None:
    fleet = train()
    model, request = case("mixed", fleet)
    timed = leo.plan_in_time(model, fleet, workload(20), **request, shares=False)
    sender = timed.plan.stages[-2].node
    begin = request["requested"] - timedelta(minutes=5)
    contact = next(c for c in fleet.contacts(begin, begin + timedelta(minutes=25)) if c.satellite == sender)
    assert (contact.stop - timed.valid_until).total_seconds() == pytest.approx(1.0, abs=1e-3)
    assert timed.latest_start == timed.valid_until - (timed.compute_stop - timed.compute_start)


def test_an_empty_input_must_still_be_sent_to_the_ground() -> None:
    fleet = train()
    request = case("ground", fleet)[1] | {"computers": dict.fromkeys(fleet.names, Node("small", 1, slowdown=1.0))}
    none, byte = (leo.plan_in_time(profile(), fleet, workload(5), **{**request, "input_bytes": x}) for x in (0.0, 1.0))
    assert none.strategy == byte.strategy == "ground"
    assert none.completion == byte.completion > request["requested"] + timedelta(seconds=59)


def test_input_may_come_from_a_station() -> None:
    fleet = train().served_by(replace(SVALBARD, node=None))
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=100)
    request = {"requested": at, "source": "svalbard", "input_bytes": 1e7, "output_bytes": 1e6, "deadline_s": 20_000.0}
    model = profile(0.1)
    timed = leo.plan_in_time(model, fleet, workload(10), **request)
    assert timed.input[0].path[0] == timed.result[-1].path[-1] == "svalbard"
    assert judged(fleet, timed, request, model) == pytest.approx(timed.duration_s, abs=STEP_S)
    served = train()
    timed = leo.plan_in_time(model, served, workload(10), **request)
    assert timed.completion == at + timedelta(seconds=6)
    assert timed.reason == "svalbard computes, on the ground as the input"
    for wrong in ("teleport", ["ground"]):
        with pytest.raises(ValueError, match="must be one of ground, satellite, split, mixed, deferred, shared"):
            leo.TimedPlan.from_dict(timed.to_dict() | {"strategy": wrong})


def test_a_destination_is_kept_to() -> None:
    fleet = train().served_by(SVALBARD, MUNICH)
    at = first_contact(fleet, "sat-0").start - timedelta(seconds=600)
    request = {"requested": at, "source": "sat-0", "input_bytes": 1e6, "output_bytes": 1e4}
    anywhere, munich = (
        leo.plan_in_time(profile(), fleet, workload(1), destination=names, **request) for names in (None, ["munich"])
    )
    assert munich.completion > anywhere.completion
    assert {t.path[-1] for t in (*munich.input, *munich.activation, *munich.result)} <= {"munich", *fleet.names}
    assert "svalbard" not in [stage.node for stage in munich.plan.stages]


def test_a_tie_goes_to_the_strategy_named_first() -> None:
    fleet = train(count=1)
    model, request = case("satellite", train())
    request["source"] = "sat-0"
    request["input_bytes"] = 0.0
    timed = leo.plan_in_time(replace(model, layers=tuple(replace(x, prefill_s=0.0) for x in model.layers)), fleet,
                             workload(1), **{**request, "output_bytes": 0.0})  # fmt: skip
    assert timed.strategy == "ground"


# Names of version 0.1


def test_old_names_of_a_plan_in_time_warn_and_old_files_are_read() -> None:
    fleet = train()
    model, request = case("shared", fleet)
    timed = leo.plan_in_time(model, fleet, workload(300), **request)
    assert timed.concurrent is not None
    with pytest.warns(DeprecationWarning, match="TimedPlan.way is now TimedPlan.strategy"):
        assert timed.way == "shared"
    with pytest.warns(DeprecationWarning, match="TimedPlan.beside is now TimedPlan.concurrent"):
        assert timed.beside is timed.concurrent
    with pytest.warns(DeprecationWarning, match="Alternative.way is now Alternative.strategy"):
        assert timed.alternatives[0].way == timed.alternatives[0].strategy
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=1))
    old: Any = {"target": "svalbard"}
    with pytest.warns(DeprecationWarning, match=r"rate_bytes_per_s\(target=\) is now"):
        rates = table.rate_bytes_per_s("sat-0", **old)
    assert np.array_equal(rates, table.rate_bytes_per_s("sat-0", destination="svalbard"))

    def as_written_before(document: dict[str, Any]) -> dict[str, Any]:
        old = {"strategy": "way", "concurrent": "beside"}
        return {old.get(key, key): value for key, value in document.items()}

    document = as_written_before(timed.to_dict())
    document["beside"] = as_written_before(document["beside"])
    document["alternatives"] = [as_written_before(row) for row in document["alternatives"]]
    assert leo.TimedPlan.from_dict(document) == timed
    with pytest.raises(ValueError, match='unknown key "way"'):
        leo.TimedPlan.from_dict(timed.to_dict() | {"way": "shared"})


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
    request = {
        "requested": fleet.epoch,
        "source": "sat-0",
        "input_bytes": 1.0,
        "output_bytes": 1.0,
        "deadline_s": 9000.0,
    }
    with pytest.raises(ValueError, match=message):
        leo.plan_in_time(profile(), fleet, workload(1), **{**request, **changes})


def test_a_deadline_too_soon_gives_the_reason_for_each_strategy() -> None:
    fleet = train()
    request = {"source": "sat-0", "input_bytes": 1e9, "output_bytes": 1e4, "deadline_s": 1000.0}
    request["requested"] = first_contact(fleet, "sat-0").stop + timedelta(seconds=60)
    with pytest.raises(
        osp.InfeasiblePlanError, match=r"no result in 1000 s\. ground, svalbard: the input is not on the"
    ):
        leo.plan_in_time(profile(), fleet, workload(1), **request)


def test_a_request_outside_the_timetable_is_refused() -> None:
    fleet = train()
    table = leo.Timetable.of(fleet, fleet.epoch, fleet.epoch + timedelta(hours=1))
    request = {"requested": fleet.epoch + timedelta(days=1), "source": "sat-0", "input_bytes": 1, "output_bytes": 1}
    with pytest.raises(ValueError, match="the timetable covers 2026-01-01 00:00:00"):
        leo.plan_in_time(profile(), table, **request)


def test_too_many_satellites_are_named_instead() -> None:
    shell = leo.walker_delta(70, 7, 1, altitude_km=550, inclination_deg=53,
                             equipment=leo.Equipment(Node("obc", 10**9, slowdown=1.0)), stations=(MUNICH,))  # fmt: skip
    with pytest.raises(ValueError, match="a timetable has at most 64 satellites, 70 are given"):
        leo.Timetable.of(shell, shell.epoch, shell.epoch + timedelta(hours=1))
