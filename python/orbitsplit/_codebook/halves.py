"""Matrices of codecs in files: as float16 where that has every number exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Of a codec's arrays those that are large; `calibrate` rounds them, and measures losses with what it rounded.
MATRICES = ("matrix", "inverse")


def stored(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of a codec as files have it: a matrix of numbers that float16 has as float16, others as given."""
    if name not in MATRICES:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array
