"""What a pipeline knows of its hosts: stages and their memory, why others are left alone, how links were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from orbitsplit._plans.plan import Plan
from orbitsplit._plans.rebalance import MeasuredLink

from .fleet_status import FleetStatus, HostStatus, LinkRate
from .joined_host import HostInfo
from .rebalancing import Rebalancer
from .sessions import Sessions


def describe(sessions: Sessions, rebalancer: Rebalancer | None, hosts: Sequence[HostInfo]) -> FleetStatus:
    """Return the hosts of a running pipeline, with or without what a rebalancer has measured."""
    current, heartbeats = sessions.reports()
    stages = {stage.node: (stage, beat) for stage, beat in zip(current.plan.stages, heartbeats, strict=True)}
    notes = {} if rebalancer is None else rebalancer.notes
    network = () if rebalancer is None else rebalancer.replanner.network.nodes
    slowdowns = {node.name: node.slowdown for node in network}
    found = []
    for host in hosts:
        if host.node not in stages:
            note = notes.get(host.node, "the plan does without it")
            found.append(HostStatus(**asdict(host), slowdown=slowdowns.get(host.node), note=note))
            continue
        stage, beat = stages[host.node]
        found.append(
            HostStatus(
                **asdict(host),
                start=stage.start,
                stop=stage.stop,
                resident_bytes=0 if beat is None else beat.resident_bytes,
                slowdown=slowdowns.get(host.node),
            )
        )
    measured = {} if rebalancer is None else rebalancer.links
    there = {host.node for host in hosts}
    return FleetStatus(tuple(found), tuple(rate for rate in _rates(current.plan, rebalancer, measured, there)))


def _rates(
    plan: Plan,
    rebalancer: Rebalancer | None,
    measured: dict[tuple[str, str], MeasuredLink],
    there: set[str],
) -> list[LinkRate]:
    """Return the links of the plan, then others that were measured, between hosts that are there."""
    names = [stage.node for stage in plan.stages]
    planned = {ends: (link.bytes_per_s, link.latency_s) for ends, link in zip(pairwise(names), plan.links, strict=True)}
    ends = [*planned, *(one for one in measured if one not in planned)]
    if rebalancer is not None:
        for link in rebalancer.network.links:
            planned.setdefault((link.source, link.destination), (link.bytes_per_s, link.latency_s))
    rates = []
    for source, destination in ends:
        if not {source, destination} <= there:
            continue
        rate, latency_s = planned.get((source, destination), (None, None))
        found = measured.get((source, destination))
        rates.append(
            LinkRate(
                source=source,
                destination=destination,
                planned_bytes_per_s=rate,
                measured_bytes_per_s=None if found is None else found.bytes_per_s,
                planned_latency_s=latency_s,
                measured_latency_s=None if found is None else found.latency_s,
            )
        )
    return rates
