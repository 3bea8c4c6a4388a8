"""The seconds of a layer on a node: measured and slowed down, or from FLOP and memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from orbitsplit._network.network import Node
    from orbitsplit._profiling.profile import ModelProfile


def prefill_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one micro-batch of prompts."""
    if node.slowdown is not None:
        # Every stage pays the overhead of a forward once. A problem has no cost per stage, so the overhead is spread
        # over the layers as if every node had a stage of the same number of layers.
        overhead = profile.overhead_prefill_s * nodes / len(profile.layers)
        return [node.slowdown * (_measured(layer.prefill_s, node) + overhead) for layer in profile.layers]
    return [_roofline(node, layer.prefill_flop, layer.weight_bytes) for layer in profile.layers]


def decode_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one token of one micro-batch."""
    if node.slowdown is not None:
        overhead = profile.overhead_decode_s * nodes / len(profile.layers)
        return [node.slowdown * (_measured(layer.decode_s, node) + overhead) for layer in profile.layers]
    return [_roofline(node, layer.decode_flop, layer.weight_bytes) for layer in profile.layers]


def _measured(seconds: float | None, node: Node) -> float:
    if seconds is None:
        raise ValueError(
            f"node {quoted(node.name)} has a slowdown relative to a measured "
            f"profile, but this profile was not measured: "
            f"use profile(..., measure=True), or give the node its compute in FLOP/s"
        )
    return seconds


def _roofline(node: Node, flop: float, weight_bytes: int) -> float:
    """Return the larger of compute time and the time to read the weights once."""
    assert node.flop_per_s is not None
    reading = 0.0 if node.memory_bytes_per_s is None else weight_bytes / node.memory_bytes_per_s
    return max(flop / node.flop_per_s, reading)
