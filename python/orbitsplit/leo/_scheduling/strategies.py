"""The ways to do the work over time: each from an instant on, as early as it can be complete."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._errors import InfeasiblePlanError, OrbitsplitError
from orbitsplit._network.network import Network, Node
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem import ExternalLink
from orbitsplit._planner.tied_weights import solve_with_tied_weights
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.planning import PlanNames, build_problem, plan_of
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload

from .contact_plan import Timetable
from .energy import Load, loads_of
from .store_and_forward import Carriage, Carrier, Sending
from .timed_plan import TimedPlan, Transfer, Way

# A window of links shrinks the network, which lengthens the makespan, which widens the window: mostly twice.
_MOST_WINDOWS = 6
# A way, or another last node, must be sooner than those before it by more than light takes to neighbours, which chooses
# no paths either.
LEAST_S = 0.1
# Below the microsecond of a datetime.
_SAME_S = 1e-6


@dataclass(frozen=True)
class Asked:
    """What is to be done: by which model, for how many bytes in and out, from where to where, with which computers."""

    profile: ModelProfile
    workload: Workload
    table: Timetable
    computers: Mapping[str, Node]
    input_bytes: float
    output_bytes: float
    source: int
    destination: tuple[int, ...]
    carrier: Carrier
    levels: LevelTable | None = None
    codebook: Codebook | None = None
    loss_budget: float = 0.0
    max_accuracy_drop: float | None = None
    max_nodes: int | None = None
    time_limit_s: float | None = None
    alone: dict[str, Plan | str] = field(default_factory=dict)

    @property
    def ground(self) -> int:
        """Return the index of the ground among the places."""
        return self.carrier.ground

    @cached_property
    def direct_carrier(self) -> Carrier:
        """Return the carrier that takes no detour over other satellites."""
        return replace(self.carrier, relays=False)

    @cached_property
    def servers(self) -> tuple[str, ...]:
        """Return the stations of the destination that have a computer."""
        names = [self.table.stations[s].name for s in self.destination]
        return tuple(name for name in names if name in self.computers)

    def plan_alone(self, name: str) -> Plan | str:
        """Return the plan in which one node runs everything, or why there is none."""
        if name not in self.alone:
            network = Network(name, (replace(self.computers[name], name=name),))
            self.alone[name] = self.plan_on(network, name, [name])
        return self.alone[name]

    def plan_on(self, network: Network, first: str, lasts: Sequence[str]) -> Plan | str:
        """Return the quickest plan that begins on `first` and ends on one of `lasts`, or why there is none."""
        problem = build_problem(
            self.profile, network, self.workload, levels=self.levels, loss_budget=self.loss_budget, order="free"
        )
        names = [node.name for node in network.nodes]
        problem = replace(problem, ingress=_only(names, [first]), egress=_only(names, lasts))
        confirming, solution = solve_with_tied_weights(
            problem, self.profile.tied_bytes, max_nodes=self.max_nodes, time_limit_s=self.time_limit_s
        )
        named = PlanNames(network, self.workload, self.profile, "latency", self.codebook, self.max_accuracy_drop)
        try:
            return plan_of(confirming, solution, named)
        except (InfeasiblePlanError, OrbitsplitError) as error:
            return str(error)


@dataclass(frozen=True)
class Candidate:
    """One way to do it, in seconds since the timetable's start; `beside` is what runs at the same time, of the rest."""

    way: Way
    plan: Plan
    compute_s: tuple[float, float]
    completion_s: float
    valid_until_s: float
    input: tuple[Sending, ...] = ()
    activation: tuple[Sending, ...] = ()
    result: tuple[Sending, ...] = ()
    loads: tuple[Load, ...] = ()
    beside: Candidate | None = None

    @property
    def start_s(self) -> float:
        """Return when anything begins."""
        starts = [sending.start_s for sending in (*self.input, *self.activation, *self.result)]
        return min([self.compute_s[0], *starts, *([] if self.beside is None else [self.beside.start_s])])

    def all_loads(self) -> tuple[Load, ...]:
        """Return what every node does, sending included."""
        sent = [
            Load(name, sending.start_s, sending.stop_s, sending_s=sending.stop_s - sending.start_s)
            for sending in (*self.input, *self.activation, *self.result)
            for name in sending.path[:-1]
        ]
        return (*self.loads, *sent, *(() if self.beside is None else self.beside.all_loads()))


