"""Values to quantised weights; the counterpart of quantize.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._numba.codec.frame import check_threads, view_bytes
from orbitsplit._numba.float_bits import halves_from_singles
from orbitsplit._numba.jit import inlined, jit, slices

from .layout import CODE_BYTES, GROUP, HALF_BYTES, INT4, INT5, INT8, INT8_GROUP_BYTES, row_bytes
from .weights import check_size, quantized_bytes, singles

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .layout import Bytes, Singles

_LARGEST_INT8 = np.float32(127)
_LARGEST_INT4, _LARGEST_INT5 = 15.0, 31.0
_LARGEST_UNSIGNED = 255.0
_ATTEMPTS = 26
_FEWEST_STEPS = 16
_SMALLEST_NORMAL = np.float32(2.0**-126)
_MOST_SCALE = np.float32(65520)  # from it on, float16 rounds to infinity
_OPERATIONS_OF_A_VALUE = 500


def quantize(
    values: Buffer, format: int, rows: int, columns: int, out: Buffer, importance: Buffer, threads: int = 1
) -> None:
    """Quantise row-major values into memory."""
    target = view_bytes(out)
    source, weights = singles(values, "values"), singles(importance, "importance")
    check_size("out", target.size, " bytes", quantized_bytes(format, rows, columns))
    check_size("values", source.size, " values", rows * columns)
    _check_importance(weights, columns)
    check_threads(threads)
    source = source.reshape(rows, columns)
    _check_values(format, source)
    quantised = target.reshape(rows, row_bytes(format, columns // GROUP))
    if not rows:
        return  # empty memory cannot be written
    if format == INT8:
        _quantize_int8(source, quantised)
        return
    weights = weights if weights.size else np.ones(columns, np.float32)
    largest = {INT4: _LARGEST_INT4, INT5: _LARGEST_INT5}[format]
    for first, last in slices(rows, columns * _OPERATIONS_OF_A_VALUE):
        _quantize_with_minima(largest, CODE_BYTES[format], source[first:last], weights, quantised[first:last])


def _check_importance(importance: Singles, columns: int) -> None:
    if not importance.size:
        return
    check_size("importance", importance.size, " values", columns)
    if not np.all((importance >= 0) & np.isfinite(importance)):
        raise ValueError("importance must be finite and at least 0")


def _check_values(format: int, values: Singles) -> None:
    is_finite = np.isfinite(values)
    is_stored = is_finite & ((format != INT8) | (np.abs(values) / _LARGEST_INT8 < _MOST_SCALE))
    if is_stored.all():
        return
    row, column = np.argwhere(~is_stored)[0]
    what = "int8 cannot store: the largest is 8.32e+06" if is_finite[row, column] else "is not finite"
    raise ValueError(f"row {row} has a weight that {what}")


def _quantize_int8(values: Singles, out: Bytes) -> None:
    groups = values.reshape(values.shape[0], values.shape[1] // GROUP, GROUP)
    scales = np.abs(groups).max(axis=2, initial=np.float32(0)) / _LARGEST_INT8
    is_usual = scales >= _SMALLEST_NORMAL
    inverse = np.where(is_usual, np.float32(1) / np.where(is_usual, scales, np.float32(1)), np.float32(0))
    scaled = groups * inverse[..., None]
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    codes = np.minimum(whole + (magnitude - whole >= 0.5), _LARGEST_INT8)
    blocks = out.reshape(*groups.shape[:2], INT8_GROUP_BYTES)
    blocks[..., :2] = halves_from_singles(scales)[..., None].view(np.uint8)
    blocks[..., 2:] = np.where(scaled < 0, -codes, codes).astype(np.int8).view(np.uint8)


@inlined
def _rounded_within(value: float, largest: float) -> float:
    return min(max(np.rint(value), 0.0), largest)


@jit
def _least_squares(
    values: Singles,
    importance: Singles,
    moments: tuple[float, float, float],
    inverse: float,
    minimum: float,
    largest: float,
) -> tuple[float, float, float]:
    """Return scale, minimum and squared error of the best fit for the codes that a scale and a minimum give."""
    v_sum, w_sum, ww_sum = moments
    q_sum = qq_sum = wq_sum = 0.0
    for i in range(GROUP):
        w = np.float64(values[i])
        code = _rounded_within((w + minimum) * inverse, largest)
        weighted = np.float64(importance[i]) * code
        q_sum += weighted
        qq_sum += weighted * code
        wq_sum += weighted * w
    determinant = v_sum * qq_sum - q_sum * q_sum
    scale = offset = 0.0
    if determinant > 0:
        scale = (v_sum * wq_sum - w_sum * q_sum) / determinant
        offset = (qq_sum * w_sum - q_sum * wq_sum) / determinant
    if (not determinant > 0) or offset > 0:
        scale = wq_sum / qq_sum if qq_sum != 0 else 0.0
        offset = 0.0
    if not scale > 0:
        return 0.0, 0.0, np.inf
    return scale, 0.0 - offset, (ww_sum - scale * wq_sum) - offset * w_sum


@jit
def _fit_group(values: Singles, importance: Singles, largest: float) -> tuple[float, float]:
    low, high = 0.0, -np.inf
    v_sum = w_sum = ww_sum = 0.0
    for i in range(GROUP):
        w, v = np.float64(values[i]), np.float64(importance[i])
        low, high = min(low, w), max(high, w)
        v_sum += v
        w_sum += v * w
        ww_sum += (v * w) * w
    extent = high - low
    if not extent > 0:
        return 0.0, 0.0 - low  # never -0
    best = extent / largest, 0.0 - low, np.inf
    whole_steps = int(_LARGEST_INT5) - 1 - _FEWEST_STEPS if largest == _LARGEST_INT5 else 0
    for k in range(_ATTEMPTS + whole_steps):
        steps = (largest - 1.5) + 0.1 * k if k < _ATTEMPTS else np.float64(_FEWEST_STEPS + k - _ATTEMPTS)
        found = _least_squares(values, importance, (v_sum, w_sum, ww_sum), steps / extent, 0.0 - low, largest)
        if found[2] < best[2]:
            best = found
    return best[0], best[1]


@jit
def _write_codes(values: Singles, scale: float, minimum: float, largest: float, out: Bytes) -> None:
    out[:] = 0
    for i in range(GROUP):
        code = 0
        if scale > 0:
            code = int(_rounded_within((np.float64(values[i]) + minimum) / scale, largest))
        out[i % HALF_BYTES] |= (code & 15) << 4 * (i // HALF_BYTES)
        if code > 15:
            out[HALF_BYTES + i // 8] |= 1 << i % 8


@jit
def _quantize_with_minima(largest: float, code_bytes: int, values: Singles, importance: Singles, out: Bytes) -> None:
    groups = values.shape[1] // GROUP
    scales, minima = np.empty(groups), np.empty(groups)
    units = np.empty(2, np.float32)
    for row in range(values.shape[0]):
        for g in range(groups):
            part = slice(g * GROUP, (g + 1) * GROUP)
            scales[g], minima[g] = _fit_group(values[row, part], importance[part], largest)
        units[0] = scales.max() / _LARGEST_UNSIGNED
        units[1] = minima.max() / _LARGEST_UNSIGNED
        out[row, :8] = units.view(np.uint8)
        scale_unit, minimum_unit = np.float64(units[0]), np.float64(units[1])
        for g in range(groups):
            s = m = 0.0
            if scales[g] > 0 and scale_unit > 0:
                s = max(1.0, _rounded_within(scales[g] / scale_unit, _LARGEST_UNSIGNED))
            if minimum_unit > 0:
                m = _rounded_within(minima[g] / minimum_unit, _LARGEST_UNSIGNED)
            out[row, 8 + g], out[row, 8 + groups + g] = int(s), int(m)
            part = slice(g * GROUP, (g + 1) * GROUP)
            at = 8 + 2 * groups + g * code_bytes
            codes = out[row, at : at + code_bytes]
            _write_codes(values[row, part], scale_unit * s, minimum_unit * m, largest, codes)
