"""Which satellites are linked: the +grid of a Walker pattern, or nearest neighbours with a number of terminals each."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import check_count, check_number

from .earth import EARTH_RADIUS_KM, Array, line_of_sight, range_km
from .validation import check_between
from .walker import Pattern

Pairs = npt.NDArray[np.int64]

# Pairs of cells that the search for neighbours compares at once: 40 bytes each.
_CHUNK = 2_000_000


class Topology(Protocol):
    """How inter-satellite links are chosen at an instant; a link is up after it was chosen for `acquisition_s`."""

    @property
    def acquisition_s(self) -> float:
        """Seconds two terminals need to find each other."""
        ...

    def pairs(self, positions: Array, *, margin_km: float, pattern: Pattern | None) -> Pairs:
        """Return the linked pairs [L, 2] of satellites at positions [N, 3], each sorted, no pair twice."""
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    """The +grid: two neighbours in the plane and one in each neighbouring plane, where there is a line of sight.

    The neighbour in the next plane is the slot whose largest distance over an orbit is smallest. In a Walker star the
    first and the last plane, which move in opposite directions, are not linked.
    """

    acquisition_s: float = 0.0

    def __post_init__(self) -> None:
        _check_acquisition(self.acquisition_s)

    def pairs(self, positions: Array, *, margin_km: float, pattern: Pattern | None) -> Pairs:
        """Return the pairs of the grid that are in line of sight.

        Raises:
            ValueError: The satellites are no Walker pattern.
        """
        if pattern is None:
            raise ValueError("a +grid needs the planes of a Walker pattern, these satellites have none: use Nearest")
        found = pattern.grid_pairs()
        seen = line_of_sight(positions[found[:, 0]], positions[found[:, 1]], margin_km=margin_km)
        return found[seen]


@dataclass(frozen=True, slots=True)
class Nearest:
    """Pairs in order of their range, shortest first, each linked if both satellites have a terminal left.

    `max_range_km` limits the range; None: the line of sight alone does.
    """

    terminals: int = 4
    acquisition_s: float = 0.0
    max_range_km: float | None = None

    def __post_init__(self) -> None:
        _check_acquisition(self.acquisition_s)
        check_count("terminals", self.terminals, 1)
        if self.max_range_km is not None:
            check_number("max_range_km", self.max_range_km)
            if not self.max_range_km > 0:
                raise ValueError(f"max_range_km is {self.max_range_km}, must be > 0")

    def pairs(self, positions: Array, *, margin_km: float, pattern: Pattern | None) -> Pairs:
        """Return the pairs; `pattern` is ignored."""
        free = np.full(len(positions), self.terminals)
        radius = float(np.max(np.linalg.norm(positions, axis=1)))
        limit = 2 * math.sqrt(max(radius**2 - (EARTH_RADIUS_KM + margin_km) ** 2, 0.0))
        if self.max_range_km is not None:
            limit = min(limit, self.max_range_km)
        # A circle of this radius contains four times as many neighbours as terminals, if all are spread evenly.
        # Unsatisfied satellites then search further among themselves: no other has a free terminal.
        reach, last = min(limit, 4 * radius * math.sqrt(self.terminals / len(positions))), 0.0
        linked: list[tuple[int, int]] = []
        while last < limit:
            unsatisfied = np.flatnonzero(free)
            near, distance = pairs_within(positions[unsatisfied], reach)
            new = (distance > last) & line_of_sight(
                positions[unsatisfied[near[:, 0]]], positions[unsatisfied[near[:, 1]]], margin_km=margin_km
            )
            linked += _link(unsatisfied[near[new]], distance[new], free)
            reach, last = min(limit, 2 * reach), reach
        return np.array(sorted(linked), dtype=np.int64).reshape(-1, 2)


def pairs_within(positions: Array, distance_km: float) -> tuple[Pairs, Array]:
    """Return the pairs [L, 2] of positions [N, 3] at most `distance_km` apart, and their distances [L].

    Space is cut into cubes of that size, so that only neighbouring cubes are compared: memory and time grow with the
    number of pairs in them, not with the square of N.
    """
    if len(positions) < 2 or distance_km <= 0:
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    cell = np.floor(positions / distance_km).astype(np.int64)
    cell -= cell.min(axis=0) - 1
    size = cell.max(axis=0) + 2
    key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    steps = [(x * size[1] + y) * size[2] + z for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    pairs, distances = [], []
    for step in (step for step in steps if step >= 0):
        low, high = np.searchsorted(ranked, ranked + step, "left"), np.searchsorted(ranked, ranked + step, "right")
        if step == 0:
            low = np.arange(1, len(ranked) + 1)
        for part in _parts(high - low):
            i, j = _spread(low[part], (high - low)[part], part.start)
            apart = range_km(positions[order[i]], positions[order[j]])
            close = apart <= distance_km
            pairs.append(np.sort(np.stack([order[i[close]], order[j[close]]], axis=1), axis=1))
            distances.append(apart[close])
    return np.concatenate(pairs), np.concatenate(distances)


def _parts(counts: npt.NDArray[np.int64]) -> list[slice]:
    """Return slices of rows whose counts sum to about a chunk."""
    total = np.cumsum(counts)
    edges = np.searchsorted(total, np.arange(_CHUNK, int(total[-1]), _CHUNK)).tolist()
    bounds = sorted({0, *edges, len(counts)})
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _spread(low: Pairs, count: Pairs, first: int) -> tuple[Pairs, Pairs]:
    """Return the row and column of each pair: row k, counted from `first`, with columns low[k] ... + count[k]."""
    row = np.repeat(np.arange(len(low)), count)
    column = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + low[row]
    return row + first, column


def _link(pairs: Pairs, distance: Array, free: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the pairs that are linked, shortest first and equal ones (to a millimetre) by number; updates `free`."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0], np.round(distance, 6)))
    left, linked = free.tolist(), []
    for a, b in pairs[order].tolist():
        if left[a] and left[b]:
            left[a] -= 1
            left[b] -= 1
            linked.append((a, b))
    free[:] = left
    return linked


def _check_acquisition(seconds: float) -> None:
    check_between("acquisition_s", seconds, 0.0, 3600.0)
