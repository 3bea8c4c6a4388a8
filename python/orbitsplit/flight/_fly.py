"""Fly a scenario: plan requests in time, and run the plans on emulated links and nodes by a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from orbitsplit._io.validation import check_boolean, check_number, quoted, tuple_of
from orbitsplit._models.source import open_model
from orbitsplit._network.network import Node
from orbitsplit._plans.flight_log import FlightLog, FlightPass
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.trace import Trace
from orbitsplit._profiling.measure import profile as measured_profile
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo import Power, Scenario, TimedPlan, Timetable, plan_requests
from orbitsplit.runtime import Pipeline

from ._clock import LEAST_SPEED, FlightClock, scaled_conditions, scaled_plan, too_fast
from ._contact_links import contact_links
from ._energy import energy_of
from ._execution import Execution, Progress
from ._file_links import FileLinks
from ._flight import Flight, FlightRequest, FlownRequest

# Real seconds of this machine for the switch of a migration, without keys and values (benches/studies/migrations.py).
_HANDOVER_S = 0.25

Report = Callable[[str, float], None]


def fly(
    scenario: Scenario | str | Path,
    model: str | Path,
    requests: Sequence[FlightRequest],
    *,
    new_tokens: int = 32,
    hours: float = 0.0,
    speed: float = 60.0,
    slower: float = 1.0,
    profile: ModelProfile | None = None,
    computers: Mapping[str, Node] | None = None,
    power: Power | Mapping[str, Power] | None = None,
    slack_s: float = 1.0,
    allow_lag: bool = False,
    progress: Report | None = None,
) -> Flight:
    """Run requests of a constellation on the runtime, by a clock that runs `speed` times faster than real time.

    Requests are planned by `leo.plan_requests`. Then the plans run on processes of this machine: links have the rates,
    outages and delays of the contact plan, nodes their slowdowns, both in the scale of the clock; files wait for their
    passes, and the pipeline is handed over to the plan of the next request as soon as its predecessor ends, or in the
    middle of a generation that is relayed.

    Args:
        scenario: Itself, its name, or its file.
        model: A directory, a hub id or a GGUF file.
        requests: The prompts, all of as many tokens; the flight begins with the first.
        new_tokens: Tokens that each request generates (greedily, without an early end).
        hours: The flight lasts at least so long, also if all requests are complete.
        speed: Seconds of the flight per second of this machine.
        slower: How many times slower than the scenario says all computers are. This machine can emulate a computer that
            is at least `speed` times slower than it.
        profile: The measured profile of the model for prompts of this length (default: it is measured).
        computers: Nodes of single satellites and stations, by name, in place of the scenario's; `slower` applies to
            them.
        power: As in `plan_in_time`.
        slack_s: As in `leo.plan_requests`.
        allow_lag: Fly also if this machine is too slow for the speed; the lag is in the result.
        progress: Called with a phase and a fraction.

    Example:
        >>> flight = fly("cubesat", "my-model", requests, speed=60, slower=100)          # doctest: +SKIP
        >>> flight.handovers, flight.largest_deviation                                  # doctest: +SKIP

    Raises:
        InfeasiblePlanError: A request cannot be completed in time.
        ValueError: This machine cannot emulate a computer at this speed, prompts differ in length, or an argument is
            out of range.
        TransportError: As `Pipeline`.
    """
    report: Report = progress or (lambda phase, fraction: None)
    requests = tuple_of("requests", requests, FlightRequest)
    _check(requests, speed, slower, hours)
    check_boolean("allow_lag", allow_lag)
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    path = open_model(model, progress=report)
    tokens = len(requests[0].input_ids)
    profile = profile or measured_profile(path, prompt_tokens=tokens, measure=True, progress=report)
    workload = Workload(prompt_tokens=tokens, new_tokens=new_tokens)
    contact_plan = contact_plan_of(loaded, requests)
    report("planning", 0.0)
    plans = plan_requests(
        profile,
        contact_plan,
        workload,
        [one.request for one in requests],
        slack_s=slack_s,
        computers=slower_computers(loaded, computers, slower),
        power=power,
        handover_s=_HANDOVER_S * speed,
    )
    problem = too_fast(_all_plans(plans), speed)
    if problem is not None and not allow_lag:
        raise ValueError(f"{problem}; allow_lag flies with the lag that follows")
    return _flown(loaded, path, contact_plan, requests, plans, hours, speed, power, problem, report)


def contact_plan_of(scenario: Scenario, requests: Sequence[FlightRequest]) -> Timetable:
    """Return the links of the scenario's chain (of all satellites without one) from the first request on."""
    first = min(one.request.requested for one in requests)
    last = max(one.request.requested + timedelta(seconds=one.request.deadline_s) for one in requests)
    return Timetable.of(scenario.constellation, first, last, satellites=scenario.chain or None)


