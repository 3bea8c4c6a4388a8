"""Numbers as they appear in messages, as in cpp/src/support/text.hpp."""

from __future__ import annotations

import math


def number(value: float, other: float = math.nan) -> str:
    """Return six significant digits, or as many as tell the number from one that it is compared to."""
    if value == other:
        return f"{value:.6g}"
    return next(f"{value:.{k}g}" for k in range(6, 18) if k == 17 or f"{value:.{k}g}" != f"{other:.{k}g}")


def size(value: float, other: float = math.nan) -> str:
    """Return a number of bytes with a decimal unit, or in full where that would not tell it from another."""
    rounded = _rounded_size(value)
    return rounded if value == other or rounded != _rounded_size(other) else f"{number(value, other)} B"


def _rounded_size(value: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{value / scale:.6g} {unit}"
    return f"{value:.6g} B"
