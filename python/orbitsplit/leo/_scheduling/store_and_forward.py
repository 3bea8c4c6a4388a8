"""Store-and-forward routing of a file over a contact plan, with custody transfers between satellites.

One custodian at a time holds what is left of the file. In every cell it streams along the widest path to the
destination, and at every edge it may instead transfer custody of all that is left to another satellite, which then
continues. Fewer bytes left are never worse than more, so labels are the bytes left at each custodian at each edge, and
one pass over the edges in order of time finds the earliest arrival of all such schedules; of equally good labels, the
one with fewer custody transfers is kept. Splitting a file over two custodians at once is not considered. Propagation
delay is added once, at the end of the last path.
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

# Bytes or seconds that rounding may add or remove.
_TOLERANCE = 1e-6
# Bytes by which the sums over a day's cells may be off.
_TOLERANCE_BYTES = 1.0
# Cells that are searched first for the end of a custody transfer, which rarely takes longer.
_FIRST_CELLS = 8


@dataclass(frozen=True, slots=True)
class Transmission:
    """Bytes that go along a path of names from `start_s` to `stop_s`; `closes_s` is when the path ends."""

    path: tuple[str, ...]
    start_s: float
    stop_s: float
    bytes: float
    closes_s: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """The transmissions of a file, and when its last byte arrives.

    `curve` has pairs (seconds, bytes at the destination), between which bytes arrive evenly. `destination` names the
    station or satellite that the last byte reaches.
    """

    arrival_s: float
    transmissions: tuple[Transmission, ...]
    curve: tuple[tuple[float, float], ...]
    destination: str

    def arrival_of_s(self, count: float) -> float:
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
    """Bytes left at a custodian at an edge (the first label: at `at_s`), and the label that it extends.

    A label `was_offered` if custody of as many bytes was offered to all other satellites before: offered again, they
    would have the file no sooner.
    """

    bytes_left: float
    custodian: int
    at_s: float
    previous: _Label | None
    custody_transfers: int = 0
    was_offered: bool = False


@dataclass(frozen=True, eq=False)
class ContactGraph:
    """A contact plan as rate matrices over satellites and the ground.

    The ground is one vertex, the last: stations forward files among themselves. `senders` and `receivers` are the
    stations, by index, that may send and receive. Without `uses_isl`, files take no link between satellites.
    """

    contact_plan: Timetable
    senders: tuple[int, ...]
    receivers: tuple[int, ...]
    uses_isl: bool = True
    _best_station: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        down = self.contact_plan.down_bytes_per_s[:, :, list(self.receivers)]
        up = self.contact_plan.up_bytes_per_s[:, :, list(self.senders)]
        best = tuple(
            np.argmax(rates, axis=2) if rates.shape[2] else np.zeros(rates.shape[:2], dtype=np.int64)
            for rates in (down, up)
        )
        object.__setattr__(self, "_best_station", best)

    @property
    def ground(self) -> int:
        """Return the vertex of the ground."""
        return len(self.contact_plan.satellites)

    @cached_property
    def link_bytes_per_s(self) -> Array:
        """Return the rates [K, N + 1, N + 1] of single links."""
        plan, n = self.contact_plan, self.ground
        rates = np.zeros((len(plan.edges_s) - 1, n + 1, n + 1))
        if self.uses_isl:
            rates[:, :n, :n] = plan.isl_bytes_per_s
        if self.receivers:
            rates[:, :n, n] = plan.down_bytes_per_s[:, :, list(self.receivers)].max(axis=2)
        if self.senders:
            rates[:, n, :n] = plan.up_bytes_per_s[:, :, list(self.senders)].max(axis=2)
        return rates

    @cached_property
    def path_bytes_per_s(self) -> Array:
        """Return the rates [K, N + 1, N + 1] of the widest paths over satellites, none through the ground."""
        rates: Array = self.link_bytes_per_s.copy()
        for via in range(self.ground):
            np.maximum(rates, np.minimum(rates[:, :, via, None], rates[:, via, None, :]), out=rates)
        for k in range(self.ground + 1):
            rates[:, k, k] = 0.0
        return rates

    @cached_property
    def cumulative_bytes(self) -> Array:
        """Return the bytes [K + 1, N + 1, N + 1] that the widest paths transmit from the first edge to each edge."""
        amounts: Array = self.path_bytes_per_s * np.diff(self.contact_plan.edges_s)[:, None, None]
        cumulative: Array = np.concatenate([np.zeros((1, *amounts.shape[1:])), np.cumsum(amounts, axis=0)])
        return cumulative

    def earliest_delivery(
        self, source: int, destination: int, size: float, start_s: float, before_s: float = math.inf
    ) -> Delivery | None:
        """Return the earliest delivery of `size` bytes that starts at `start_s` or later; None if there is none.

        Deliveries that arrive at `before_s` or later are not considered. A file that is at its destination already
        takes no time; an empty one is sent as one byte.
        """
        if source == destination:
            return Delivery(start_s, (), ((start_s, 0.0), (start_s, size)), self._name(destination))
        if start_s > self.contact_plan.stop_s:
            return None
        # That there is no input must still be transmitted.
        size, before_s = max(size, 1.0), min(before_s, self.contact_plan.stop_s + 1.0)
        return _Search(self, destination, size, before_s).run(source, start_s)

    def path(self, source: int, destination: int, cell: int, previous: Sequence[int] = ()) -> tuple[int, ...]:
        """Return a widest path in a cell: the previous one while it is as wide, else one of fewest hops."""
        rates, width = self.link_bytes_per_s[cell], self.path_bytes_per_s[cell, source, destination]
        if previous and previous[0] == source and all(rates[a, b] >= width for a, b in pairwise(previous)):
            return tuple(previous)
        reached: dict[int, int] = {source: source}
        front = [source]
        while destination not in reached:
            found = []
            for a in front:
                for b in np.flatnonzero(rates[a] >= width).tolist():
                    if b not in reached and (b != self.ground or destination == self.ground):
                        reached[b] = a
                        found.append(b)
            front = found
        path = [destination]
        while path[-1] != source:
            path.append(reached[path[-1]])
        return tuple(reversed(path))

    def names(self, path: Sequence[int], cell: int) -> tuple[str, ...]:
        """Return the names of a path; that of the ground is the station with the fastest link in the cell."""
        return tuple(
            self.contact_plan.satellites[vertex]
            if vertex != self.ground
            else self.contact_plan.stations[self._station(cell, path[1] if k == 0 else path[k - 1], is_up=k == 0)].name
            for k, vertex in enumerate(path)
        )

    def path_delay_s(self, path: Sequence[int], cell: int) -> float:
        """Return the propagation delay of a path."""
        plan, km = self.contact_plan, 0.0
        for a, b in pairwise(path):
            if self.ground in (a, b):
                station = self._station(cell, min(a, b), is_up=a == self.ground)
                km += float(plan.ground_km[cell, min(a, b), station])
            else:
                km += float(plan.isl_km[cell, a, b])
        return float(delay_s(np.array(km)))

    def _name(self, vertex: int) -> str:
        """Return the name of a vertex; the ground's is that of any station that takes part."""
        if vertex != self.ground:
            return self.contact_plan.satellites[vertex]
        return self.contact_plan.stations[(self.senders or self.receivers)[0]].name

    def _station(self, cell: int, satellite: int, *, is_up: bool) -> int:
        stations = self.senders if is_up else self.receivers
        return stations[int(self._best_station[int(is_up)][cell, satellite])]


