"""Kernels of a decoder's layer; the counterpart of kernels/vector/rows.hpp.

Every operation on a float is the one the C++ does, in its order and in float32: the results are the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._numba.jit import jit

if TYPE_CHECKING:
    import numpy.typing as npt

    from orbitsplit._numba.weights.layout import Singles

_LANES = 8
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_UPPER, _LN2_LOWER = np.float32(0.693359375), np.float32(-2.12194440e-4)
_MAGIC = np.float32(12582912.0)
_POLYNOMIAL = tuple(
    np.float32(factor)
    for factor in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_ONE = np.float32(1)
_TWICE_ROOT, _CUBIC = np.float32(1.5957691216), np.float32(0.044715)


def normalised(x: Singles, scale: Singles, epsilon: float) -> Singles:
    """Return the RMS norm of the rows of x [..., count]."""
    mean = _totals((x * x).reshape(-1, x.shape[-1])) / np.float32(x.shape[-1])
    factor = _ONE / np.sqrt(mean + np.float32(epsilon))
    result: Singles = (x * factor.reshape(*x.shape[:-1], 1)) * scale
    return result


def rotated(x: Singles, cosines: Singles, sines: Singles) -> Singles:
    """Return the heads x [rows, heads, size] rotated by the angles [rows, size]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cosines[:, None], sines[:, None]
    upper = first * c[..., :half] - second * s[..., :half]
    return np.concatenate([upper, second * c[..., half:] + first * s[..., half:]], axis=-1)


def attended(query: Singles, keys: Singles, values: Singles, scale: float, is_seen: npt.NDArray[np.bool_]) -> Singles:
    """Return softmax(scale q K^T) V for query [size], keys and values [tokens, size] of those that are seen."""
    tokens = len(keys)
    scores = _totals(query * keys) * np.float32(scale)
    greatest = np.fmax.reduce(scores[is_seen], initial=np.float32(-np.inf))
    weights = np.zeros(-(-tokens // _LANES) * _LANES, np.float32)
    weights[:tokens] = np.where(is_seen, exponentials(scores - greatest), np.float32(0))
    total = _totals(weights[None])[0]
    weights = weights * (np.float32(0) if total == 0 else _ONE / total)
    return _weighted_sum(weights, np.ascontiguousarray(values))


def activated(activation: int, gate: Singles, up: Singles) -> Singles:
    """Return act(gate) * up; 0 is SiLU, 1 the tanh approximation of GELU."""
    power = -gate
    if activation == 1:
        power = (power + power * (gate * gate) * _CUBIC) * _TWICE_ROOT
    result: Singles = gate / (exponentials(power) + _ONE) * up
    return result


def exponentials(x: Singles) -> Singles:
    """Return exp(x), with x from -87 to 88; what is beyond counts as that."""
    x = np.where(x < _LEAST, _LEAST, x)
    x = np.where(x > _MOST, _MOST, x)
    shifted = x * _LOG2_E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_UPPER) - n * _LN2_LOWER
    p = r * _POLYNOMIAL[0] + _POLYNOMIAL[1]
    for factor in _POLYNOMIAL[2:]:
        p = p * r + factor
    p = (p * (r * r) + r) + _ONE
    bits = (shifted.view(np.uint32) << np.uint32(23)) + np.uint32(127 << 23)
    result: Singles = p * bits.view(np.float32)
    return result


@jit
def _totals(products: Singles) -> Singles:
    totals = np.empty(len(products), np.float32)
    sums = np.empty(_LANES, np.float32)
    for row in range(len(products)):
        sums[:] = 0
        for i in range(products.shape[1]):
            sums[i % _LANES] += products[row, i]
        first = (sums[0] + sums[4]) + (sums[2] + sums[6])
        totals[row] = first + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
    return totals


@jit
def _weighted_sum(weights: Singles, values: Singles) -> Singles:
    out = np.zeros(values.shape[1], np.float32)
    for t in range(len(values)):
        for i in range(values.shape[1]):
            out[i] += values[t, i] * weights[t]
    return out
