"""What nodes and links of a running pipeline do now, from the workers' heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import Heartbeat


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node: its stage's process has `resident_bytes` in memory; `memory_bytes` is its limit, None without one.

    `busy_s` are the seconds that it has worked since the plan runs: computed, encoded and decoded.
    """

    name: str
    resident_bytes: int
    memory_bytes: int | None
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A link: payload bytes sent on it since the plan runs, and its planned rate, None where the plan has none.

    The way of the tokens, from the last stage to the first one, is planned without a rate.
    """

    source: str
    destination: str
    sent_bytes: int
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """Nodes and links of the running plan, as its workers reported them last: up to a second ago."""

    nodes: tuple[NodeStatus, ...]
    links: tuple[LinkStatus, ...]


def status_of(plan: Plan, heartbeats: Sequence[Heartbeat | None]) -> PipelineStatus:
    """Return the status of a plan from the last heartbeat of each stage, None for one that has sent none."""
    names = [stage.node for stage in plan.stages]
    nodes = tuple(
        NodeStatus(stage.node, beat.resident_bytes, stage.memory_bytes, beat.busy_s)
        if beat is not None
        else NodeStatus(stage.node, 0, stage.memory_bytes)
        for stage, beat in zip(plan.stages, heartbeats, strict=True)
    )
    # The last stage sends the tokens back to the first one.
    rates = [*(link.bytes_per_s for link in plan.links), None]
    ends = zip(names, [*names[1:], names[0]], heartbeats, rates, strict=True) if len(names) > 1 else ()
    links = tuple(
        LinkStatus(source, destination, 0 if beat is None else beat.sent_bytes, rate)
        for source, destination, beat, rate in ends
    )
    return PipelineStatus(nodes, links)
