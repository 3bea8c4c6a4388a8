"""The numbers inside matrices in int4 and int5: what codes stand for, and the same matrix with other codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .quantized import QuantizedWeights, Singles

GROUP = 32
# Two float32 at the beginning of a row: the units of its scales and minima.
_UNITS_BYTES = 8
LARGEST_CODE = {"int4": 15, "int5": 31}


def group_scales(weights: QuantizedWeights) -> tuple[Singles, Singles]:
    """Return scales and minima [rows, groups]: a weight is scale * code - minimum, codes are from 0 to 15 or 31.

    Raises `ValueError` for weights in another format.
    """
    rows, groups = _rows_of(weights), weights.shape[1] // GROUP
    units = rows[:, :_UNITS_BYTES].copy().view(np.float32)
    scales = rows[:, _UNITS_BYTES : _UNITS_BYTES + groups] * units[:, :1]
    minima = rows[:, _UNITS_BYTES + groups : _UNITS_BYTES + 2 * groups] * units[:, 1:]
    return scales, minima


def with_codes(weights: QuantizedWeights, codes: npt.NDArray[np.uint8]) -> QuantizedWeights:
    """Return the matrix with the same scales and minima and other codes, uint8 [rows, columns].

    Raises `ValueError` for weights in another format, and for codes of another shape or range.
    """
    rows = _rows_of(weights).copy()
    largest = LARGEST_CODE[weights.format]
    if codes.shape != weights.shape or codes.dtype != np.uint8 or (codes.size and codes.max() > largest):
        raise ValueError(f"codes must be uint8 from 0 to {largest} of shape {weights.shape}")
    grouped = codes.reshape(len(codes), codes.shape[1] // GROUP, GROUP)
    lower, half = grouped & 15, GROUP // 2
    packed = lower[..., :half] | lower[..., half:] << 4
    if weights.format == "int5":
        packed = np.concatenate([packed, np.packbits(grouped >> 4, axis=2, bitorder="little")], axis=2)
    packed = packed.reshape(len(codes), packed.shape[1] * packed.shape[2])
    rows[:, rows.shape[1] - packed.shape[1] :] = packed
    return QuantizedWeights(weights.format, weights.shape, rows.reshape(-1))


def _rows_of(weights: QuantizedWeights) -> npt.NDArray[np.uint8]:
    if weights.format not in LARGEST_CODE:
        raise ValueError(f"weights are in {weights.format}, must be in int4 or int5")
    return weights.data.reshape(weights.shape[0], -1)
