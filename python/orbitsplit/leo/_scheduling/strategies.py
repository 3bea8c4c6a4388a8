"""The strategies of a plan in time: each from an instant on, as early as it can complete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from orbitsplit._network.network import Network
from orbitsplit._plans.plan import Plan

from .energy import Load, loads_of
from .store_and_forward import Delivery, Transmission
from .task import Task
from .timed_plan import Relay, Strategy, TimedPlan, Transfer

# A window of links limits the network, which lengthens the makespan, which widens the window: mostly twice.
_MAX_WINDOWS = 6
# By how much a strategy, or another last node, must complete earlier than those before it: more than the propagation
# delay to neighbours, which does not choose paths either.
MIN_GAIN_S = 0.1
# Below the microsecond of a datetime.
_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Resumption:
    """Another plan that resumes a generation: it is handed over at `at_s`, and `plan` makes a token after `resume_s`.

    `tokens` of each sequence were generated until `at_s`.
    """

    plan: Plan
    at_s: float
    resume_s: float
    tokens: int


@dataclass(frozen=True)
class Candidate:
    """One strategy carried out; times are seconds since the start of the contact plan.

    `concurrent` is the part that runs on board at the same time, where micro-batches are shared. `resumption` takes
    over before the end of `compute_s`, where a generation is relayed.
    """

    strategy: Strategy
    plan: Plan
    compute_s: tuple[float, float]
    completion_s: float
    valid_until_s: float
    input: tuple[Transmission, ...] = ()
    activation: tuple[Transmission, ...] = ()
    result: tuple[Transmission, ...] = ()
    loads: tuple[Load, ...] = ()
    concurrent: Candidate | None = None
    resumption: Resumption | None = None

    @property
    def start_s(self) -> float:
        """Return when the first transmission or computation starts."""
        starts = [sent.start_s for sent in (*self.input, *self.activation, *self.result)]
        return min([self.compute_s[0], *starts, *([] if self.concurrent is None else [self.concurrent.start_s])])

    def all_loads(self) -> tuple[Load, ...]:
        """Return what every node computes and transmits."""
        transmitted = [
            Load(name, sent.start_s, sent.stop_s, transmit_s=sent.stop_s - sent.start_s)
            for sent in (*self.input, *self.activation, *self.result)
            for name in sent.path[:-1]
        ]
        return (*self.loads, *transmitted, *(() if self.concurrent is None else self.concurrent.all_loads()))


# A candidate, or why there is none.
Outcome: TypeAlias = Candidate | str


def on_ground(task: Task, server: str, from_s: float, before_s: float = math.inf) -> Outcome:
    """Send the input to the ground, over as many passes as it takes; a station computes.

    The station starts each micro-batch when its input has arrived; if the workload generates tokens, when all has.
    """
    plan = task.plan_on_node(server)
    if isinstance(plan, str):
        return plan
    delivery = task.graph.earliest_delivery(task.source, task.ground, task.input_bytes, from_s, before_s)
    if delivery is None:
        return _late("the input is not on the ground")
    if task.workload.new_tokens > 0:
        begin_s, end_s = delivery.arrival_s, delivery.arrival_s + makespan_s(plan)
    else:
        count = task.workload.micro_batches
        begin_s, end_s = streamed(delivery, task.input_bytes, makespan_s(plan) / count, count)
    if end_s >= before_s:
        return _late(f"{server} has not computed it")
    # A station that computes while the input arrives needs the last path; one that has all of it needs none.
    is_streaming = begin_s < delivery.arrival_s - _TOLERANCE_S
    valid_s = delivery.transmissions[-1].closes_s if is_streaming else task.contact_plan.stop_s
    return Candidate("ground", plan, (begin_s, end_s), end_s, max(valid_s, end_s), input=delivery.transmissions)


def on_satellite(
    task: Task, satellite: int, from_s: float, before_s: float = math.inf, *, result_from_s: float = 0.0
) -> Outcome:
    """Send the input to one satellite, which computes; the result waits for a pass, its own or another satellite's.

    The result is not sent before `result_from_s`.
    """
    name = task.contact_plan.satellites[satellite]
    plan = task.plan_on_node(name)
    if isinstance(plan, str):
        return plan
    delivery = task.graph.earliest_delivery(task.source, satellite, task.input_bytes, from_s, before_s)
    if delivery is None:
        return _late(f"the input is not on {name}")
    at_s, until_s = delivery.arrival_s, task.contact_plan.stop_s
    return _returned(task, "satellite", plan, delivery, at_s, until_s, before_s=before_s, result_from_s=result_from_s)


def split_at(
    task: Task,
    delivery: Delivery,
    at_s: float,
    before_s: float = math.inf,
    *,
    with_ground: bool = True,
    looks_ahead: bool = True,
    result_from_s: float = 0.0,
) -> Outcome:
    """Start the fastest plan over several nodes at an instant; `delivery` has brought the input by then.

    Its links are up for the whole makespan, and count at their lowest rate in it. With `looks_ahead`, the plan ends on
    the node from which the result reaches the ground first, else on the node that computes it first.
    """
    found = windowed(task, delivery.destination, at_s, None, with_ground=with_ground)
    if isinstance(found, str):
        return found
    best = _split_returned(task, found, delivery, at_s, before_s, result_from_s)
    if not looks_ahead:
        return best
    length_s = makespan_s(found)
    for last, name in enumerate(task.contact_plan.satellites):
        limit_s = best.completion_s - MIN_GAIN_S if isinstance(best, Candidate) else before_s
        if name == found.stages[-1].node or name not in task.computers or at_s + length_s >= limit_s:
            continue
        ready_s = max(at_s + length_s, result_from_s)
        back = task.graph.earliest_delivery(last, task.ground, task.output_bytes, ready_s, limit_s)
        if back is None:
            continue
        other = windowed(task, delivery.destination, at_s, name, with_ground=False)
        if isinstance(other, Plan):
            candidate = _split_returned(task, other, delivery, at_s, limit_s, result_from_s)
            best = candidate if isinstance(candidate, Candidate) else best
    return best


def _split_returned(
    task: Task, plan: Plan, delivery: Delivery, at_s: float, before_s: float, result_from_s: float
) -> Outcome:
    if len(plan.stages) == 1:
        return "one node alone is faster than any split"
    nodes = [stage.node for stage in plan.stages]
    until_s = task.contact_plan.until_s(at_s, pairwise(nodes))
    strategy: Strategy = "mixed" if nodes[-1] in task.servers else "split"
    return _returned(task, strategy, plan, delivery, at_s, until_s, before_s=before_s, result_from_s=result_from_s)


def _returned(
    task: Task,
    strategy: Strategy,
    plan: Plan,
    delivery: Delivery,
    at_s: float,
    until_s: float,
    *,
    before_s: float,
    result_from_s: float,
) -> Outcome:
    """Return the candidate whose plan starts at an instant and whose result is delivered to the ground."""
    end_s = at_s + makespan_s(plan)
    if end_s > task.contact_plan.stop_s:
        return _late(f"{plan.stages[-1].node} has not computed it")
    last = plan.stages[-1].node
    vertex = task.ground if last in task.servers else task.contact_plan.satellites.index(last)
    ready_s = max(end_s, result_from_s)
    back = task.graph.earliest_delivery(vertex, task.ground, task.output_bytes, ready_s, before_s)
    if back is None:
        return _late(f"the result of {last} is not on the ground")
    return Candidate(
        strategy,
        plan,
        (at_s, end_s),
        back.arrival_s,
        until_s,
        input=delivery.transmissions,
        result=back.transmissions,
        loads=loads_of(plan, at_s),
    )


def windowed(task: Task, first: str, at_s: float, last: str | None, *, with_ground: bool) -> Plan | str:
    """Return the fastest plan on links that last until it ends."""
    end_s = at_s
    for _ in range(_MAX_WINDOWS):
        if end_s > task.contact_plan.stop_s:
            return _late("the plan has not ended")
        network = _network_without_uplinks(task, at_s, end_s, with_ground=with_ground)
        if not network.links:
            return "no link lasts for the whole makespan"
        lasts = [node.name for node in network.nodes] if last is None else [last]
        plan = task.plan_on(network, first, lasts)
        if isinstance(plan, str) or at_s + makespan_s(plan) <= end_s + _TOLERANCE_S:
            return plan
        end_s = at_s + makespan_s(plan)
    return "links change faster than a plan runs"


def _network_without_uplinks(task: Task, at_s: float, end_s: float, *, with_ground: bool) -> Network:
    """Return the network of a span without uplinks, so that a chain of stages can only end on the ground."""
    stations = task.destination if with_ground else ()
    network = task.contact_plan.network(at_s, end_s, task.computers, stations)
    return replace(network, links=tuple(link for link in network.links if link.source not in task.servers))


def streamed(delivery: Delivery, size: float, each_s: float, micro_batches: int) -> tuple[float, float]:
    """Return when a node starts and ends that computes micro-batches as they arrive, each of at least a byte."""
    size = max(size, 1.0)
    arrivals = [delivery.arrival_of_s(size * (k + 1) / micro_batches) for k in range(micro_batches)]
    end_s = arrivals[0]
    for arrival_s in arrivals:
        end_s = max(end_s, arrival_s) + each_s
    return arrivals[0], end_s


def makespan_s(plan: Plan) -> float:
    """Return the predicted seconds of a plan."""
    assert plan.prediction is not None  # plans of a solver have one
    return plan.prediction.total_s


def _late(fact: str) -> str:
    return f"{fact} before the deadline or before another strategy completes"


def timed_plan(task: Task, begin_s: float, found: Candidate, reason: str) -> TimedPlan:
    """Return a candidate as a plan in time."""
    at, part, then = task.contact_plan.datetime, found.concurrent, found.resumption
    return TimedPlan(
        strategy=found.strategy,
        reason=reason,
        requested=at(begin_s),
        start=at(found.start_s),
        compute_start=at(found.compute_s[0]),
        compute_stop=at(found.compute_s[1]),
        completion=at(found.completion_s),
        valid_until=at(found.valid_until_s),
        plan=found.plan,
        input=_transfers(task, found.input),
        activation=_transfers(task, found.activation),
        result=_transfers(task, found.result),
        concurrent=None if part is None else timed_plan(task, begin_s, part, _describe(part)),
        relay=None if then is None else Relay(at(then.at_s), at(then.resume_s), then.tokens, then.plan),
    )


def _describe(part: Candidate) -> str:
    nodes = " and ".join(stage.node for stage in part.plan.stages)
    return f"{nodes}, {part.plan.workload.micro_batches} micro-batches"


def _transfers(task: Task, transmissions: Sequence[Transmission]) -> tuple[Transfer, ...]:
    at = task.contact_plan.datetime
    return tuple(Transfer(t.path, at(t.start_s), at(t.stop_s), at(t.closes_s), t.bytes) for t in transmissions)
