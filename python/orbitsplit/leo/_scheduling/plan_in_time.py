"""Planning in time: when to start, on which satellites, whether to wait for a pass, what is handed over to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.units import format_bytes
from orbitsplit._network.network import Node
from orbitsplit._plans.planning import levels_and_budget
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.times import Times

from .contact_plan import Timetable
from .deferred import deferred
from .energy import Ledger, Power
from .request import asked_of, powers_of, table_of
from .sharing import shared
from .strategies import LEAST_S, Asked, Candidate, on_ground, on_satellite, split_at, timed_plan
from .timed_plan import Alternative, TimedPlan

if TYPE_CHECKING:
    from orbitsplit._codebook.codebook import Codebook
    from orbitsplit._planner.level_table import LevelTable
    from orbitsplit._profiling.profile import ModelProfile

# Two plans at once are not worth fewer seconds than this.
_LEAST_GAIN_S = 1.0
# How long a node whose battery is too low waits before it is looked at again.
_RECHARGE_S = 120.0

Made = Candidate | str


def plan_in_time(
    profile: ModelProfile,
    constellation: Constellation | Timetable,
    workload: Workload | None = None,
    *,
    requested: datetime,
    source: str,
    input_bytes: float,
    output_bytes: float,
    destination: Sequence[str] | None = None,
    deadline_s: float = 86_400.0,
    step_s: float = 10.0,
    satellites: Sequence[str] | None = None,
    computers: Mapping[str, Node] | None = None,
    power: Power | Mapping[str, Power] | None = None,
    levels: LevelTable | None = None,
    codebook: Codebook | None = None,
    loss_budget: float | None = None,
    max_accuracy_drop: float | None = None,
    max_nodes: int | None = None,
    time_limit_s: float | None = None,
    shares: bool = True,
) -> TimedPlan:
    """Decide when and where to run, and how input and result travel, so that the result is soonest at a station.

    The input, `input_bytes` for the whole workload, is on the satellite or at the station `source` from `requested`
    on; the result, `output_bytes`, must be at any station of `destination` (default: all; stations pass files on among
    them in no time that counts) within `deadline_s`. Ways that are compared: the input goes down, over as many passes
    as it takes, and a station computes; one satellite computes, or several by a plan whose links last until
    it ends, and the result waits for a pass; satellites and a station compute together within a contact; a satellite
    computes the first layers now and its activation waits for a pass; with `shares`, some micro-batches are computed on
    board while the input of the others goes down. Files are handed to other satellites where that is quicker. Of
    completions within 0.1 s the way named first here is taken, then the satellite with the input, then nodes in order.

    Links are looked at every `step_s` of a contact and at its edges; pass a `Timetable` in place of the constellation
    to plan several times on one. `computers` are nodes of single satellites, by name, in place of the equipment's;
    `power` limits what satellites take, all of them or those named: what exceeds it starts later, when the battery is
    charged, or is refused. Codecs and limits are those of `plan`, `max_nodes` and `time_limit_s` of each plan that is
    looked at: there may be hundreds.

    Example:
        >>> fleet = Scenario.load("cubesat")                                                      # doctest: +SKIP
        >>> timed = plan_in_time(profile, fleet.constellation, requested=fleet.constellation.epoch,
        ...                      source="sat-3", input_bytes=2e8, output_bytes=1e4)               # doctest: +SKIP

    Raises:
        InfeasiblePlanError: No way is complete in time; the message says of each what is in the way.
        TypeError: An argument is of another type, such as a Scenario in place of its constellation.
        ValueError: There is no such satellite or station, a number is out of range, or as `plan`.
    """
    workload = Workload(prompt_tokens=profile.prompt_tokens) if workload is None else workload
    levels, budget = levels_and_budget(profile, levels, codebook, loss_budget, max_accuracy_drop)
    table = table_of(constellation, requested, deadline_s, step_s, satellites)
    begin_s = table.seconds(requested)
    asked = asked_of(profile, workload, table, (source, destination), (input_bytes, output_bytes), computers)
    asked = replace(
        asked,
        levels=levels,
        codebook=codebook,
        loss_budget=budget,
        max_accuracy_drop=max_accuracy_drop,
        max_nodes=max_nodes,
        time_limit_s=time_limit_s,
    )
    ledger = Ledger(table.constellation, Times.of(table.start), begin_s, table.stop_s, powers_of(power, table))
    return _Choice(asked, ledger, begin_s, min(begin_s + deadline_s, table.stop_s), shares).plan()


@dataclass(frozen=True)
class _Choice:
    """All ways, and the soonest of them."""

    asked: Asked
    ledger: Ledger
    begin_s: float
    end_s: float
    shares: bool

    def plan(self) -> TimedPlan:
        """Return the soonest way; raise where there is none in time."""
        best: Candidate | None = None
        others: list[tuple[str, Made]] = []
        for what, make in itertools.chain(self._alone(), self._together()):
            before_s = self.end_s if best is None else best.completion_s - LEAST_S
            found = make(before_s)
            others.append((what, found))
            if isinstance(found, Candidate) and found.completion_s < before_s:
                best = found
        alternatives = _alternatives(self.asked, others, best)
        if best is None:
            reasons = "; ".join(f"{other.way}: {other.reason}" for other in alternatives)
            raise InfeasiblePlanError(f"no result in {self.end_s - self.begin_s:g} s. {reasons}")
        joules = self.ledger.joules(best.all_loads())
        timed = timed_plan(self.asked, self.begin_s, best, _reason(self.asked, best))
        return replace(timed, energy_j=joules, alternatives=alternatives)

    def _alone(self) -> Iterator[tuple[str, Callable[[float], Made]]]:
        """Yield the ways in which one node computes; their completions are found even where another is sooner."""
        asked = self.asked
        for server in asked.servers:
            yield f"ground, {server}", self._powered(lambda at, _, s=server: on_ground(asked, s, at, self.end_s))  # type: ignore[misc]
        # That with the input first: of ways that are as good, the first is taken.
        for k in sorted(range(len(asked.table.satellites)), key=lambda k: k != asked.source):
            name = asked.table.satellites[k]
            if name in asked.computers:
                yield f"satellite, {name}", self._powered(lambda at, _, k=k: on_satellite(asked, k, at, self.end_s))  # type: ignore[misc]

    def _together(self) -> Iterator[tuple[str, Callable[[float], Made]]]:
        """Yield the ways in which several compute, which are looked at only where they may be sooner."""
        asked = self.asked
        for k, name in enumerate(asked.table.satellites):
            if name in asked.computers:
                yield f"several, from {name}", lambda before_s, k=k: self._several(k, before_s)  # type: ignore[misc]
        for server in asked.servers:
            yield (
                f"deferred to {server}",
                self._powered(lambda at, before, s=server: deferred(asked, s, at, before)),  # type: ignore[misc]
            )
        for server in asked.servers if self.shares else ():
            yield f"shared with {server}", self._powered(lambda at, before, s=server: self._shared(s, at, before))  # type: ignore[misc]

    def _shared(self, server: str, at_s: float, before_s: float) -> Made:
        """Return the best share of board and ground, if it is worth it beside another way."""
        limit_s = before_s - _LEAST_GAIN_S if before_s < self.end_s else before_s
        return shared(self.asked, server, at_s, limit_s, lambda found: self.ledger.shortfall(found.all_loads()) is None)

    def _several(self, first: int, before_s: float) -> Made:
        """Return the soonest plan over several nodes that begins on a satellite, whenever a link begins or ends."""
        asked = self.asked
        carriage = asked.carrier.carry(asked.source, first, asked.input_bytes, self.begin_s, before_s)
        if carriage is None:
            return "the input is not there before another way is complete"
        best: Made = "none is complete before another way"
        for at_s in (carriage.arrival_s, *asked.table.changes_s(carriage.arrival_s, asked.destination)):
            if at_s >= before_s:
                break
            make = self._powered(lambda at, before, c=carriage: split_at(asked, c, at, before), at_s)  # type: ignore[misc]
            found = make(before_s)
            if isinstance(found, Candidate) and found.completion_s < before_s:
                best, before_s = found, found.completion_s - LEAST_S
            elif isinstance(best, str) and isinstance(found, str):
                best = found
        return best

    def _powered(self, make: Callable[[float, float], Made], from_s: float | None = None) -> Callable[[float], Made]:
        """Return a way that begins as soon as the satellites have the energy for it."""

        def tried(before_s: float) -> Made:
            at_s = first_s = self.begin_s if from_s is None else from_s
            lacks: str | None = None
            while at_s <= first_s + 2 * self.ledger.longest_orbit_s and at_s < self.end_s:
                found = make(at_s, before_s)
                if isinstance(found, str):
                    return found if lacks is None else lacks
                short = self.ledger.shortfall(found.all_loads())
                if short is None:
                    return found
                lacks = short.text if lacks is None else lacks
                if not short.can_wait:
                    return short.text
                at_s += _RECHARGE_S
            return lacks or "it cannot begin before the deadline"

        return tried


def _reason(asked: Asked, best: Candidate) -> str:
    nodes = " and ".join(stage.node for stage in best.plan.stages)
    if best.way == "ground" and not best.input:
        return f"{nodes} computes, on the ground as the input"
    if best.way == "ground":
        count = len({sending.closes_s for sending in best.input if sending.path[-1] not in asked.table.satellites})
        contacts = "1 contact" if count == 1 else f"{count} contacts"
        return f"{format_bytes(asked.input_bytes)} of input go down in {contacts}, {nodes} computes"
    if best.way == "satellite":
        return f"{nodes} computes, the result waits for a pass"
    if best.way == "split":
        return f"{nodes} compute together, the result waits for a pass"
    if best.way == "shared":
        assert best.beside is not None, "the rest is computed on board"
        own, others = best.plan.workload.micro_batches, best.beside.plan.workload.micro_batches
        on_board = " and ".join(stage.node for stage in best.beside.plan.stages)
        return f"{nodes} computes {own} micro-batches of which the input goes down, {on_board} the other {others}"
    if best.way == "mixed":
        return f"{nodes} compute together within a contact"
    kept = sum(sending.bytes for sending in best.activation if sending.path[-1] not in asked.table.satellites)
    return f"{nodes}: the activation, {format_bytes(kept)}, waits between them for a pass"


def _alternatives(asked: Asked, others: Sequence[tuple[str, Made]], best: Candidate | None) -> tuple[Alternative, ...]:
    return tuple(
        Alternative(what, None, found)
        if isinstance(found, str)
        else Alternative(what, asked.table.datetime(found.completion_s))
        for what, found in others
        if found is not best
    )
