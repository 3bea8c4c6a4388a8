"""The seconds of a layer on a node: measured and slowed down, or from FLOP and memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from orbitsplit._network.network import Node
    from orbitsplit._profiling.profile import ModelProfile


def prefill_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one micro-batch of prompts."""
    if node.slowdown is not None:
        whole = [layer.prefill_s for layer in profile.layers]
        return _slowed(whole, profile.overhead_prefill_s, profile, node, nodes)
    return [_roofline(node, layer.prefill_flop, layer.weight_bytes) for layer in profile.layers]


def chunk_s(profile: ModelProfile, node: Node, nodes: int, chunks: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each layer on the node for the last of a prompt's chunks, and the mean of those before it.

    Between two measured lengths of chunks, seconds are in proportion to the tokens.
    """
    last, earlier, overhead_s = _measured_chunks(profile, chunks)
    if node.slowdown is not None:
        return (
            _slowed(last, overhead_s, profile, node, nodes),
            _slowed(earlier, overhead_s, profile, node, nodes),
        )
    # A node of known FLOP/s loses by chunks what the machine of the profile does; its head runs once.
    whole = _total([layer.prefill_s for layer in profile.layers])
    loss = max(1.0, ((chunks - 1) * _total(earlier) + _total(last)) / whole) if whole else 1.0
    base = [loss * _roofline(node, layer.prefill_flop / chunks, layer.weight_bytes) for layer in profile.layers]
    return base, [*base[:-1], 0.0]


def _measured_chunks(profile: ModelProfile, chunks: int) -> tuple[list[float | None], list[float | None], float]:
    """Return the seconds of each layer for the last chunk and those before it, and the overhead of a forward."""
    whole = [layer.prefill_s for layer in profile.layers]
    if not profile.chunks:
        return whole, whole, profile.overhead_prefill_s
    tokens = profile.prompt_tokens / chunks
    lengths = [*(chunk.tokens for chunk in profile.chunks), profile.prompt_tokens]

    def between(columns: list[tuple[float | None, ...]]) -> list[float | None]:
        return [float(np.interp(tokens, lengths, column)) for column in zip(*columns, strict=True)]

    last = between([*(chunk.last_s for chunk in profile.chunks), tuple(whole)])
    earlier = between([*(chunk.earlier_s(chunks) for chunk in profile.chunks), (*whole[:-1], 0.0)])
    overheads = [*(chunk.overhead_s for chunk in profile.chunks), profile.overhead_prefill_s]
    return last, earlier, float(np.interp(tokens, lengths, overheads))


def _total(times: list[float | None]) -> float:
    return sum(seconds or 0.0 for seconds in times)


def decode_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one token of each row of one micro-batch.

    Those of an encoder do not run.
    """
    if node.slowdown is not None:
        tokens = [layer.decode_s for layer in profile.layers]
        found = _slowed(tokens, profile.overhead_decode_s, profile, node, nodes)
    else:
        found = [_roofline(node, layer.decode_flop, layer.weight_bytes) for layer in profile.layers]
    first = profile.first_step_layer
    return [0.0] * first + found[first:]


def _slowed(times: list[float | None], overhead_s: float, profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return measured seconds of each layer on a slower node, with the overhead of a forward.

    Every stage pays that once. A problem has no cost per stage, so the overhead is spread over the layers as if every
    node had a stage of the same number of layers.
    """
    assert node.slowdown is not None
    overhead = overhead_s * nodes / len(profile.layers)
    return [node.slowdown * (_measured(seconds, node) + overhead) for seconds in times]


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