def on_ground(asked: Asked, server: str, from_s: float, before_s: float = math.inf) -> Candidate | str:
    """Bring the input to the ground, over as many passes as it takes; a station computes.

    It begins with a micro-batch as soon as that is there, and a workload that generates when all are.
    """
    plan = asked.plan_alone(server)
    if isinstance(plan, str):
        return plan
    carriage = asked.carrier.carry(asked.source, asked.ground, asked.input_bytes, from_s, before_s)
    if carriage is None:
        return _late("the input is not on the ground")
    if asked.workload.new_tokens > 0:
        begin_s, end_s = carriage.arrival_s, carriage.arrival_s + _seconds(plan)
    else:
        count = asked.workload.micro_batches
        begin_s, end_s = served(carriage, asked.input_bytes, _seconds(plan) / count, count)
    if end_s >= before_s:
        return _late(f"{server} has not computed it")
    # What computes as the input arrives needs the last path; what has it all needs none.
    is_fed = begin_s < carriage.arrival_s - _SAME_S
    valid_s = carriage.sendings[-1].closes_s if is_fed else asked.table.stop_s
    return Candidate("ground", plan, (begin_s, end_s), end_s, max(valid_s, end_s), input=carriage.sendings)


def on_satellite(
    asked: Asked, satellite: int, from_s: float, before_s: float = math.inf, *, result_from_s: float = 0.0
) -> Candidate | str:
    """Bring the input to one satellite, which computes; the result waits there for the next pass, or is handed on.

    It is not sent before `result_from_s`.
    """
    name = asked.table.satellites[satellite]
    plan = asked.plan_alone(name)
    if isinstance(plan, str):
        return plan
    carriage = asked.carrier.carry(asked.source, satellite, asked.input_bytes, from_s, before_s)
    if carriage is None:
        return _late(f"the input is not on {name}")
    at_s, until_s = carriage.arrival_s, asked.table.stop_s
    return _returned(asked, "satellite", plan, carriage, at_s, until_s, before_s=before_s, result_from_s=result_from_s)


def split_at(
    asked: Asked,
    carriage: Carriage,
    at_s: float,
    before_s: float = math.inf,
    *,
    with_ground: bool = True,
    looks_ahead: bool = True,
    result_from_s: float = 0.0,
) -> Candidate | str:
    """Start the quickest plan over several nodes at an instant, where the input is by then.

    Its links are there for the whole makespan, at their lowest rate in it. With `looks_ahead` it ends where the result
    is soonest on the ground, not where it is soonest complete.
    """
    found = _windowed(asked, carriage.place, at_s, None, with_ground=with_ground)
    if isinstance(found, str):
        return found
    best = _split_returned(asked, found, carriage, at_s, before_s, result_from_s)
    if not looks_ahead:
        return best
    makespan_s = _seconds(found)
    for last, name in enumerate(asked.table.satellites):
        limit_s = best.completion_s - LEAST_S if isinstance(best, Candidate) else before_s
        if name == found.stages[-1].node or name not in asked.computers or at_s + makespan_s >= limit_s:
            continue
        ready_s = max(at_s + makespan_s, result_from_s)
        back = asked.carrier.carry(last, asked.ground, asked.output_bytes, ready_s, limit_s)
        if back is None:
            continue
        other = _windowed(asked, carriage.place, at_s, name, with_ground=False)
        if isinstance(other, Plan):
            candidate = _split_returned(asked, other, carriage, at_s, limit_s, result_from_s)
            best = candidate if isinstance(candidate, Candidate) else best
    return best


def _split_returned(
    asked: Asked, plan: Plan, carriage: Carriage, at_s: float, before_s: float, result_from_s: float
) -> Candidate | str:
    if len(plan.stages) == 1:
        return "one node alone is quicker than any split"
    nodes = [stage.node for stage in plan.stages]
    until_s = asked.table.until_s(at_s, pairwise(nodes))
    way: Way = "mixed" if nodes[-1] in asked.servers else "split"
    return _returned(asked, way, plan, carriage, at_s, until_s, before_s=before_s, result_from_s=result_from_s)


