"""Numbers as they appear in messages, as in cpp/src/support/text.hpp."""

from __future__ import annotations


def number(value: float) -> str:
    """Return six significant digits."""
    return f"{value:.6g}"


def size(value: float) -> str:
    """Return a number of bytes with a decimal unit."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{value / scale:.6g} {unit}"
    return f"{value:.6g} B"
