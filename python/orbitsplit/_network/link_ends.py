"""The keys with which a table of a TOML file names the two ends of a link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orbitsplit._io.validation import quoted


def end_keys(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that name the ends: `between` for both directions, else `source` and `destination`.

    `from` and `to` are the names of version 0.1, which are still read.
    """
    if "between" in table:
        return ("between",)
    return ("from", "to") if "from" in table or "to" in table else ("source", "destination")


def ends_of(table: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Return the source and the destination as they are written. Raises ValueError unless `between` has two names."""
    keys = end_keys(table)
    ends = table["between"] if keys == ("between",) else [table[key] for key in keys]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{where}.between is {quoted(ends)}, expected two node names")
    return ends[0], ends[1]
