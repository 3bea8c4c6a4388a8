"""Matrices of weights in 8, 5 or 4 bits, in memory or mapped from a file, and products with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from orbitsplit._backend import backend
from orbitsplit._io.validation import check_is_integer, check_range, check_string, quoted

Singles = npt.NDArray[np.float32]

# The numbers of formats in the core.
FORMATS = {"int8": 0, "int4": 1, "int5": 2}
_MOST_THREADS = 256


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """The weight W [rows, columns] of a linear layer or an embedding, in 8, 5 or 4 bits.

    `format` is "int8" (8.5 bits a weight: a float16 scale for each 32, byte for byte the Q8_0 of GGUF files), "int5" or
    "int4" (5.5 and 4.5 bits, and 8 bytes for each row). `data` has the bytes, as a contiguous uint8 array of one or two
    axes that may be a memory map; it is not copied and becomes read-only in this object. The formats are specified in
    `cpp/include/orbitsplit/weights.hpp`.

    Raises:
        TypeError: `data` is no uint8 array, or another argument has a wrong type.
        ValueError: There is no such format, or shape and data do not fit each other.

    >>> import numpy as np
    >>> weights = QuantizedWeights.quantize(np.ones((2, 32), np.float32), "int8")
    >>> weights.matmul(np.ones((1, 32), np.float32))
    array([[31.998049, 31.998049]], dtype=float32)
    """

    format: Literal["int8", "int4", "int5"]
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        check_format("format", self.format)
        object.__setattr__(self, "shape", _matrix_shape(self.shape))
        if not isinstance(self.data, np.ndarray) or self.data.dtype != np.uint8:
            raise TypeError(f"data is {_described(self.data)}, it must be a uint8 array")
        if not self.data.flags.c_contiguous:
            raise ValueError("data is not C-contiguous; np.ascontiguousarray(data) makes a contiguous copy")
        needed = quantized_bytes(self.format, self.shape)
        if self.data.size != needed:
            raise ValueError(f"data has {self.data.size} bytes, {self.format} weights {self.shape} have {needed}")
        view = np.asarray(self.data).reshape(-1)
        view.flags.writeable = False
        object.__setattr__(self, "data", view)

    @classmethod
    def quantize(
        cls,
        values: npt.ArrayLike,
        format: Literal["int8", "int4", "int5"],
        *,
        importance: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> QuantizedWeights:
        """Quantise a matrix [rows, columns], where columns is a multiple of 32.

        `importance` [columns] weights the squared errors that int4 and int5 minimise: the mean square of what each
        column is multiplied by. int8 rounds each weight to nearest and does not use it.

        Raises:
            ValueError: Of the shape, of values that are not finite or too large for int8, or of `importance`.
        """
        check_format("format", format)
        matrix = np.ascontiguousarray(values, np.float32)
        if matrix.ndim != 2:
            raise ValueError(f"values has {matrix.ndim} axes, a matrix has 2")
        rows, columns = matrix.shape
        data = np.empty(quantized_bytes(format, (rows, columns)), np.uint8)
        weights = np.ascontiguousarray(() if importance is None else importance, np.float32)
        if weights.ndim != 1:
            raise ValueError(f"importance has {weights.ndim} axes, it must have 1")
        _check_threads(threads)
        backend().quantize(matrix, FORMATS[format], rows, columns, data, weights, threads)
        return cls(format, (rows, columns), data)

    @property
    def bytes(self) -> int:
        """The size of the matrix in bytes."""
        return self.data.size

    @property
    def bits_per_weight(self) -> float:
        """Bits for each weight, with scales; nan for a matrix without rows."""
        rows, columns = self.shape
        return 8 * self.data.size / (rows * columns) if rows else float("nan")

    def dequantize(self, rows: slice | None = None, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return the float32 values [rows, columns], of all rows or of a slice of them without a step.

        To multiply with many rows of x, dequantise 1,024 rows at a time into one `out` for a product of floats: faster
        than `matmul` from about 100 rows of x on (131,072 x 640, AVX2: `pytest benches/bench_weights.py`).

        Raises:
            TypeError: `rows` is no slice, or `out` no float32 array.
            ValueError: The slice has a step, or `out` another shape.
        """
        first, stop = self._range(rows)
        values = _output("out", out, (stop - first, self.shape[1]))
        _check_threads(threads)
        backend().dequantize(self.data, *self._numbers, first, values, threads)
        return values

    def rows(self, indices: npt.ArrayLike, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return the float32 values [*indices.shape, columns] of the rows that `indices` names: an embedding.

        Raises:
            TypeError: `indices` has no integers.
            ValueError: An index is negative or has no row, or `out` has another shape.
        """
        wanted = np.asarray(indices)
        if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
            raise TypeError(f"indices is {_described(wanted)}, it must have integers")
        wanted = np.ascontiguousarray(wanted, np.int64)
        values = _output("out", out, (*np.shape(indices), self.shape[1]))
        _check_threads(threads)
        backend().dequantize_rows(self.data, *self._numbers, wanted, values, threads)
        return values

    def matmul(self, x: Singles, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return x W^T, float32 [..., rows], for float32 x [..., columns].

        x is rounded to 16 bits in groups of 32: an error of 2^-16 of the largest magnitude in the group. The result is
        the same bits on every processor, with every backend and number of threads. A row of x with NaN or infinity
        gives NaN.

        Raises:
            TypeError: x or `out` is no float32 array.
            ValueError: x or `out` has another shape or is not contiguous.
        """
        _check_singles("x", x)
        rows, columns = self.shape
        if x.ndim < 1 or x.shape[-1] != columns:
            raise ValueError(f"x has the shape {x.shape}, its rows must have {columns} elements")
        values = _output("out", out, (*x.shape[:-1], rows))
        _check_threads(threads)
        inputs = x.size // columns
        backend().multiply(self.data, *self._numbers, x, inputs, values, threads)
        return values

    @property
    def _numbers(self) -> tuple[int, int, int]:
        return FORMATS[self.format], *self.shape

    def _range(self, rows: slice | None) -> tuple[int, int]:
        if rows is None:
            return 0, self.shape[0]
        if not isinstance(rows, slice):
            raise TypeError(f"rows is {type(rows).__name__}, it must be a slice")
        first, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"rows has the step {step}, it must have none")
        return first, max(first, stop)


