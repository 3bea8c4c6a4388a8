"""Inverses of matrices of calibrated codecs; the counterpart of inverse.cpp, with the same operations in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._numba.text import number

if TYPE_CHECKING:
    import numpy.typing as npt

    Doubles = npt.NDArray[np.float64]
    Singles = npt.NDArray[np.float32]


def inverse_of(matrix: Singles) -> Singles:
    """Return the inverse [width, width] of a matrix; raise `ValueError` for one without an inverse in float32."""
    if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32:
        raise TypeError("matrix must be an array of float32")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError("matrix must be a square array of two axes")
    if not matrix.size:
        raise ValueError("matrix has 0 numbers, a width of 0 needs its square, and at least 1")
    a = matrix.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        pivots = [_eliminate(a, k) for k in range(len(a))]
    for k in reversed(range(len(a))):
        a[:, [k, pivots[k]]] = a[:, [pivots[k], k]]
    for value in a[~(np.abs(a) <= np.finfo(np.float32).max)][:1]:
        raise ValueError(f"matrix has no inverse in float32: a number of it is {number(value)}")
    return a.astype(np.float32)


def _eliminate(a: Doubles, k: int) -> int:
    """Make column k of the matrix that of its inverse; return the row that was exchanged with row k."""
    magnitudes = np.abs(a[k:, k])
    # NaN is never larger, as in C++.
    best = k if np.isnan(magnitudes[0]) else k + int(np.argmax(np.where(np.isnan(magnitudes), -1.0, magnitudes)))
    pivot = a[best, k]
    if not 0 < abs(pivot) < np.inf:
        raise ValueError(f"matrix has no inverse: its column {k} has the pivot {number(pivot)}")
    a[[k, best]] = a[[best, k]]
    reciprocal = 1.0 / pivot
    a[k, k] = 1.0
    a[k] *= reciprocal
    row, factors = a[k].copy(), a[:, k].copy()
    a[:, k] = 0.0
    a -= factors[:, None] * row
    a[k] = row
    return best
