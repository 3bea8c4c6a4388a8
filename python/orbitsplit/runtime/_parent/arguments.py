"""Arguments as Python's own numbers: besides those, NumPy's and 0-d tensors are accepted.

A wrong type is a TypeError, a wrong value a ValueError; both name the argument and its value. A bool is no number.
"""

from __future__ import annotations

import math
from typing import Any

from orbitsplit._io.validation import LARGEST_INTEGER, check_boolean, check_count, check_finite


def integer(name: str, value: Any, *, least: int, most: int = LARGEST_INTEGER) -> int:
    """Return an integer from `least` to `most`."""
    found = _scalar(value)
    check_count(name, found, least, most=most)
    return int(found)


def number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float = math.inf
) -> float:
    """Return a finite number above `above`, at least `least` and at most `most`."""
    found = _scalar(value)
    check_finite(name, found, above=above, least=least, most=most)
    return float(found)


def boolean(name: str, value: Any) -> bool:
    """Return a bool."""
    found = _scalar(value)
    check_boolean(name, found)
    return bool(found)


def _scalar(value: Any) -> Any:
    """Return the Python object of a NumPy number or a 0-d array or tensor, any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
