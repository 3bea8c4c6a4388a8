"""Losses of levels that a cut does not have: null in files, None or infinite from callers, infinite in arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def absent_as_infinity(loss: Any) -> Any:
    """Return nested losses with infinity for None; arrays of numbers as they are."""
    if isinstance(loss, np.ndarray):
        return absent_as_infinity(loss.tolist()) if loss.dtype == object else loss
    if isinstance(loss, (list, tuple)):
        return [absent_as_infinity(value) for value in loss]
    return math.inf if loss is None else loss


def infinity_as_absent(loss: Any) -> Any:
    """Return nested losses as lists with None for infinity, which JSON does not have."""
    if isinstance(loss, (list, tuple)):
        return [infinity_as_absent(value) for value in loss]
    return None if loss == math.inf else loss
