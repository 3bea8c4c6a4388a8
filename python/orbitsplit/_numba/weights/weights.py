"""Sizes, rows and products of quantised weights; the counterpart of weights.cpp and bind_weights.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._numba.codec.frame import check_threads, view_bytes
from orbitsplit._numba.jit import slices

from .layout import GROUP, INT4, INT5, INT8, row_bytes
from .products import dequantised, rounded
from .products import multiply as multiply_rows

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

    from .layout import Bytes, Singles


def check_size(what: str, found: int, unit: str, needed: int) -> None:
    """Raise `ValueError` unless they are equal."""
    if found != needed:
        raise ValueError(f"{what} has {found}{unit}, the shape needs {needed}")


def quantized_bytes(format: int, rows: int, columns: int) -> int:
    """Return the size of a matrix."""
    if format not in (INT8, INT4, INT5):
        raise ValueError(f"weight format {format} is unknown; 0 is int8, 1 is int4, 2 is int5")
    if rows < 0:
        raise ValueError(f"rows is {rows}, it must be at least 0")
    if columns < GROUP or columns % GROUP:
        raise ValueError(f"columns is {columns}, it must be a multiple of 32 from 32")
    if columns * 4 * max(1, rows) >= 1 << 63:
        raise ValueError("the matrix has 2^63 bytes or more")
    return rows * row_bytes(format, columns // GROUP)


def dequantize(data: Buffer, format: int, rows: int, columns: int, first: int, out: Buffer, threads: int = 1) -> None:
    """Write the values of rows from `first` on into memory."""
    weights, values = _matrix(data, format, rows, columns), singles(out, "out")
    count = values.size // columns
    check_size("out", values.size, " values", count * columns)
    if not 0 <= first <= rows - count:
        raise ValueError(f"rows {first} to {first + count} are not within the {rows} rows")
    check_threads(threads)
    for start, stop in slices(count, columns):
        _write(values, start, columns, dequantised(format, weights[first + start : first + stop]))


def dequantize_rows(
    data: Buffer, format: int, rows: int, columns: int, indices: Buffer, out: Buffer, threads: int = 1
) -> None:
    """Write the values of the rows that `indices` names into memory."""
    weights, values = _matrix(data, format, rows, columns), singles(out, "out")
    wanted: npt.NDArray[np.int64] = view_bytes(indices).view(np.int64)
    if values.size != wanted.size * columns:
        raise ValueError(f"out has {values.size} values, {wanted.size} rows of {columns} columns are to be written")
    outside = wanted[(wanted < 0) | (wanted >= rows)]
    if outside.size:
        raise ValueError(f"row {outside[0]} is not one of the {rows} rows")
    check_threads(threads)
    for start, stop in slices(wanted.size, columns):
        _write(values, start, columns, dequantised(format, weights[wanted[start:stop]]))


def multiply(
    data: Buffer, format: int, rows: int, columns: int, x: Buffer, inputs: int, out: Buffer, threads: int = 1
) -> None:
    """Write the products of `inputs` rows of x with all rows of weights into memory."""
    quantized_bytes(INT8, inputs, columns)
    weights = _matrix(data, format, rows, columns)
    of_x, y = singles(x, "x"), singles(out, "out")
    check_size("x", of_x.size, " values", inputs * columns)
    check_size("y", y.size, " values", inputs * rows)
    check_threads(threads)
    codes = rounded(of_x.reshape(inputs, columns))
    table = y.reshape(inputs, rows)
    for start, stop in slices(rows if inputs else 0, columns * inputs):
        table[:, start:stop] = multiply_rows(format, weights[start:stop], codes)


def singles(memory: Buffer, name: str) -> Singles:
    """Return memory as float32."""
    view = view_bytes(memory)
    if view.size % 4 or (view.size and view.ctypes.data % 4):
        raise ValueError(f"{name} is not aligned in memory")
    return view.view(np.float32)


def _matrix(data: Buffer, format: int, rows: int, columns: int) -> Bytes:
    view = view_bytes(data)
    check_size("data", view.size, " bytes", quantized_bytes(format, rows, columns))
    return view.reshape(rows, row_bytes(format, columns // GROUP))


def _write(out: Singles, first: int, columns: int, values: Singles) -> None:
    out[first * columns : first * columns + values.size] = values.reshape(-1)
