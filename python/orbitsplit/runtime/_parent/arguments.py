"""Checks of arguments: a wrong type is a TypeError, a wrong value a ValueError; both name the argument and its value.

Besides Python's own numbers those of NumPy and 0-d tensors are accepted, and returned as Python's. A bool is no number.
"""

from __future__ import annotations

import math
from typing import Any

# The largest count that is accepted: what is beyond is a mistake.
LARGEST_COUNT = 2**31 - 1


def integer(name: str, value: Any, *, least: int, most: int = LARGEST_COUNT) -> int:
    """Return an integer from `least` to `most`."""
    found = _scalar(value)
    if type(found) is not int:
        raise TypeError(f"{name} is {value!r}, must be an integer")
    if found < least:
        raise ValueError(f"{name} is {found}, must be at least {least}")
    if found > most:
        raise ValueError(f"{name} is {found}, must be at most {most}")
    return found


def number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float = math.inf
) -> float:
    """Return a finite number above `above`, at least `least` and at most `most`."""
    found = _scalar(value)
    if type(found) not in (int, float):
        raise TypeError(f"{name} is {value!r}, must be a number")
    if not abs(found) < math.inf:
        raise ValueError(f"{name} is {found}, must be finite")
    if above is not None and not found > above:
        raise ValueError(f"{name} is {found}, must be above {above:g}")
    if least is not None and found < least:
        raise ValueError(f"{name} is {found}, must be at least {least:g}")
    if found > most:
        raise ValueError(f"{name} is {found}, must be at most {most:g}")
    return float(found)


def boolean(name: str, value: Any) -> bool:
    """Return a bool."""
    found = _scalar(value)
    if type(found) is not bool:
        raise TypeError(f"{name} is {value!r}, must be True or False")
    return found


def _scalar(value: Any) -> Any:
    """Return the Python object of a NumPy number or a 0-d array or tensor, any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
