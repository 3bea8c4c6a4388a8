"""Quantised weights, read as weights.hpp says, in float64; slow and obvious."""

from __future__ import annotations

import numpy as np


def dequantised(data, format, shape):
    """Return the values of a matrix."""
    rows, columns = shape
    groups = columns // 32
    lines = np.asarray(data).reshape(rows, -1)
    values = np.empty(shape)
    for row in range(rows):
        for g in range(groups):
            values[row, 32 * g : 32 * g + 32] = _group(lines[row], format, g, groups)
    return values


def _group(line, format, g, groups):
    if format == "int8":
        block = line[34 * g : 34 * g + 34]
        return float(block[:2].copy().view(np.float16)[0]) * block[2:].view(np.int8).astype(float)
    scale_unit, minimum_unit = line[:8].copy().view(np.float32).astype(float)
    stored = line[8 + 2 * groups :].reshape(groups, -1)[g]
    codes = np.concatenate([stored[:16] % 16, stored[:16] // 16]).astype(float)
    if format == "int5":
        fifth = int.from_bytes(stored[16:].tobytes(), "little")
        codes += [16.0 * (fifth >> column & 1) for column in range(32)]
    return scale_unit * line[8 + g] * codes - minimum_unit * line[8 + groups + g]


def product_bound(data, format, shape, x):
    """Return how far a product may be from the exact one, for each element.

    Each element of x is rounded to a multiple of its group's largest magnitude / 32639. Each lane then adds up the
    groups in float32, three roundings each, and lanes are added in three steps; int4 and int5 have the minima in a
    second sum, so that its magnitudes are those of both.
    """
    weights = np.abs(dequantised(data, format, shape))
    if format != "int8":
        lines = np.asarray(data).reshape(shape[0], -1)
        groups = shape[1] // 32
        unit = lines[:, 4:8].copy().view(np.float32).astype(float)
        minima = unit * lines[:, 8 + groups : 8 + 2 * groups]
        weights = weights + 2 * np.abs(np.repeat(minima, 32, axis=1))
    x = np.abs(x.astype(float))
    largest = np.repeat(x.reshape(len(x), shape[1] // 32, 32).max(axis=2), 32, axis=1)
    rounding = largest / 32639 * (0.5 + 2**-7) + 2.0**-126
    roundings = 3 * (shape[1] // 32) + 8
    return rounding @ weights.T + (x + rounding) @ weights.T * roundings * 2.0**-24
