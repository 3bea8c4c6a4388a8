"""Checks of arguments: a wrong type is a `TypeError`, a wrong value a `ValueError`; both name the argument.

They complete those of `orbitsplit._io.validation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from orbitsplit._io.validation import check_number, check_string, quoted


def check_not_negative(key: str, value: Any) -> None:
    """Check that a number is finite and at least 0."""
    check_number(key, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{key} is {value}, must be finite and at least 0")


def check_positive(key: str, value: Any) -> None:
    """Check that a number is finite and greater than 0."""
    check_number(key, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key} is {value}, must be finite and > 0")


def check_between(key: str, value: Any, low: float, high: float) -> None:
    """Check that a number is from `low` to `high`."""
    check_number(key, value)
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{key} is {value}, must be from {low:g} to {high:g}")


def check_name(key: str, value: Any) -> None:
    """Check that a name is a string with at least one character."""
    check_string(key, value)
    if not value:
        raise ValueError(f"{key} is empty, a name has at least one character")


def names_of(key: str, values: Any) -> tuple[str, ...]:
    """Return names as a tuple. Raises `TypeError` for a single string and for anything but a sequence of strings."""
    if isinstance(values, str):
        raise TypeError(f"{key} is the string {quoted(values)}, must be a sequence of names: [{quoted(values)}]")
    if not isinstance(values, Iterable):
        raise TypeError(f"{key} is {quoted(values)}, must be a sequence of names")
    names = tuple(values)
    for name in names:
        check_string(f"a name in {key}", name)
    return names


def has_time_zone(value: Any) -> bool:
    """Return whether a value is a datetime with an offset from UTC, which not every `tzinfo` has."""
    return isinstance(value, datetime) and value.utcoffset() is not None


def check_moment(key: str, value: Any) -> None:
    """Check that an instant is a datetime with a time zone."""
    if not isinstance(value, datetime):
        raise TypeError(f"{key} is {quoted(value)}, must be a datetime with a time zone")
    if not has_time_zone(value):
        raise ValueError(f"{key} is {value.isoformat()}, which has no time zone: give tzinfo=timezone.utc")
