"""The seconds of a layer on a node: measured and slowed down, or from FLOP and memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from orbitsplit._network.network import Node
    from orbitsplit._profiling.profile import ModelProfile


def prefill_s(profile: ModelProfile, node: Node, nodes: int, chunks: int = 1) -> list[float]:
    """Return the seconds of each layer on the node for one micro-batch of prompts, or the mean of its chunks."""
    times, overhead_s = _prefill_times(profile, chunks)
    if node.slowdown is not None:
        # Every stage pays the overhead of a forward once. A problem has no cost per stage, so the overhead is spread
        # over the layers as if every node had a stage of the same number of layers.
        overhead = overhead_s * nodes / len(profile.layers)
        return [node.slowdown * (_measured(seconds, node) + overhead) for seconds in times]
    # A node of known FLOP/s loses by chunks what the machine of the profile does.
    loss = max(1.0, chunks * _total(times) / whole) if (whole := _total(_prefill_times(profile, 1)[0])) else 1.0
    return [loss * _roofline(node, layer.prefill_flop / chunks, layer.weight_bytes) for layer in profile.layers]


def _prefill_times(profile: ModelProfile, chunks: int) -> tuple[list[float | None], float]:
    """Return the measured seconds of each layer, and the overhead, for a prompt or for each of its chunks.

    Between two measured lengths of chunks, seconds are in proportion to the tokens.
    """
    whole = [layer.prefill_s for layer in profile.layers]
    if chunks == 1 or not profile.chunks:
        return whole, profile.overhead_prefill_s
    lengths = [*(chunk.tokens for chunk in profile.chunks), profile.prompt_tokens]
    tokens = profile.prompt_tokens / chunks
    columns = zip(*(chunk.mean_s for chunk in profile.chunks), whole, strict=True)
    overheads = [*(chunk.overhead_s for chunk in profile.chunks), profile.overhead_prefill_s]
    return [float(np.interp(tokens, lengths, column)) for column in columns], float(
        np.interp(tokens, lengths, overheads)
    )


def _total(times: list[float | None]) -> float:
    return sum(seconds or 0.0 for seconds in times)


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
