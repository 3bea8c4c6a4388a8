"""A request resolved against a contact plan, and the plans of its workload on networks of a span of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np

from orbitsplit._errors import OrbitsplitError
from orbitsplit._io.validation import quoted
from orbitsplit._network.network import Network, Node
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.problem_parts import ExternalLink
from orbitsplit._planner.tied_weights import solve_with_tied_weights
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_names import PlanNames
from orbitsplit._plans.plan_of_solution import plan_of
from orbitsplit._plans.problem_building import build_problem
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.validation import names_of
from orbitsplit.leo._scenarios.scenario import Scenario

from .contact_plan import Timetable
from .request import StrategyOptions, TimedRequest
from .store_and_forward import ContactGraph


@dataclass(frozen=True)
class Task:
    """A model's workload with source and destination in a contact graph, and the computers that may run it.

    `source` is a vertex of the graph, `destination` the stations by index. `options` has the levels and the loss
    budget that follow from its codebook. Plans of single nodes are kept by node and number of micro-batches.
    """

    profile: ModelProfile
    workload: Workload
    contact_plan: Timetable
    computers: Mapping[str, Node]
    input_bytes: float
    output_bytes: float
    source: int
    destination: tuple[int, ...]
    graph: ContactGraph
    options: StrategyOptions
    single_node_plans: dict[tuple[str, int], Plan | str] = field(default_factory=dict)

    @property
    def ground(self) -> int:
        """Return the vertex of the ground."""
        return self.graph.ground

    @cached_property
    def without_isl(self) -> Task:
        """Return the task whose files take no link between satellites."""
        return replace(self, graph=replace(self.graph, uses_isl=False))

    @cached_property
    def servers(self) -> tuple[str, ...]:
        """Return the stations of the destination that have a computer."""
        names = [self.contact_plan.stations[s].name for s in self.destination]
        return tuple(name for name in names if name in self.computers)

    def part(self, micro_batches: int) -> Task:
        """Return the task of some of the micro-batches."""
        fraction = micro_batches / self.workload.micro_batches
        return replace(
            self,
            workload=replace(self.workload, micro_batches=micro_batches),
            input_bytes=self.input_bytes * fraction,
            output_bytes=self.output_bytes * fraction,
        )

    def problem_on(self, network: Network) -> Problem:
        """Return the planning problem of the workload on a network."""
        levels, budget = self.options.levels, self.options.loss_budget
        return build_problem(self.profile, network, self.workload, levels=levels, loss_budget=budget, order="free")

    def plan_names(self, network: Network) -> PlanNames:
        """Return what names a solution on a network."""
        codebook, drop = self.options.codebook, self.options.max_accuracy_drop
        return PlanNames(network, self.workload, self.profile, "latency", codebook, drop)

    def plan_on_node(self, name: str) -> Plan | str:
        """Return the plan in which one node runs everything, or why there is none."""
        key = (name, self.workload.micro_batches)
        if key not in self.single_node_plans:
            network = Network(name, (replace(self.computers[name], name=name),))
            self.single_node_plans[key] = self.plan_on(network, name, [name])
        return self.single_node_plans[key]

    def plan_on(self, network: Network, first: str, lasts: Sequence[str]) -> Plan | str:
        """Return the fastest plan that begins on `first` and ends on one of `lasts`, or why there is none."""
        names = [node.name for node in network.nodes]
        problem = replace(self.problem_on(network), ingress=_only(names, [first]), egress=_only(names, lasts))
        confirming, solution = solve_with_tied_weights(
            problem,
            self.profile.tied_bytes,
            max_nodes=self.options.max_nodes,
            time_limit_s=self.options.time_limit_s,
        )
        try:
            return plan_of(confirming, solution, self.plan_names(network))
        except OrbitsplitError as error:
            return str(error)


def contact_plan_of(
    constellation: Constellation | Timetable, request: TimedRequest, step_s: float, satellites: Sequence[str] | None
) -> Timetable:
    """Return the links from the request to its deadline, or the timetable that is given."""
    _check_constellation(constellation)
    members = None if satellites is None else names_of("satellites", satellites)
    if members == ():
        raise ValueError("satellites is empty, at least one must take part; None: all do")
    requested = request.requested
    if isinstance(constellation, Constellation):
        stop = requested + timedelta(seconds=request.deadline_s)
        return Timetable.of(constellation, requested, stop, step_s=step_s, satellites=members)
    if not 0 <= constellation.seconds(requested) < constellation.stop_s:
        stop = constellation.datetime(constellation.stop_s)
        raise ValueError(f"requested is {requested}, the timetable covers {constellation.start} to {stop}")
    return constellation


def task_of(
    profile: ModelProfile,
    workload: Workload | None,
    contact_plan: Timetable,
    request: TimedRequest,
    computers: Mapping[str, Node] | None,
    options: StrategyOptions,
    *,
    uses_isl: bool = True,
) -> Task:
    """Return the task of a request; without `uses_isl` its files take no link between satellites."""
    stations = [station.name for station in contact_plan.stations]
    destination = _destination(request.destination, stations)
    _check_source(request.source, contact_plan, stations)
    senders = (stations.index(request.source),) if request.source in stations else ()
    graph = ContactGraph(contact_plan, senders, destination, uses_isl=uses_isl)
    return Task(
        profile=profile,
        workload=Workload(prompt_tokens=profile.prompt_tokens) if workload is None else workload,
        contact_plan=contact_plan,
        computers=_computers(contact_plan, computers),
        input_bytes=float(request.input_bytes),
        output_bytes=float(request.output_bytes),
        source=graph.ground if senders else contact_plan.satellites.index(request.source),
        destination=destination,
        graph=graph,
        options=options,
    )


def _check_constellation(value: Any) -> None:
    if isinstance(value, Scenario):
        raise TypeError(f"the constellation is the Scenario {quoted(value.name)}; pass its .constellation")
    if not isinstance(value, (Constellation, Timetable)):
        raise TypeError(f"the constellation is {quoted(value)}, must be a Constellation or a Timetable")


def _destination(names: Sequence[str] | None, stations: list[str]) -> tuple[int, ...]:
    """Return the stations, by index, that may receive the result."""
    if names is None:
        return tuple(range(len(stations)))
    if not names:
        raise ValueError(
            f"destination is empty, at least one station is needed; the stations are {', '.join(stations)}"
        )
    for name in names:
        if name not in stations:
            raise ValueError(f"no station {quoted(name)}; the stations are {', '.join(stations)}")
    return tuple(stations.index(name) for name in names)


def _check_source(source: str, contact_plan: Timetable, stations: list[str]) -> None:
    if source in stations or source in contact_plan.satellites:
        return
    members = contact_plan.satellites
    if source in contact_plan.constellation.names:
        some = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
        raise ValueError(f"the source {quoted(source)} does not take part; the satellites that do are {some}")
    raise ValueError(f"no satellite or station {quoted(source)}; there are {', '.join((*members[:5], *stations))}")


def _computers(contact_plan: Timetable, computers: Mapping[str, Node] | None) -> dict[str, Node]:
    """Return the computers by name: those of the equipment and the stations, replaced by `computers`."""
    equipment = contact_plan.constellation.equipment
    assert equipment is not None  # Timetable.of checks it
    nodes = dict.fromkeys(contact_plan.satellites, equipment.node)
    nodes |= {station.name: station.node for station in contact_plan.stations if station.node is not None}
    given = {} if computers is None else computers
    if not isinstance(given, Mapping):
        raise TypeError(f"computers is {quoted(given)}, must be nodes by name")
    for name, node in given.items():
        if not isinstance(node, Node):
            raise TypeError(f"the computer of {quoted(name)} is {quoted(node)}, must be a Node")
        if name not in nodes:
            raise ValueError(f"computers name {quoted(name)}, which is no satellite or station with a node")
        nodes[name] = node
    return nodes


def _only(names: Sequence[str], allowed: Sequence[str]) -> ExternalLink:
    """Return an external link that takes no time, of the allowed nodes only."""
    rates = np.array([1.0 if name in allowed else 0.0 for name in names])
    return ExternalLink(bytes=0.0, bandwidth_bytes_per_s=rates, latency_s=np.zeros(len(names)))
