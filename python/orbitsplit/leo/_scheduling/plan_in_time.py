"""Planning in time: when to start, on which nodes, whether to wait for a pass, what is left for the next one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.units import format_bytes
from orbitsplit._network.network import Node
from orbitsplit._plans.planning import levels_and_budget
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.times import Times

from .contact_plan import Timetable
from .deferred import deferred
from .energy import Ledger, Load, Power, powers_of
from .relayed import relayed
from .request import StrategyOptions, TimedRequest
from .sharing import shared
from .store_and_forward import Delivery
from .strategies import MIN_GAIN_S, Candidate, Outcome, on_ground, on_satellite, split_at, timed_plan
from .task import Task, contact_plan_of, task_of
from .timed_plan import Alternative, TimedPlan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from orbitsplit._profiling.profile import ModelProfile

    from .request import PlanKeywords

# Two concurrent plans must gain more than these seconds.
_MIN_SHARED_GAIN_S = 1.0
# How long a node whose battery is too low waits before it is checked again.
_RECHARGE_S = 120.0

# What a strategy leads to, from (start, limit of the completion); and from the limit alone.
_Strategy = Callable[[float, float], Outcome]
_Evaluation = Callable[[float], Outcome]


def plan_in_time(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    request: TimedRequest | None = None,
    *,
    options: StrategyOptions | None = None,
    satellites: Sequence[str] | None = None,
    computers: Mapping[str, Node] | None = None,
    power: Power | Mapping[str, Power] | None = None,
    step_s: float = 10.0,
    **fields: Unpack[PlanKeywords],
) -> TimedPlan:
    """Decide when and where to run, and how input and result travel, so that the result reaches a station first.

    The strategies that are compared:

    - `ground`: the input goes down, over as many passes as it takes, and a station computes;
    - `satellite`: one satellite computes, and the result waits for a pass;
    - `split`: several satellites compute by a plan whose links last until it ends, and the result waits for a pass;
    - `mixed`: satellites and a station compute together within a contact;
    - `deferred`: a satellite computes the first layers now, and their activation waits for a pass;
    - `shared`: satellites compute some micro-batches while the input of the others goes down;
    - `relayed`: satellites generate the first tokens, and a station the others as soon as a pass begins.

    Files are transferred to other satellites where that is faster; stations forward files among themselves in
    negligible time. Of completions within 0.1 s the strategy named first is taken, then the satellite with the input,
    then nodes in order.

    Args:
        request: The input, and where and by when its result is needed. Its fields are also accepted as keywords.
        options: Compression, and limits of the search. Its fields are also accepted as keywords.
        satellites: Names of those that may take part (default: all, at most 64).
        computers: Nodes of single satellites and stations, by name, in place of the constellation's.
        power: Limits of what satellites consume, for all of them or by name. What exceeds them starts later, when the
            battery is charged, or is refused.
        step_s: Links are sampled this often in a contact, and at its edges. To plan several times on the same links,
            pass a `Timetable` in place of the constellation.

    Example:
        >>> fleet = Scenario.load("cubesat").constellation                                        # doctest: +SKIP
        >>> request = TimedRequest(requested=fleet.epoch, source="sat-3", input_bytes=2e8, output_bytes=1e4)
        ...                                                                                       # doctest: +SKIP
        >>> timed = plan_in_time(profile, fleet, request=request)                                 # doctest: +SKIP

    Raises:
        InfeasiblePlanError: No strategy completes in time; the message gives the reason for each.
        TypeError: An argument is of another type, such as a Scenario in place of its constellation.
        ValueError: There is no such satellite or station, a number is out of range, or as `plan`.
    """
    keywords: dict[str, Any] = {**fields}
    request = take_options("plan_in_time", "request", TimedRequest, request, keywords)
    options = take_options("plan_in_time", "options", StrategyOptions, options, keywords)
    refuse_keywords("plan_in_time", keywords)
    options = options_of(profile, options)
    contact_plan = contact_plan_of(constellation, request, step_s, satellites)
    begin_s = contact_plan.seconds(request.requested)
    task = task_of(profile, workload, contact_plan, request, computers, options)
    powers = powers_of(power, contact_plan.satellites)
    ledger = Ledger(contact_plan.constellation, Times.of(contact_plan.start), begin_s, contact_plan.stop_s, powers)
    return Search(task, ledger, begin_s, min(begin_s + request.deadline_s, contact_plan.stop_s)).plan()


def options_of(profile: ModelProfile, options: StrategyOptions) -> StrategyOptions:
    """Return the options with the levels and the loss budget that follow from its codebook."""
    levels, budget = levels_and_budget(
        profile, options.levels, options.codebook, options.loss_budget, options.max_accuracy_drop
    )
    return replace(options, levels=levels, loss_budget=budget)


@dataclass(frozen=True)
class Search:
    """Evaluates every strategy between two instants, and keeps the candidate that completes first.

    `spent` is what satellites consume for other requests.
    """

    task: Task
    ledger: Ledger
    begin_s: float
    end_s: float
    spent: tuple[Load, ...] = ()

    def plan(self) -> TimedPlan:
        """Return the plan that completes first; raise if none completes in time."""
        best: Candidate | None = None
        outcomes: list[tuple[str, Outcome]] = []
        for name, evaluate in itertools.chain(self._on_one_node(), self._on_several_nodes()):
            before_s = self.end_s if best is None else best.completion_s - MIN_GAIN_S
            found = evaluate(before_s)
            outcomes.append((name, found))
            if isinstance(found, Candidate) and found.completion_s < before_s:
                best = found
        alternatives = _alternatives(self.task, outcomes, best)
        if best is None:
            raise self._nothing(alternatives)
        return replace(self.timed(best), alternatives=alternatives)

    def candidates(self) -> list[Candidate]:
        """Return the candidate of every strategy that completes in time; raise if none does."""
        outcomes = [
            (name, evaluate(self.end_s))
            for name, evaluate in itertools.chain(self._on_one_node(), self._on_several_nodes())
        ]
        found = [outcome for _, outcome in outcomes if isinstance(outcome, Candidate)]
        if not found:
            raise self._nothing(_alternatives(self.task, outcomes, None))
        return found

    def timed(self, found: Candidate) -> TimedPlan:
        """Return a candidate as a plan in time, without alternatives."""
        made = timed_plan(self.task, self.begin_s, found, _reason(self.task, found))
        return replace(made, energy_j=self.ledger.joules(found.all_loads()))

    def _nothing(self, alternatives: Sequence[Alternative]) -> InfeasiblePlanError:
        reasons = "; ".join(f"{other.strategy}: {other.reason}" for other in alternatives)
        return InfeasiblePlanError(f"no result in {self.end_s - self.begin_s:g} s. {reasons}")

    def _on_one_node(self) -> Iterator[tuple[str, _Evaluation]]:
        """Yield the strategies on one node; their completions are found even if another one is earlier."""
        task = self.task
        for server in task.servers:
            yield f"ground, {server}", self._within_power(partial(self._ground, server))
        # The source first: of equally good candidates the first is taken.
        for k in sorted(range(len(task.contact_plan.satellites)), key=lambda k: k != task.source):
            name = task.contact_plan.satellites[k]
            if name in task.computers:
                yield f"satellite, {name}", self._within_power(partial(self._satellite, k))

    def _on_several_nodes(self) -> Iterator[tuple[str, _Evaluation]]:
        """Yield the strategies on several nodes, which are evaluated only as far as they may be earlier."""
        task = self.task
        for k, name in enumerate(task.contact_plan.satellites):
            if name in task.computers:
                yield f"several, from {name}", partial(self._split, k)
        for server in task.servers:
            yield f"deferred to {server}", self._within_power(partial(deferred, task, server))
        for server in task.servers if task.options.shares else ():
            yield f"shared with {server}", self._within_power(partial(self._shared, server))
        if task.workload.new_tokens > 1:
            for (k, name), server in itertools.product(enumerate(task.contact_plan.satellites), task.servers):
                if name in task.computers:
                    yield f"relayed from {name} to {server}", self._within_power(partial(relayed, task, k, server))

    def _ground(self, server: str, at_s: float, _before_s: float) -> Outcome:
        return on_ground(self.task, server, at_s, self.end_s)

    def _satellite(self, satellite: int, at_s: float, _before_s: float) -> Outcome:
        return on_satellite(self.task, satellite, at_s, self.end_s)

    def _shared(self, server: str, at_s: float, before_s: float) -> Outcome:
        """Return the best share of board and ground, if it gains enough over another strategy."""
        limit_s = before_s - _MIN_SHARED_GAIN_S if before_s < self.end_s else before_s
        return shared(self.task, server, at_s, limit_s, self._is_powered)

    def _is_powered(self, found: Candidate) -> bool:
        return self.ledger.shortfall((*self.spent, *found.all_loads())) is None

    def _split(self, first: int, before_s: float) -> Outcome:
        """Return the plan over several nodes from a satellite on that completes first, over all starts.

        Starts are when the input has arrived, and whenever a link opens or closes after that.
        """
        task = self.task
        delivery = task.graph.earliest_delivery(task.source, first, task.input_bytes, self.begin_s, before_s)
        if delivery is None:
            return "the input does not arrive before another strategy completes"
        best: Outcome = "none completes before another strategy"
        for at_s in (delivery.arrival_s, *task.contact_plan.changes_s(delivery.arrival_s, task.destination)):
            if at_s >= before_s:
                break
            found = self._within_power(partial(self._split_at, delivery), at_s)(before_s)
            if isinstance(found, Candidate) and found.completion_s < before_s:
                best, before_s = found, found.completion_s - MIN_GAIN_S
            elif isinstance(best, str) and isinstance(found, str):
                best = found
        return best

    def _split_at(self, delivery: Delivery, at_s: float, before_s: float) -> Outcome:
        return split_at(self.task, delivery, at_s, before_s)

    def _within_power(self, strategy: _Strategy, from_s: float | None = None) -> _Evaluation:
        """Return the evaluation of a strategy that starts as soon as the satellites have the energy for it."""

        def evaluate(before_s: float) -> Outcome:
            at_s = first_s = self.begin_s if from_s is None else from_s
            reason: str | None = None
            while at_s <= first_s + 2 * self.ledger.longest_orbit_s and at_s < self.end_s:
                found = strategy(at_s, before_s)
                if isinstance(found, str):
                    return found if reason is None else reason
                shortfall = self.ledger.shortfall((*self.spent, *found.all_loads()))
                if shortfall is None:
                    return found
                reason = shortfall.text if reason is None else reason
                if not shortfall.can_wait:
                    return shortfall.text
                at_s += _RECHARGE_S
            return reason or "it cannot start before the deadline"

        return evaluate


def _reason(task: Task, best: Candidate) -> str:
    nodes = " and ".join(stage.node for stage in best.plan.stages)
    if best.strategy == "ground" and not best.input:
        return f"{nodes} computes, on the ground as the input"
    if best.strategy == "ground":
        count = len({sent.closes_s for sent in best.input if sent.path[-1] not in task.contact_plan.satellites})
        contacts = "1 contact" if count == 1 else f"{count} contacts"
        return f"{format_bytes(task.input_bytes)} of input go down in {contacts}, {nodes} computes"
    if best.strategy == "satellite":
        return f"{nodes} computes, the result waits for a pass"
    if best.strategy == "split":
        return f"{nodes} compute together, the result waits for a pass"
    if best.strategy == "shared":
        assert best.concurrent is not None  # the part on board
        own, others = best.plan.workload.micro_batches, best.concurrent.plan.workload.micro_batches
        on_board = " and ".join(stage.node for stage in best.concurrent.plan.stages)
        return f"{nodes} computes {own} micro-batches of which the input goes down, {on_board} the other {others}"
    if best.strategy == "mixed":
        return f"{nodes} compute together within a contact"
    if best.resumption is not None:
        station = " and ".join(stage.node for stage in best.resumption.plan.stages)
        return f"{nodes} generates {best.resumption.tokens} tokens until a pass, {station} the others"
    stored = sum(sent.bytes for sent in best.activation if sent.path[-1] not in task.contact_plan.satellites)
    return f"{nodes}: the activation, {format_bytes(stored)}, waits between them for a pass"


def _alternatives(
    task: Task, outcomes: Sequence[tuple[str, Outcome]], best: Candidate | None
) -> tuple[Alternative, ...]:
    return tuple(
        Alternative(name, None, found)
        if isinstance(found, str)
        else Alternative(name, task.contact_plan.datetime(found.completion_s))
        for name, found in outcomes
        if found is not best
    )
