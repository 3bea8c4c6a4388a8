"""A profile for another number of rows than it was made for, from the seconds of steps of several numbers of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .profile import ChunkTimes, LayerProfile, ModelProfile, RowTimes


def has_rows(profile: ModelProfile, rows: int) -> bool:
    """Return whether the profile says what micro-batches of so many rows cost.

    One that was not measured does for any number, since FLOP are in proportion to rows.
    """
    if rows == profile.batch_size or not profile.is_measured:
        return True
    return bool(profile.rows) and rows <= max(profile.batch_size, profile.rows[-1].rows)


def profile_of_rows(profile: ModelProfile, rows: int) -> ModelProfile:
    """Return the profile as it would be for `batch_size` = `rows`.

    - Decode steps: between two measured numbers of rows, seconds lie on a straight line.
    - Prefill: a forward of so many more positions, by the same line and its last piece beyond the largest number; the
      head, which runs for the last position of each row, as in a decode step.
    - FLOP are in proportion to rows, and so is the workspace, which does not shrink with fewer of them.

    Raises ValueError if the profile does not `have_rows`.
    """
    if rows == profile.batch_size:
        return profile
    if not has_rows(profile, rows):
        raise ValueError(_missing(profile, rows))
    scale = rows / profile.batch_size
    steps = _steps(profile)
    layers = [
        replace(
            layer,
            prefill_flop=round(layer.prefill_flop * scale),
            decode_flop=round(layer.decode_flop * scale),
            workspace_bytes=None if layer.workspace_bytes is None else _grown(layer.workspace_bytes, scale),
        )
        for layer in profile.layers
    ]
    changed = replace(
        profile,
        batch_size=rows,
        layers=tuple(layers),
        workspace_bytes=_grown(profile.workspace_bytes, scale),
        rows=tuple(step for step in steps if step.rows != rows),
    )
    return _with_seconds(changed, profile, steps) if steps else changed


def _missing(profile: ModelProfile, rows: int) -> str:
    known = f"the profile was made for batch_size={profile.batch_size}, the workload has {rows}"
    if profile.rows:
        return f"{known}: it has times of up to {max(profile.batch_size, profile.rows[-1].rows)} rows"
    return f"{known}: profile the model again with batch_size={rows}, or with times of several numbers of rows"


def _grown(size: int, scale: float) -> int:
    return math.ceil(size * max(1.0, scale))


def _steps(profile: ModelProfile) -> list[RowTimes]:
    """Return the decode steps of all measured numbers of rows, in increasing order."""
    own = [layer.decode_s for layer in profile.layers if layer.decode_s is not None]
    if len(own) < len(profile.layers):
        return []
    steps = [*profile.rows, RowTimes(profile.batch_size, tuple(own), profile.overhead_decode_s)]
    return sorted(steps, key=lambda step: step.rows)


def _with_seconds(changed: ModelProfile, profile: ModelProfile, steps: Sequence[RowTimes]) -> ModelProfile:
    """Return the changed profile with the seconds of its rows, from those of the profile that it was made of."""
    rows = changed.batch_size
    decode_s = [_between(steps, column, rows) for column in zip(*(step.decode_s for step in steps), strict=True)]
    last_s = profile.layers[-1].decode_s
    of_head = decode_s[-1] / last_s if last_s else rows / profile.batch_size
    line = [sum(step.decode_s[:-1]) for step in steps]

    def factors(tokens: int) -> list[float]:
        """How many times longer each layer takes for the rows, with so many tokens each."""
        more = _positions_s(steps, line, rows * tokens) / _positions_s(steps, line, profile.batch_size * tokens)
        return [more] * (len(profile.layers) - 1) + [of_head]

    return replace(
        changed,
        layers=tuple(_slowed(changed.layers, decode_s, factors(profile.prompt_tokens))),
        overhead_decode_s=_between(steps, [step.overhead_s for step in steps], rows),
        chunks=tuple(_chunk_of_rows(chunk, factors(chunk.tokens)) for chunk in profile.chunks),
    )


def _between(steps: Sequence[RowTimes], column: Sequence[float], rows: int) -> float:
    return float(np.interp(rows, [step.rows for step in steps], column))


def _positions_s(steps: Sequence[RowTimes], line: Sequence[float], positions: int) -> float:
    """Return the seconds of all layers but the head for so many positions; what is beyond the line is in proportion."""
    last = steps[-1].rows
    if positions <= last:
        return _between(steps, line, positions)
    slope = line[-1] / last
    if len(steps) > 1:
        slope = (line[-1] - line[-2]) / (last - steps[-2].rows)
    return line[-1] + max(0.0, slope) * (positions - last)


def _slowed(layers: Sequence[LayerProfile], decode_s: Sequence[float], factors: Sequence[float]) -> list[LayerProfile]:
    return [
        replace(layer, decode_s=seconds, prefill_s=None if layer.prefill_s is None else layer.prefill_s * factor)
        for layer, seconds, factor in zip(layers, decode_s, factors, strict=True)
    ]


def _chunk_of_rows(chunk: ChunkTimes, factors: Sequence[float]) -> ChunkTimes:
    first_s, last_s = (
        tuple(seconds * factor for seconds, factor in zip(column, factors, strict=True))
        for column in (chunk.first_s, chunk.last_s)
    )
    return replace(chunk, first_s=first_s, last_s=last_s)