def quantized_bytes(format: str, shape: tuple[int, int]) -> int:
    """Return the size of a matrix [rows, columns] in bytes.

    Raises `ValueError` for a format or a shape that does not exist.
    """
    check_format("format", format)
    size: int = backend().quantized_bytes(FORMATS[format], *_matrix_shape(shape))
    return size


def check_format(name: str, value: Any) -> None:
    """Raise `TypeError` or `ValueError` for what is no format of weights."""
    check_string(name, value)
    if value not in FORMATS:
        raise ValueError(f"{name} is {quoted(value)}, must be one of {', '.join(FORMATS)}")


def _matrix_shape(shape: Any) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"shape is {shape!r}, it must be (rows, columns)")
    rows, columns = shape
    check_is_integer("rows", rows)
    check_is_integer("columns", columns)
    largest = 2**63 - 1
    if not (abs(rows) <= largest and abs(columns) <= largest):
        raise ValueError("the matrix has 2^63 bytes or more")
    return int(rows), int(columns)


def _check_threads(threads: Any) -> None:
    check_is_integer("threads", threads)
    check_range("threads", threads, 1, _MOST_THREADS)


def _described(x: Any) -> str:
    return f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"


def _check_singles(name: str, x: Any) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is {_described(x)}, it must be a float32 array")
    if not x.flags.c_contiguous or not x.flags.aligned:
        raise ValueError(f"{name} is not C-contiguous and aligned; np.ascontiguousarray({name}) makes such a copy")


def _output(name: str, out: Singles | None, shape: tuple[int, ...]) -> Singles:
    if out is None:
        return np.empty(shape, np.float32)
    _check_singles(name, out)
    if out.shape != shape:
        raise ValueError(f"{name} has the shape {out.shape}, it must be {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return out
