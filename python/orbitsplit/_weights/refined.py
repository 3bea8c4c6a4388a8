"""Matrices in int4 some of whose rows are in int8: tables of embeddings, where a few tokens are most of a text."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .quantized import QuantizedWeights, Singles, quantized_bytes

_INDEX = np.dtype("<i4")


class RefinedWeights:
    """A matrix W [rows, columns] in int4, with other values in int8 for `refined` of its rows.

    `data` has the int4 matrix of all rows, the indices of the refined rows in ascending order (int32, little-endian)
    and the int8 matrix of these, byte after byte; it is not copied and becomes read-only. Products are those of both
    matrices: the second one's outputs take the place of the first one's. Methods are those of `QuantizedWeights`.

    Raises `ValueError` for data of another size, and for indices that do not ascend or have no row.
    """

    format: Literal["int4"] = "int4"

    def __init__(self, shape: tuple[int, int], refined: int, data: npt.NDArray[np.uint8]) -> None:
        needed = refined_bytes(shape, refined)
        if data.size != needed:
            raise ValueError(f"data has {data.size} bytes, weights {shape} with {refined} rows in int8 have {needed}")
        self.data = data.reshape(-1)
        self.data.flags.writeable = False
        self.shape = shape
        of_all = quantized_bytes("int4", shape)
        at = of_all + _INDEX.itemsize * refined
        self._all = QuantizedWeights("int4", shape, self.data[:of_all])
        self._few = QuantizedWeights("int8", (refined, shape[1]), self.data[at:])
        self.indices = self.data[of_all:at].copy().view(_INDEX).astype(np.int64)
        if refined and not (
            self.indices[0] >= 0 and self.indices[-1] < shape[0] and bool((np.diff(self.indices) > 0).all())
        ):
            raise ValueError(f"indices of rows in int8 must ascend from 0 to at most {shape[0] - 1}")

    @classmethod
    def refine(cls, weights: QuantizedWeights, indices: npt.ArrayLike, values: npt.ArrayLike) -> RefinedWeights:
        """Return a matrix in int4 with the float values [len(indices), columns] of some rows, rounded to int8."""
        chosen = np.asarray(indices).astype(_INDEX)
        few = QuantizedWeights.quantize(values, "int8")
        data = np.concatenate([weights.data, chosen.view(np.uint8), few.data])
        return cls(weights.shape, len(chosen), data)

    @property
    def bytes(self) -> int:
        """The size of the matrix in bytes."""
        return self.data.size

    def dequantize(self, rows: slice | None = None, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return the float32 values of all rows or of a slice of them."""
        values = self._all.dequantize(rows, out=out, threads=threads)
        first, stop, _ = (rows or slice(None)).indices(self.shape[0])
        start, end = np.searchsorted(self.indices, (first, max(first, stop)))
        if end > start:
            values[self.indices[start:end] - first] = self._few.dequantize(slice(int(start), int(end)), threads=threads)
        return values

    def rows(self, indices: npt.ArrayLike, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return the float32 values [*indices.shape, columns] of the rows that `indices` names: an embedding."""
        values = self._all.rows(indices, out=out, threads=threads)
        at = np.searchsorted(self.indices, indices)
        is_refined = np.append(self.indices, -1)[at] == indices  # of an index behind the last one too
        values[is_refined] = self._few.rows(at[is_refined], threads=threads)
        return values

    def matmul(self, x: Singles, *, out: Singles | None = None, threads: int = 1) -> Singles:
        """Return x W^T, float32 [..., rows], for float32 x [..., columns]."""
        values = self._all.matmul(x, out=out, threads=threads)
        values[..., self.indices] = self._few.matmul(x, threads=threads)
        return values


Matrix: TypeAlias = "QuantizedWeights | RefinedWeights"


def refined_bytes(shape: tuple[int, int], refined: int) -> int:
    """Return the size of a matrix [rows, columns] in int4 with so many rows in int8."""
    if not 0 <= refined <= shape[0]:
        raise ValueError(f"{refined} rows in int8 of a matrix with {shape[0]}")
    return quantized_bytes("int4", shape) + refined * _INDEX.itemsize + quantized_bytes("int8", (refined, shape[1]))


def matrix_of_bytes(format: str, shape: tuple[int, int], refined: int, data: npt.NDArray[np.uint8]) -> Matrix:
    """Return the matrix of stored bytes, of which so many rows are refined."""
    if refined:
        return RefinedWeights(shape, refined, data)
    kind: Any = format
    return QuantizedWeights(kind, shape, data)
