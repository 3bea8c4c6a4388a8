"""Quantities with a unit, as people write them in network files, to SI numbers.

Bytes, bytes per second, seconds, FLOP per second. GB means 1e9 bytes, GiB 2**30 bytes, and a lower-case b is a bit.
"""

from __future__ import annotations

import math
import re

from .validation import quoted

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_BYTES = {f"{prefix}B": factor for prefix, factor in _PREFIXES.items()}
_DECIMAL = {prefix: factor for prefix, factor in _PREFIXES.items() if not prefix.endswith("i")}

UNITS: dict[str, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes_per_s": {
        **{f"{unit}/s": factor for unit, factor in _BYTES.items()},
        **{f"{prefix}bit/s": factor / 8 for prefix, factor in _DECIMAL.items()},
    },
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0},
    "flop_per_s": {f"{prefix}FLOP/s": factor for prefix, factor in _DECIMAL.items()},
}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def parse_quantity(value: object, kind: str, where: str) -> float:
    """Return `value` in the SI unit of `kind` (a key of `UNITS`); a bare number is already in it.

    Example:
        >>> parse_quantity("10 Mbit/s", "bytes_per_s", "rate")
        1250000.0

    Raises:
        TypeError: Neither a number nor a string; the message starts with `where`.
        ValueError: Not a number with a known unit, not finite, or negative; the message starts with `where`.
    """
    units = UNITS[kind]
    wanted = f"{where} is {quoted(value)}, expected a number with one of {', '.join(units)}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(wanted)
    if not isinstance(value, str):
        number = float(value)
    elif (match := _QUANTITY.fullmatch(value)) and match[2] in units:
        number = float(match[1]) * units[match[2]]
    else:
        raise ValueError(wanted)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{where} is {quoted(value)}, it must be finite and not negative")
    return number


def format_bytes(count: float) -> str:
    """Return `count` bytes with the decimal prefix a person would choose, e.g. `1.31 MB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return `seconds` with the unit a person would choose, e.g. `12.3 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
