"""Bringing a file from one place to another over links that come and go: store and forward, with hand-overs.

One place at a time has what is left of the file. At every cell it streams along the widest path that leads to the
destination just then, and at every edge it may instead hand all that is left to another satellite, which then goes on.
Less left is never worse than more, so labels are the bytes left at each satellite at each edge, and a pass over the
edges in order of time finds the earliest arrival that such a schedule has; of labels as good, that of fewer hand-overs
is kept. Splitting a file over two carriers at once is not among them. Light's time is added once, at the end of the
last path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from orbitsplit.leo._orbits.earth import Array, delay_s

from .contact_plan import Timetable

# Bytes or seconds that rounding may take or give.
_SAME = 1e-6
# Bytes that the sums of a day's cells are off by less than.
_SAME_BYTES = 1.0
# So many cells are looked at first for when a file is handed over; it rarely takes longer.
_FIRST_CELLS = 8


@dataclass(frozen=True, slots=True)
class Sending:
    """Bytes that go along a path of names from `start_s` to `stop_s`, at `rate`; `closes_s` is when the path ends."""

    path: tuple[str, ...]
    start_s: float
    stop_s: float
    bytes: float
    closes_s: float


@dataclass(frozen=True, slots=True)
class Carriage:
    """How a file travels: what is sent when, and when the last byte is there.

    `curve` are (seconds, bytes at the destination): in between, bytes arrive evenly. `place` is the name of the
    station or satellite that the last byte reaches.
    """

    arrival_s: float
    sendings: tuple[Sending, ...]
    curve: tuple[tuple[float, float], ...]
    place: str

    def at_s(self, count: float) -> float:
        """Return when this many bytes have arrived."""
        seconds, counts = (np.array(side) for side in zip(*self.curve, strict=True))
        # The last of several instants with the same count is when the next byte begins to arrive: take the first.
        at = int(np.searchsorted(counts, count * (1 - 1e-12)))
        if at == 0:
            return float(seconds[0])
        at = min(at, len(counts) - 1)
        share = (count - counts[at - 1]) / (counts[at] - counts[at - 1])
        return float(seconds[at - 1] + min(share, 1.0) * (seconds[at] - seconds[at - 1]))


@dataclass(frozen=True, slots=True)
class _Label:
    """Bytes left at a holder at an edge (or, for a start, at `at_s`), and how that came about.

    What `was_offered` to all other satellites with as much left need not be again: they would have it no sooner.
    """

    left: float
    holder: int
    at_s: float
    before: _Label | None
    handed: int = 0
    was_offered: bool = False


@dataclass(frozen=True, eq=False)
class Carrier:
    """A timetable as matrices over satellites and the ground, which is one place: stations pass files on among them.

    `up_from` and `down_to` are the stations, by index, that send and that receive.
    """

    table: Timetable
    up_from: tuple[int, ...]
    down_to: tuple[int, ...]
    relays: bool = True
    _stations: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        down = self.table.down_bytes_per_s[:, :, list(self.down_to)]
        up = self.table.up_bytes_per_s[:, :, list(self.up_from)]
        best = tuple(
            np.argmax(rates, axis=2) if rates.shape[2] else np.zeros(rates.shape[:2], dtype=np.int64)
            for rates in (down, up)
        )
        object.__setattr__(self, "_stations", best)

    @property
    def ground(self) -> int:
        """Return the index of the ground among the places."""
        return len(self.table.satellites)

    @cached_property
    def direct(self) -> Array:
        """Return the rates [K, N + 1, N + 1] of single links."""
        table, n = self.table, self.ground
        rates = np.zeros((len(table.edges_s) - 1, n + 1, n + 1))
        if self.relays:
            rates[:, :n, :n] = table.isl_bytes_per_s
        if self.down_to:
            rates[:, :n, n] = table.down_bytes_per_s[:, :, list(self.down_to)].max(axis=2)
        if self.up_from:
            rates[:, n, :n] = table.up_bytes_per_s[:, :, list(self.up_from)].max(axis=2)
        return rates

    @cached_property
    def widest(self) -> Array:
        """Return the rates [K, N + 1, N + 1] of the widest paths through satellites, none through the ground."""
        rates: Array = self.direct.copy()
        for via in range(self.ground):
            np.maximum(rates, np.minimum(rates[:, :, via, None], rates[:, via, None, :]), out=rates)
        for k in range(self.ground + 1):
            rates[:, k, k] = 0.0
        return rates

    @cached_property
    def carried(self) -> Array:
        """Return the bytes [K + 1, N + 1, N + 1] that the widest paths carry from the first edge to each."""
        amounts: Array = self.widest * np.diff(self.table.edges_s)[:, None, None]
        carried: Array = np.concatenate([np.zeros((1, *amounts.shape[1:])), np.cumsum(amounts, axis=0)])
        return carried

    def carry(
        self, source: int, target: int, size: float, start_s: float, before_s: float = math.inf
    ) -> Carriage | None:
        """Return the earliest way to bring `size` bytes from place to place, from `start_s` on; None if not in time.

        Nothing that arrives at `before_s` or later is looked at. A file that is there already, or empty and free to
        arrive at once, takes no time.
        """
        if source == target:
            return Carriage(start_s, (), ((start_s, 0.0), (start_s, size)), self._name(target))
        if start_s > self.table.stop_s:
            return None
        # One byte must still find a way.
        return _Search(self, target, max(size, 1.0), min(before_s, self.table.stop_s + 1.0)).run(source, start_s)

    def path(self, source: int, target: int, cell: int, last: Sequence[int] = ()) -> tuple[int, ...]:
        """Return a widest path in a cell: the last one as long as it is as wide, else one of fewest hops."""
        rates, width = self.direct[cell], self.widest[cell, source, target]
        if last and last[0] == source and all(rates[a, b] >= width for a, b in pairwise(last)):
            return tuple(last)
        reached: dict[int, int] = {source: source}
        front = [source]
        while target not in reached:
            found = []
            for a in front:
                for b in np.flatnonzero(rates[a] >= width).tolist():
                    if b not in reached and (b != self.ground or target == self.ground):
                        reached[b] = a
                        found.append(b)
            front = found
        path = [target]
        while path[-1] != source:
            path.append(reached[path[-1]])
        return tuple(reversed(path))

    def names(self, path: Sequence[int], cell: int) -> tuple[str, ...]:
        """Return the path in names: the ground is the station that is fastest for its neighbour in this cell."""
        return tuple(
            self.table.satellites[place]
            if place != self.ground
            else self.table.stations[self._station(cell, path[1] if k == 0 else path[k - 1], is_up=k == 0)].name
            for k, place in enumerate(path)
        )

    def path_delay_s(self, path: Sequence[int], cell: int) -> float:
        """Return the time of light along a path."""
        table, km = self.table, 0.0
        for a, b in pairwise(path):
            if self.ground in (a, b):
                station = self._station(cell, min(a, b), is_up=a == self.ground)
                km += float(table.ground_km[cell, min(a, b), station])
            else:
                km += float(table.isl_km[cell, a, b])
        return float(delay_s(np.array(km)))

    def _name(self, place: int) -> str:
        """Return the name of a place; the ground's is that of any station that takes part."""
        if place != self.ground:
            return self.table.satellites[place]
        return self.table.stations[(self.up_from or self.down_to)[0]].name

    def _station(self, cell: int, satellite: int, *, is_up: bool) -> int:
        choice = self.up_from if is_up else self.down_to
        return choice[int(self._stations[int(is_up)][cell, satellite])]