def slower_computers(scenario: Scenario, computers: Mapping[str, Node] | None, slower: float) -> dict[str, Node]:
    """Return the computers of satellites and stations, each `slower` times slower."""
    network = scenario.network()
    nodes = {node.name: node for node in network.nodes}
    nodes |= {station.name: station.node for station in scenario.constellation.stations if station.node is not None}
    members = {*(scenario.chain or scenario.constellation.names), *(s.name for s in scenario.constellation.stations)}
    nodes = {name: node for name, node in nodes.items() if name in members} | dict(computers or {})
    return {name: _slower(node, slower) for name, node in nodes.items()}


def _slower(node: Node, times: float) -> Node:
    if node.slowdown is not None:
        return replace(node, slowdown=node.slowdown * times)
    assert node.flop_per_s is not None  # a node has one of the two speeds
    memory = node.memory_bytes_per_s
    return replace(
        node, flop_per_s=node.flop_per_s / times, memory_bytes_per_s=None if memory is None else memory / times
    )


def _check(requests: Sequence[FlightRequest], speed: float, slower: float, hours: float) -> None:
    if not requests:
        raise ValueError("requests is empty, at least one is needed")
    lengths = sorted({len(one.input_ids) for one in requests})
    if len(lengths) > 1:
        raise ValueError(
            f"prompts have {lengths[0]} to {lengths[-1]} tokens, all must have as many: plans count with it"
        )
    for name, value, least in (("speed", speed, LEAST_SPEED), ("slower", slower, 1.0), ("hours", hours, 0.0)):
        check_number(name, value)
        if not least <= value < float("inf"):
            raise ValueError(f"{name} is {value}, must be finite and at least {least:g}")


def _all_plans(plans: Iterable[TimedPlan]) -> list[Plan]:
    found = []
    for timed in plans:
        if timed.concurrent is not None or timed.strategy == "deferred":
            raise ValueError(f"a plan of the strategy {quoted(timed.strategy)} is of a prefill, and cannot be flown")
        found += [timed.plan] if timed.relay is None else [timed.plan, timed.relay.plan]
    return found


def _flown(
    scenario: Scenario,
    model: Path | str,
    contact_plan: Timetable,
    requests: Sequence[FlightRequest],
    plans: Sequence[TimedPlan],
    hours: float,
    speed: float,
    power: Power | Mapping[str, Power] | None,
    problem: str | None,
    report: Report,
) -> Flight:
    """Execute the plans, and compare."""
    stations = [station.name for station in contact_plan.stations]
    conditions = scaled_conditions(contact_links(contact_plan, stations), speed)
    first = min(plans, key=lambda timed: timed.compute_start).plan
    with Pipeline(scaled_plan(first, speed), model, conditions=conditions, progress=report) as pipe:
        clock = FlightClock(pipe.origin_s, speed)
        execution = Execution(pipe, clock, FileLinks(conditions, clock), contact_plan, requests, plans)
        found = execution.run(report)
        execution.wait_until(3600.0 * hours)
        seconds = time.monotonic() - clock.origin_s
    record = execution.record
    log = FlightLog(
        epoch=contact_plan.start.isoformat(),
        speed=speed,
        passes=_passes(contact_plan, seconds * speed),
        handovers=tuple(sorted(record.handovers)),
        transmissions=tuple(sorted(record.transmissions, key=lambda sent: sent.start_s)),
        tokens=tuple(sorted(record.tokens, key=lambda token: token.at_s)),
    )
    slowdowns = {stage.node: stage.slowdown / speed for plan in _all_plans(plans) for stage in plan.stages}
    trace = Trace(
        nodes=tuple(slowdowns),
        events=tuple(sorted(record.events, key=lambda event: event.start_s)),
        slowdowns=tuple(slowdowns.values()),
        flight=log,
    )
    energy_j, shortfall = energy_of(trace, contact_plan, plans, [one.compute_s for one in found], power)
    flown = [_request(contact_plan, *row) for row in zip(requests, plans, found, strict=True)]
    return Flight(scenario.name, speed, tuple(flown), trace, seconds, energy_j, shortfall, problem)


def _passes(contact_plan: Timetable, until_s: float) -> tuple[FlightPass, ...]:
    found = contact_plan.constellation.contacts(contact_plan.start, contact_plan.datetime(until_s))
    return tuple(
        FlightPass(one.satellite, one.station, contact_plan.seconds(one.start), contact_plan.seconds(one.stop))
        for one in found
        if one.satellite in contact_plan.satellites
    )


def _request(contact_plan: Timetable, requested: FlightRequest, timed: TimedPlan, found: Progress) -> FlownRequest:
    assert found.result is not None  # all were computed
    # A text that is generated at its station is complete with its last token.
    completion_s = found.result.result() if timed.result else found.compute_s[1]
    start, stop = (contact_plan.datetime(at_s) for at_s in found.compute_s)
    return FlownRequest(requested, timed, tuple(found.new_tokens), start, stop, contact_plan.datetime(completion_s))
