"""Names of satellites read from files: of bounded length, and different."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from orbitsplit._io.validation import quoted

from .satellites import Satellite

_LONGEST_NAME = 100
_MOST_NAMED = 3


def check_length(name: str) -> None:
    """Raise `ValueError` for a name that no satellite has."""
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"the name {quoted(name, 40)} has {len(name):,} characters, a name has at most {_LONGEST_NAME}"
        )


def with_distinct_names(satellites: Sequence[Satellite], source: str) -> tuple[Satellite, ...]:
    """Return the satellites, their catalogue numbers added to names that several have, which a warning says.

    Raises:
        ValueError: Satellites of one name have the same catalogue number or none.
    """
    counts = Counter(satellite.name for satellite in satellites)
    shared = [name for name, count in counts.items() if count > 1]
    if not shared:
        return tuple(satellites)
    taken = {name for name, count in counts.items() if count == 1}
    seen: set[tuple[str, int]] = set()
    renamed = []
    for satellite in satellites:
        name, number = satellite.name, satellite.catalogue_number
        if counts[name] > 1:
            if number is None or (name, number) in seen:
                raise ValueError(
                    f"{source}: two satellites are called {quoted(name)} and their catalogue number"
                    f" {'is missing' if number is None else f'is {number} for both'}: leave one out"
                )
            seen.add((name, number))
            unique = f"{name} ({number})"
            while unique in taken:
                unique = f"{unique} ({number})"
            taken.add(unique)
            satellite = replace(satellite, name=unique)
        renamed.append(satellite)
    some = ", ".join(quoted(name, 40) for name in shared[:_MOST_NAMED]) + (", ..." if len(shared) > _MOST_NAMED else "")
    warnings.warn(
        f"{source}: several satellites are called {some}: their catalogue numbers were added to the names",
        stacklevel=3,  # the caller of leo.load or leo.from_tle
    )
    return tuple(renamed)
