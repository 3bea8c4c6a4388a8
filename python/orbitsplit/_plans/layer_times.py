"""The seconds of a layer or a stage on a node: measured and slowed down, or from FLOP and memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orbitsplit._network.network import Node
    from orbitsplit._profiling.profile import ModelProfile


def prefill_s(profile: ModelProfile, node: Node) -> list[float]:
    """Return the seconds of each layer on the node for one micro-batch of prompts."""
    if node.slowdown is not None:
        return _slowed([layer.prefill_s for layer in profile.layers], node)
    return [_roofline(node, layer.prefill_flop, layer.weight_bytes) for layer in profile.layers]


def chunk_s(profile: ModelProfile, node: Node, chunks: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each layer on the node for the last of a prompt's chunks, and the mean of those before it.

    Between two measured lengths of chunks, seconds are in proportion to the tokens.
    """
    last, earlier = _measured_chunks(profile, chunks)
    if node.slowdown is not None:
        return _slowed(last, node), _slowed(earlier, node)
    # A node of known FLOP/s loses by chunks what the machine of the profile does; its head runs once.
    whole = _total([layer.prefill_s for layer in profile.layers])
    loss = max(1.0, ((chunks - 1) * _total(earlier) + _total(last)) / whole) if whole else 1.0
    base = [loss * _roofline(node, layer.prefill_flop / chunks, layer.weight_bytes) for layer in profile.layers]
    return base, [*base[:-1], 0.0]


def overhead_s(profile: ModelProfile, node: Node, chunks: int = 1) -> float:
    """Return the seconds of a stage on the node in addition to its layers, for a prompt or for one of its chunks.

    They are the measured overhead of a forward, which every stage has once. A node of known FLOP/s has none.
    """
    if node.slowdown is None:
        return 0.0
    overheads = [*(chunk.overhead_s for chunk in profile.chunks), profile.overhead_prefill_s]
    return node.slowdown * _at_length(profile, chunks, overheads)


def decode_overhead_s(profile: ModelProfile, node: Node) -> float:
    """Return the seconds of a stage on the node in addition to its layers, for a token step of one micro-batch.

    Beside an encoder they are in `decode_s`.
    """
    if node.slowdown is None or profile.encoder_layers is not None:
        return 0.0
    return node.slowdown * profile.overhead_decode_s


def _measured_chunks(profile: ModelProfile, chunks: int) -> tuple[list[float | None], list[float | None]]:
    """Return the seconds of each layer for the last chunk and those before it."""
    whole = [layer.prefill_s for layer in profile.layers]
    if not profile.chunks:
        return whole, whole

    def between(columns: list[tuple[float | None, ...]]) -> list[float | None]:
        return [_at_length(profile, chunks, column) for column in zip(*columns, strict=True)]

    last = between([*(chunk.last_s for chunk in profile.chunks), tuple(whole)])
    return last, between([*(chunk.earlier_s(chunks) for chunk in profile.chunks), (*whole[:-1], 0.0)])


def _at_length(profile: ModelProfile, chunks: int, seconds: Sequence[Any]) -> float:
    """Return the seconds of a chunk, one of `chunks`, from those of each measured length and of a whole prompt."""
    lengths = [*(chunk.tokens for chunk in profile.chunks), profile.prompt_tokens]
    return float(np.interp(profile.prompt_tokens / chunks, lengths, seconds))


def _total(times: list[float | None]) -> float:
    return sum(seconds or 0.0 for seconds in times)


def decode_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one token of each row of one micro-batch.

    Those of an encoder do not run, and stages of them alone have no overhead. A problem has one overhead for all stages
    of a node: so beside an encoder that of the decoder's stages is spread over the layers, as if each of the `nodes`
    had equally many.
    """
    if node.slowdown is not None:
        found = _slowed([layer.decode_s for layer in profile.layers], node)
        if profile.encoder_layers is not None:
            spread_s = node.slowdown * profile.overhead_decode_s * nodes / len(profile.layers)
            found = [seconds + spread_s for seconds in found]
    else:
        found = [_roofline(node, layer.decode_flop, layer.weight_bytes) for layer in profile.layers]
    first = profile.first_step_layer
    return [0.0] * first + found[first:]


def _slowed(times: list[float | None], node: Node) -> list[float]:
    """Return measured seconds of each layer on a slower node."""
    assert node.slowdown is not None
    return [node.slowdown * _measured(seconds, node) for seconds in times]


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