class _Search:
    """The labels of one carriage."""

    def __init__(self, carrier: Carrier, target: int, size: float, before_s: float) -> None:
        self.carrier, self.target, self.size = carrier, target, size
        self.edges = carrier.table.edges_s
        self.to_target = carrier.widest[:, :, target]
        # What arrives by each edge at most, whoever holds the file.
        self.most_rate = self.to_target.max(axis=1)
        self.most = np.concatenate([[0.0], np.cumsum(self.most_rate * np.diff(self.edges))])
        self.best: _Label | None = None
        self.before_s = before_s
        self.in_time = float(np.interp(before_s, self.edges, self.most))
        self.labels: dict[int, dict[int, _Label]] = {}

    def run(self, source: int, start_s: float) -> Carriage | None:
        """Look at the edges in order of time."""
        first = self.carrier.table.cell(start_s)
        self._go_on(_Label(self.size, source, start_s, None), first)
        for k in range(first + 1, len(self.edges) - 1):
            if self.edges[k] >= self.before_s:
                break
            for holder in sorted(self.labels.get(k, {})):
                self._go_on(self.labels[k][holder], k)
            self.labels.pop(k, None)
        return None if self.best is None else self._carriage(self.best)

    def _go_on(self, label: _Label, cell: int) -> None:
        """Stream on until the cell ends, and hand over to everyone who can take what is left."""
        by_now = self.most[cell] + self.most_rate[cell] * (label.at_s - self.edges[cell])
        if self.in_time - by_now < label.left - _SAME_BYTES:
            return
        self._stream(label, cell, was_offered=True)
        if label.was_offered or label.holder == self.carrier.ground == self.target:
            return
        for other, until, at_s in zip(*(found.tolist() for found in self._takers(label, cell)), strict=True):
            self._stream(_Label(label.left, other, at_s, label, label.handed + 1), until, was_offered=False)

    def _takers(
        self, label: _Label, cell: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the satellites that can have all that is left in time, the cell in which they do, and when."""
        carrier, edges, holder = self.carrier, self.edges, label.holder
        carried, widest = carrier.carried[:, holder], carrier.widest[:, holder]
        needed = carried[cell] + widest[cell] * (label.at_s - edges[cell]) + label.left
        others = np.array([k for k in range(carrier.ground) if k not in (holder, self.target)], dtype=np.int64)
        last = min(int(np.searchsorted(edges, self.before_s)), len(edges) - 1)
        others = others[carried[last, others] >= needed[others]] if last > cell else others[:0]
        until = np.zeros(len(others), dtype=np.int64)
        is_open, begin, width = np.ones(len(others), dtype=np.bool_), cell, _FIRST_CELLS
        while np.any(is_open):
            enough = carried[begin + 1 : min(begin + width, last) + 1][:, others] >= needed[others]
            found = is_open & enough[-1]
            until[found] = begin + np.argmax(enough[:, found], axis=0)
            is_open, begin, width = is_open & ~found, begin + width, 4 * width
        left_over = (carried[until + 1, others] - needed[others]) / widest[until, others]
        return others, until, np.maximum(edges[until + 1] - left_over, label.at_s)

    def _stream(self, label: _Label, cell: int, *, was_offered: bool) -> None:
        rate, end_s, holder = float(self.to_target[cell, label.holder]), float(self.edges[cell + 1]), label.holder
        if rate > 0 and label.at_s + label.left / rate <= end_s:
            done = _Label(0.0, holder, label.at_s + label.left / rate, label, label.handed)
            if done.at_s < self.before_s and (
                self.best is None or _is_better(done.at_s, self.best.at_s, done, self.best)
            ):
                self.best, self.before_s = done, done.at_s + _SAME
                self.in_time = float(np.interp(self.before_s, self.edges, self.most))
            return
        left = label.left - rate * (end_s - label.at_s)
        known = self.labels.setdefault(cell + 1, {})
        after = _Label(left, holder, end_s, label, label.handed, was_offered and left == label.left)
        if holder not in known or _is_better(left, known[holder].left, after, known[holder]):
            known[holder] = after

    def _carriage(self, label: _Label) -> Carriage:
        """Return what the labels say, as sendings: neighbouring ones along one path are one."""
        chain = [label]
        while chain[-1].before is not None:
            chain.append(chain[-1].before)
        chain.reverse()
        steps = _Steps(self.carrier, chain[0].at_s)
        for a, b in pairwise(chain):
            if b.handed > a.handed:
                steps.move(a, b)
            elif a.left > b.left:
                steps.stream(a, b, self.target)
        return steps.carriage()


def _is_better(ours: float, theirs: float, label: _Label, known: _Label) -> bool:
    """Return whether a label has a smaller amount, or as good as the same with fewer hand-overs."""
    return ours < theirs - _SAME or (ours <= theirs + _SAME and label.handed < known.handed)


class _Steps:
    """Sendings in the making."""

    def __init__(self, carrier: Carrier, start_s: float) -> None:
        self.carrier = carrier
        self.sendings: list[Sending] = []
        self.curve = [(start_s, 0.0)]
        self.path: tuple[int, ...] = ()
        self.cell = 0

    def stream(self, a: _Label, b: _Label, target: int) -> None:
        """Send to the destination within one cell."""
        self._send(a.holder, target, self.carrier.table.cell(a.at_s), a.at_s, b.at_s, a.left - b.left)
        if a.at_s > self.curve[-1][0]:
            self.curve.append((a.at_s, self.curve[-1][1]))
        self.curve.append((b.at_s, self.curve[-1][1] + a.left - b.left))

    def move(self, a: _Label, b: _Label) -> None:
        """Send all that is left to another holder, cell by cell."""
        edges, left, at_s = self.carrier.table.edges_s, a.left, a.at_s
        for cell in range(self.carrier.table.cell(a.at_s), len(edges) - 1):
            rate = float(self.carrier.widest[cell, a.holder, b.holder])
            end_s = min(float(edges[cell + 1]), b.at_s)
            size = min(left, rate * (end_s - at_s))
            if size > 0:
                self._send(a.holder, b.holder, cell, at_s, end_s, size)
            left, at_s = left - size, end_s
            if at_s >= b.at_s:
                break

    def carriage(self) -> Carriage:
        """Return the whole; the last path's delay is added to the arrival and to all that arrives."""
        delay = self.carrier.path_delay_s(self.path, self.cell)
        curve = tuple((at_s + delay, count) for at_s, count in self.curve)
        return Carriage(curve[-1][0], tuple(self.sendings), curve, self.sendings[-1].path[-1])

    def _send(self, source: int, target: int, cell: int, start_s: float, stop_s: float, size: float) -> None:
        self.path = self.carrier.path(source, target, cell, self.path if self.path[-1:] == (target,) else ())
        self.cell = cell
        names = self.carrier.names(self.path, cell)
        last = self.sendings[-1] if self.sendings else None
        if last is not None and last.path == names and abs(last.stop_s - start_s) < _SAME:
            self.sendings[-1] = Sending(names, last.start_s, stop_s, last.bytes + size, last.closes_s)
            return
        closes = self.carrier.table.until_s(start_s, pairwise(names))
        self.sendings.append(Sending(names, start_s, stop_s, size, closes))