class _Search:
    """The labels of one delivery."""

    def __init__(self, graph: ContactGraph, destination: int, size: float, before_s: float) -> None:
        self.graph, self.destination, self.size = graph, destination, size
        self.edges = graph.contact_plan.edges_s
        self.rate = graph.path_bytes_per_s[:, :, destination]
        # An upper bound on what arrives by each edge, whoever the custodian is.
        self.max_rate = self.rate.max(axis=1)
        self.max_arrived = np.concatenate([[0.0], np.cumsum(self.max_rate * np.diff(self.edges))])
        # Those that a satellite may transfer custody to, for each.
        satellites = np.array([k for k in range(graph.ground) if k != destination], dtype=np.int64)
        self.others = [satellites[satellites != custodian] for custodian in range(graph.ground + 1)]
        self.best: _Label | None = None
        self.before_s = before_s
        self.max_in_time = float(np.interp(before_s, self.edges, self.max_arrived))
        self.labels: dict[int, dict[int, _Label]] = {}

    def run(self, source: int, start_s: float) -> Delivery | None:
        """Extend labels edge by edge in order of time, and return the earliest delivery."""
        first = self.graph.contact_plan.cell(start_s)
        self._extend(_Label(self.size, source, start_s, None), first)
        for k in range(first + 1, len(self.edges) - 1):
            if self.edges[k] >= self.before_s:
                break
            for custodian in sorted(self.labels.get(k, {})):
                self._extend(self.labels[k][custodian], k)
            self.labels.pop(k, None)
        return None if self.best is None else self._delivery(self.best)

    def _extend(self, label: _Label, cell: int) -> None:
        """Stream until the cell ends, and transfer custody to every satellite that can receive all that is left."""
        arrived = self.max_arrived[cell] + self.max_rate[cell] * (label.at_s - self.edges[cell])
        if self.max_in_time - arrived < label.bytes_left - _TOLERANCE_BYTES:
            return
        self._stream(label, cell, was_offered=True)
        if label.was_offered or label.custodian == self.graph.ground == self.destination:
            return
        for other, end_cell, at_s in zip(*(x.tolist() for x in self._custody_transfers(label, cell)), strict=True):
            self._stream(
                _Label(label.bytes_left, other, at_s, label, label.custody_transfers + 1), end_cell, was_offered=False
            )

    def _custody_transfers(
        self, label: _Label, cell: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the satellites that can receive all that is left in time, the cell in which they do, and when."""
        graph, edges, custodian = self.graph, self.edges, label.custodian
        cumulative, rate = graph.cumulative_bytes[:, custodian], graph.path_bytes_per_s[:, custodian]
        needed = cumulative[cell] + rate[cell] * (label.at_s - edges[cell]) + label.bytes_left
        others = self.others[custodian]
        last = min(int(np.searchsorted(edges, self.before_s)), len(edges) - 1)
        others = others[cumulative[last, others] >= needed[others]] if last > cell else others[:0]
        end_cell = np.zeros(len(others), dtype=np.int64)
        is_open, begin, width = np.ones(len(others), dtype=np.bool_), cell, _FIRST_CELLS
        while np.any(is_open):
            enough = cumulative[begin + 1 : min(begin + width, last) + 1][:, others] >= needed[others]
            found = is_open & enough[-1]
            end_cell[found] = begin + np.argmax(enough[:, found], axis=0)
            is_open, begin, width = is_open & ~found, begin + width, 4 * width
        surplus_s = (cumulative[end_cell + 1, others] - needed[others]) / rate[end_cell, others]
        return others, end_cell, np.maximum(edges[end_cell + 1] - surplus_s, label.at_s)

    def _stream(self, label: _Label, cell: int, *, was_offered: bool) -> None:
        """Record what streaming until the cell ends leads to: a complete delivery, or a label at the next edge."""
        custodian, end_s = label.custodian, float(self.edges[cell + 1])
        rate = float(self.rate[cell, custodian])
        if rate > 0 and label.at_s + label.bytes_left / rate <= end_s:
            done = _Label(0.0, custodian, label.at_s + label.bytes_left / rate, label, label.custody_transfers)
            if done.at_s < self.before_s and (
                self.best is None or _is_better(done.at_s, self.best.at_s, done, self.best)
            ):
                self.best, self.before_s = done, done.at_s + _TOLERANCE
                self.max_in_time = float(np.interp(self.before_s, self.edges, self.max_arrived))
            return
        left = label.bytes_left - rate * (end_s - label.at_s)
        known = self.labels.setdefault(cell + 1, {})
        is_waiting = was_offered and left == label.bytes_left
        after = _Label(left, custodian, end_s, label, label.custody_transfers, is_waiting)
        if custodian not in known or _is_better(left, known[custodian].bytes_left, after, known[custodian]):
            known[custodian] = after

    def _delivery(self, label: _Label) -> Delivery:
        """Return the delivery of a complete label."""
        chain = [label]
        while chain[-1].previous is not None:
            chain.append(chain[-1].previous)
        chain.reverse()
        builder = _DeliveryBuilder(self.graph, chain[0].at_s)
        for a, b in pairwise(chain):
            if b.custody_transfers > a.custody_transfers:
                builder.transfer_custody(a, b)
            elif a.bytes_left > b.bytes_left:
                builder.stream(a, b, self.destination)
        return builder.delivery()


def _is_better(ours: float, theirs: float, label: _Label, known: _Label) -> bool:
    """Return whether a label has a smaller amount than a known one, or an equal amount by fewer custody transfers."""
    is_equal = ours <= theirs + _TOLERANCE
    return ours < theirs - _TOLERANCE or (is_equal and label.custody_transfers < known.custody_transfers)


class _DeliveryBuilder:
    """Collects transmissions; adjacent ones along one path become one."""

    def __init__(self, graph: ContactGraph, start_s: float) -> None:
        self.graph = graph
        self.transmissions: list[Transmission] = []
        self.curve = [(start_s, 0.0)]
        self.path: tuple[int, ...] = ()
        self.cell = 0

    def stream(self, a: _Label, b: _Label, destination: int) -> None:
        """Transmit to the destination within one cell."""
        sent = a.bytes_left - b.bytes_left
        self._transmit(a.custodian, destination, self.graph.contact_plan.cell(a.at_s), a.at_s, b.at_s, sent)
        if a.at_s > self.curve[-1][0]:
            self.curve.append((a.at_s, self.curve[-1][1]))
        self.curve.append((b.at_s, self.curve[-1][1] + a.bytes_left - b.bytes_left))

    def transfer_custody(self, a: _Label, b: _Label) -> None:
        """Transmit all that is left to the next custodian, cell by cell."""
        plan, left, at_s = self.graph.contact_plan, a.bytes_left, a.at_s
        for cell in range(plan.cell(a.at_s), len(plan.edges_s) - 1):
            rate = float(self.graph.path_bytes_per_s[cell, a.custodian, b.custodian])
            end_s = min(float(plan.edges_s[cell + 1]), b.at_s)
            size = min(left, rate * (end_s - at_s))
            if size > 0:
                self._transmit(a.custodian, b.custodian, cell, at_s, end_s, size)
            left, at_s = left - size, end_s
            if at_s >= b.at_s:
                break

    def delivery(self) -> Delivery:
        """Return the whole; the propagation delay of the last path is added to every arrival."""
        delay = self.graph.path_delay_s(self.path, self.cell)
        curve = tuple((at_s + delay, count) for at_s, count in self.curve)
        return Delivery(curve[-1][0], tuple(self.transmissions), curve, self.transmissions[-1].path[-1])

    def _transmit(self, source: int, destination: int, cell: int, start_s: float, stop_s: float, size: float) -> None:
        previous = self.path if self.path[-1:] == (destination,) else ()
        self.path = self.graph.path(source, destination, cell, previous)
        self.cell = cell
        names = self.graph.names(self.path, cell)
        last = self.transmissions[-1] if self.transmissions else None
        if last is not None and last.path == names and abs(last.stop_s - start_s) < _TOLERANCE:
            self.transmissions[-1] = Transmission(names, last.start_s, stop_s, last.bytes + size, last.closes_s)
            return
        closes = self.graph.contact_plan.until_s(start_s, pairwise(names))
        self.transmissions.append(Transmission(names, start_s, stop_s, size, closes))
