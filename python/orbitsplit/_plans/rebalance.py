"""Whether another plan pays while one runs: on a network as it was measured, for the work that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._network.network import Link, Network, Node
from orbitsplit._profiling.profile import ModelProfile

from .plan import Plan

# Predictions are within 10 % of measured runs (docs/benchmarks.md): a smaller gain may be none.
LEAST_GAIN = 0.1


@dataclass(frozen=True, slots=True)
class MeasuredNode:
    """What the short profile of a node says: medians of the layers from `start` on, and its memory in bytes."""

    start: int
    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    memory_bytes: int

    def slowdown(self, profile: ModelProfile) -> float:
        """Return how many times longer its layers take than on the measured profile's node."""
        layers = profile.layers[self.start : self.start + len(self.prefill_s)]
        if self.decode_s:
            return sum(self.decode_s) / sum(layer.decode_s or 0.0 for layer in layers)
        return sum(self.prefill_s) / sum(layer.prefill_s or 0.0 for layer in layers)

    def flop_per_s(self, profile: ModelProfile) -> float:
        """Return its compute rate, by the layers of a profile that was counted and not measured."""
        layers = profile.layers[self.start : self.start + len(self.prefill_s)]
        if self.decode_s:
            return sum(layer.decode_flop for layer in layers) / sum(self.decode_s)
        return sum(layer.prefill_flop for layer in layers) / sum(self.prefill_s)


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """What an exchange over a link has shown: its rate, and half of its round trip."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured beside a network.

    Attributes:
        nodes: Short profiles of nodes that have joined, by name.
        factors: How many times longer a node takes than its speed in the network says, by name.
        links: Links by their ends.
    """

    nodes: Mapping[str, MeasuredNode] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], MeasuredLink] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.nodes or self.factors or self.links)

    def described(self) -> list[str]:
        """Return a clause for each factor and link, for messages."""
        stages = [
            f'node "{name}" takes {factor:.2f} times as long as predicted' for name, factor in self.factors.items()
        ]
        links = [
            f'the link from "{source}" to "{destination}" has {format_bytes(found.bytes_per_s)}/s'
            for (source, destination), found in self.links.items()
        ]
        return stages + links


def as_measured(network: Network, profile: ModelProfile, measured: Measured) -> Network:
    """Return a network with the speeds and rates that were measured, and with the nodes that it did not have.

    A node that it has keeps its memory, headroom, device and links: only their figures change. Others are linked with
    every node that they have exchanged something with.
    """
    known = {node.name: node for node in network.nodes}
    nodes = {name: _node(name, known.get(name), profile, measured) for name in {**known, **measured.nodes}}
    links = {(link.source, link.destination): _link(link, measured) for link in network.links}
    for (source, destination), found in measured.links.items():
        is_new = not {source, destination} <= known.keys()
        if is_new and source in nodes and destination in nodes:
            links[source, destination] = Link(source, destination, found.bytes_per_s, found.latency_s)
    return replace(network, nodes=tuple(nodes.values()), links=tuple(links.values()))


def _node(name: str, planned: Node | None, profile: ModelProfile, measured: Measured) -> Node:
    found = measured.nodes.get(name)
    node = planned if found is None else _measured_node(name, planned, found, profile)
    assert node is not None, "a node is in the network or was measured"
    factor = measured.factors.get(name, 1.0)
    if node.slowdown is not None:
        return replace(node, slowdown=node.slowdown * factor)
    assert node.flop_per_s is not None, "a node has a speed"
    reading = None if node.memory_bytes_per_s is None else node.memory_bytes_per_s / factor
    return replace(node, flop_per_s=node.flop_per_s / factor, memory_bytes_per_s=reading)


