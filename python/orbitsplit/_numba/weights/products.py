"""Kernels of quantised weights; the counterpart of kernels/scalar/products.cpp.

Every operation on a float is the one the C++ does, in its order and in float32: the results are the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._numba.jit import jit

from .layout import GROUP, INT8, int8_parts, parts_with_minima

if TYPE_CHECKING:
    from .layout import Bytes, Codes, Singles

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_LARGEST_CODE = np.float32(32639.0)
_SMALLEST_SCALE = np.float32(2.0**-126)
_LANES = 8


def rounded(x: Singles) -> tuple[Codes, Singles, Singles]:
    """Return codes, scales and sums of the groups of each row of x."""
    groups = x.reshape(x.shape[0], x.shape[1] // GROUP, GROUP)
    largest = (groups.view(np.uint32) & _MAGNITUDE).max(axis=2)
    is_finite = largest < _INFINITY
    with np.errstate(invalid="ignore"):
        scales = np.maximum(largest.view(np.float32) / _LARGEST_CODE, _SMALLEST_SCALE)
        codes = np.rint(groups * (np.float32(1) / scales)[..., None])
    codes = np.where(is_finite[..., None], codes, np.float32(0)).astype(np.int16)
    scales = np.where(is_finite, scales, np.float32(np.nan))
    sums = scales * codes.sum(axis=2, dtype=np.int32).astype(np.float32)
    return codes, scales, sums


def multiply(format: int, weights: Bytes, x: tuple[Codes, Singles, Singles]) -> Singles:
    """Return the products of all rows of x with all rows of weights."""
    codes, scales, sums = x
    y = np.empty((codes.shape[0], weights.shape[0]), np.float32)
    with np.errstate(all="ignore"):
        if format == INT8:
            _sum_groups(*int8_parts(weights), codes, scales, y)
        else:
            units, s, minima, q = parts_with_minima(format, weights)
            _sum_groups(s, q, codes, scales, y)
            subtracted = np.empty_like(y)
            _sum_minima(minima, sums, subtracted)
            y = units[:, 0] * y - units[:, 1] * subtracted
    return _quiet(y)


def dequantised(format: int, weights: Bytes) -> Singles:
    """Return the values of rows of weights."""
    with np.errstate(all="ignore"):
        if format == INT8:
            scales, codes = int8_parts(weights)
            values = scales[..., None] * codes.astype(np.float32)
        else:
            units, s, m, codes = parts_with_minima(format, weights)
            scales, minima = units[:, :1] * s, units[:, 1:] * m
            values = scales[..., None] * codes.astype(np.float32) - minima[..., None]
    return _quiet(values.reshape(weights.shape[0], values.shape[1] * GROUP))


def _quiet(values: Singles) -> Singles:
    values[np.isnan(values)] = np.float32(np.nan)
    return values


@jit
def _total(sums: Singles) -> float:
    first = (sums[0] + sums[4]) + (sums[2] + sums[6])
    second = (sums[1] + sums[5]) + (sums[3] + sums[7])
    return first + second


@jit
def _sum_groups(of_weights: Singles, q: Codes, x: Codes, scales: Singles, y: Singles) -> None:
    lanes = np.empty(_LANES, np.float32)
    for r in range(x.shape[0]):
        for n in range(q.shape[0]):
            lanes[:] = 0
            for g in range(q.shape[1]):
                scale = of_weights[n, g] * scales[r, g]
                for j in range(_LANES):
                    d = np.int32(0)
                    for i in (2 * j, 2 * j + 1, 2 * j + 16, 2 * j + 17):
                        d += np.int32(q[n, g, i]) * np.int32(x[r, g, i])
                    lanes[j] += scale * np.float32(d)
            y[r, n] = _total(lanes)


@jit
def _sum_minima(minima: Singles, sums: Singles, y: Singles) -> None:
    lanes = np.empty(_LANES, np.float32)
    for r in range(sums.shape[0]):
        for n in range(minima.shape[0]):
            lanes[:] = 0
            for g in range(minima.shape[1]):
                lanes[g % _LANES] += minima[n, g] * sums[r, g]
            y[r, n] = _total(lanes)
