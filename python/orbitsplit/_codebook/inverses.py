"""Inverses of matrices that a codebook leaves out: the backend computes them, the same numbers on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._backend import backend
from orbitsplit._io.validation import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orbitsplit._io.tensor_file import Arrays

# The scalar of an entry that has a matrix and no inverse: true, its codec has the one that `inverse_of` returns.
INVERSE_FOLLOWS = "inverse_follows"

# The widest matrix whose inverse `calibrate` leaves out. Computing it takes width^3 operations where a codec is made,
# a tenth of a second at 640; of several thousand channels it would be a minute before a stage could start.
MOST_WIDTH = 1024


def check_follows(what: str, scalars: Mapping[str, Any], arrays: Mapping[str, str]) -> None:
    """Raise `ValueError` if an entry leaves out its inverse and has one, or has no matrix that it follows from."""
    if INVERSE_FOLLOWS not in scalars:
        return
    if scalars[INVERSE_FOLLOWS] is not True:
        raise ValueError(f"{INVERSE_FOLLOWS} of {what} is {quoted(scalars[INVERSE_FOLLOWS])}, it must be true")
    if "matrix" not in arrays or "inverse" in arrays:
        raise ValueError(f"the inverse of {what} follows from its matrix, so it must have a matrix and no inverse")


def numbers_of(scalars: Mapping[str, Any], arrays: Mapping[str, str], tensors: Arrays) -> dict[str, Any]:
    """Return the arguments of `CalibratedCodec` for an entry: its scalars, its arrays, and an inverse that follows."""
    numbers = {**{name: tensors[tensor] for name, tensor in arrays.items()}, **scalars}
    if numbers.pop(INVERSE_FOLLOWS, False):
        numbers["inverse"] = backend().inverse_of(np.ascontiguousarray(numbers["matrix"], np.float32))
    return numbers