def _measured_node(name: str, planned: Node | None, found: MeasuredNode, profile: ModelProfile) -> Node:
    slowdown = found.slowdown(profile) if profile.is_measured else None
    flop_per_s = None if profile.is_measured else found.flop_per_s(profile)
    if planned is None:
        return Node(name, found.memory_bytes, slowdown=slowdown, flop_per_s=flop_per_s)
    memory_bytes = min(planned.memory_bytes, found.memory_bytes) if found.memory_bytes else planned.memory_bytes
    return replace(
        planned,
        memory_bytes=memory_bytes,
        headroom_bytes=min(planned.headroom_bytes, memory_bytes),
        slowdown=slowdown,
        flop_per_s=flop_per_s,
        memory_bytes_per_s=None,
    )


def _link(link: Link, measured: Measured) -> Link:
    found = measured.links.get((link.source, link.destination))
    return link if found is None else replace(link, bytes_per_s=found.bytes_per_s, latency_s=found.latency_s)


NOTHING_MEASURED = Measured()


def token_s(plan: Plan, measured: Measured = NOTHING_MEASURED) -> float:
    """Return the seconds between two tokens of a sequence by a plan's prediction, with the factors measured since.

    It is the step of the cost model (docs/cost_model.md) by the tokens of a step. A link takes as many times longer as
    its measured rate is below the plan's. Infinite for a plan that predicts no steps.
    """
    predicted = plan.prediction
    if predicted is None or not predicted.decode_stage_s:
        return math.inf
    names = [stage.node for stage in plan.stages]
    stages = [measured.factors.get(name, 1.0) * s for name, s in zip(names, predicted.decode_stage_s, strict=True)]
    links = []
    for k, (link, seconds) in enumerate(zip(plan.links, predicted.decode_link_s, strict=True)):
        found = measured.links.get((names[k], names[k + 1]))
        slower = 1.0 if found is None or link.bytes_per_s is None else link.bytes_per_s / found.bytes_per_s
        links.append(seconds * slower)
    occupied = [*stages, *links]
    round_trip_s = sum(occupied) + sum(link.latency_s for link in plan.links) + plan.return_latency_s
    messages: float = plan.workload.micro_batches
    if predicted.in_flight is not None:  # at a rate no more requests hold a resource up than are in flight
        messages = min(messages, max(1.0, predicted.in_flight))
    return max(round_trip_s, messages * max(occupied)) / predicted.tokens_per_step


@dataclass(frozen=True, slots=True)
class Gain:
    """What another plan gains over the rest of the work: `tokens` for each sequence, so many seconds apart each.

    Attributes:
        tokens: New tokens of a sequence that are left.
        before_s: Seconds between two tokens as it is.
        after_s: Seconds between two tokens by the other plan.
        loading_s: Seconds until its stages are loaded, in which generation goes on as it is.
        pause_s: Seconds without new tokens, until its stages have the keys and values of those so far.
    """

    tokens: float
    before_s: float
    after_s: float
    loading_s: float
    pause_s: float

    @property
    def rest_s(self) -> float:
        """Seconds of the rest of the work as it is."""
        return self.tokens * self.before_s

    @property
    def gain_s(self) -> float:
        """Seconds that the move saves over the rest of the work; negative: it costs them."""
        if not 0 < self.before_s < math.inf:
            return 0.0
        left = max(0.0, self.tokens - self.loading_s / self.before_s)
        return left * (self.before_s - self.after_s) - self.pause_s

    @property
    def pays(self) -> bool:
        """Whether the gain is more than predictions may be wrong by: LEAST_GAIN of what is left when all is loaded."""
        return self.gain_s > LEAST_GAIN * max(0.0, self.rest_s - self.loading_s)

    def __str__(self) -> str:
        return (
            f"{format_seconds(self.after_s)} per token instead of {format_seconds(self.before_s)}, {self.tokens:.0f} "
            f"tokens left: {format_seconds(max(0.0, self.gain_s))} gained, after {format_seconds(self.loading_s)} of "
            f"loading and a pause of {format_seconds(self.pause_s)}"
        )
