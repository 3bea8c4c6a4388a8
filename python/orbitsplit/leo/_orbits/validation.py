"""Checks of what callers give: types first, so that a wrong one is named and not run into."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np

from orbitsplit._io.validation import check_number


def check_real(key: str, value: Any) -> None:
    """Raise TypeError for what is no number, ValueError for an integer that no float holds."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{key} is {value!r}, expected a number")
    check_number(key, value)


def check_name(key: str, value: Any) -> None:
    """Raise TypeError for what is no string, ValueError for an empty one."""
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, expected a string")
    if not value:
        raise ValueError(f"{key} is empty, a name has at least one character")


def names_of(key: str, values: Any) -> tuple[str, ...]:
    """Return names as a tuple. Raises TypeError for a single string and for what is no sequence of strings."""
    if isinstance(values, str):
        raise TypeError(f"{key} is the string {values!r}, expected a sequence of names: [{values!r}]")
    if not isinstance(values, Iterable):
        raise TypeError(f"{key} is {values!r}, expected a sequence of names")
    names = tuple(values)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{key} holds {name!r}, expected names, which are strings")
    return names


def check_moment(key: str, value: Any) -> None:
    """Raise TypeError for what is no datetime, ValueError for one without a time zone."""
    if not isinstance(value, datetime):
        raise TypeError(f"{key} is {value!r}, expected a datetime with a time zone")
    if value.utcoffset() is None:
        raise ValueError(f"{key} is {value.isoformat()}, which has no time zone: give tzinfo=timezone.utc")