def _returned(
    asked: Asked,
    way: Way,
    plan: Plan,
    carriage: Carriage,
    at_s: float,
    until_s: float,
    *,
    before_s: float,
    result_from_s: float,
) -> Candidate | str:
    """Return the candidate whose plan starts at an instant, with its result brought to the ground."""
    end_s = at_s + _seconds(plan)
    if end_s > asked.table.stop_s:
        return _late(f"{plan.stages[-1].node} has not computed it")
    last = plan.stages[-1].node
    place = asked.ground if last in asked.servers else asked.table.satellites.index(last)
    back = asked.carrier.carry(place, asked.ground, asked.output_bytes, max(end_s, result_from_s), before_s)
    if back is None:
        return _late(f"the result of {last} is not on the ground")
    return Candidate(
        way,
        plan,
        (at_s, end_s),
        back.arrival_s,
        until_s,
        input=carriage.sendings,
        result=back.sendings,
        loads=loads_of(plan, at_s),
    )


def _windowed(asked: Asked, first: str, at_s: float, last: str | None, *, with_ground: bool) -> Plan | str:
    """Return the quickest plan on links that last until it ends."""
    end_s = at_s
    for _ in range(_MOST_WINDOWS):
        if end_s > asked.table.stop_s:
            return _late("the plan has not ended")
        network = _one_way(asked, at_s, end_s, with_ground=with_ground)
        if not network.links:
            return "no link is there for the whole makespan"
        lasts = [node.name for node in network.nodes] if last is None else [last]
        plan = asked.plan_on(network, first, lasts)
        if isinstance(plan, str) or at_s + _seconds(plan) <= end_s + _SAME_S:
            return plan
        end_s = at_s + _seconds(plan)
    return "links change faster than a plan runs"


def _one_way(asked: Asked, at_s: float, end_s: float, *, with_ground: bool) -> Network:
    """Return the network of a span in which the ground sends nothing, so that a chain can only end there."""
    stations = asked.destination if with_ground else ()
    network = asked.table.network(at_s, end_s, asked.computers, stations)
    return replace(network, links=tuple(link for link in network.links if link.source not in asked.servers))


def served(carriage: Carriage, size: float, each_s: float, micro_batches: int) -> tuple[float, float]:
    """Return when a node that takes micro-batches as they arrive begins and ends; none has less than a byte."""
    size = max(size, 1.0)
    arrivals = [carriage.at_s(size * (k + 1) / micro_batches) for k in range(micro_batches)]
    end_s = arrivals[0]
    for arrival_s in arrivals:
        end_s = max(end_s, arrival_s) + each_s
    return arrivals[0], end_s


def _seconds(plan: Plan) -> float:
    assert plan.prediction is not None  # plans of a solver have one
    return plan.prediction.total_s


def _only(names: Sequence[str], allowed: Sequence[str]) -> ExternalLink:
    """Return a way in or out that takes no time, for some nodes alone."""
    rates = np.array([1.0 if name in allowed else 0.0 for name in names])
    return ExternalLink(bytes=0.0, bandwidth_bytes_per_s=rates, latency_s=np.zeros(len(names)))


def _late(fact: str) -> str:
    return f"{fact} before the deadline or before another way is complete"


def timed_plan(asked: Asked, begin_s: float, found: Candidate, reason: str) -> TimedPlan:
    """Return a candidate as a plan in time."""
    at = asked.table.datetime
    return TimedPlan(
        way=found.way,
        reason=reason,
        requested=at(begin_s),
        start=at(found.start_s),
        compute_start=at(found.compute_s[0]),
        compute_stop=at(found.compute_s[1]),
        completion=at(found.completion_s),
        valid_until=at(found.valid_until_s),
        plan=found.plan,
        input=_transfers(asked, found.input),
        activation=_transfers(asked, found.activation),
        result=_transfers(asked, found.result),
        beside=None if found.beside is None else timed_plan(asked, begin_s, found.beside, _computing(found.beside)),
    )


def _computing(found: Candidate) -> str:
    nodes = " and ".join(stage.node for stage in found.plan.stages)
    return f"{nodes}, {found.plan.workload.micro_batches} micro-batches"


def _transfers(asked: Asked, sendings: Sequence[Sending]) -> tuple[Transfer, ...]:
    at = asked.table.datetime
    return tuple(Transfer(s.path, at(s.start_s), at(s.stop_s), at(s.closes_s), s.bytes) for s in sendings)
