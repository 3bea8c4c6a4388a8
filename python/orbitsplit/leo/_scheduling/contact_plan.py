"""Links over time: a grid of cells between contact edges, and what each link carries in each cell.

Cells begin and end where a contact opens or closes, and are at most a step long. Links between satellites are looked
at once a minute, and serve in a cell where they are there at the looks before and after it. Rates and ranges are those
of the cell's middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitsplit._network.network import Link, Network, Node
from orbitsplit.leo._orbits.constellation import Constellation, Equipment
from orbitsplit.leo._orbits.contacts import Contact
from orbitsplit.leo._orbits.earth import Array, delay_s, line_of_sight, range_km, rotated
from orbitsplit.leo._orbits.link_budget import LinkRate
from orbitsplit.leo._orbits.stations import Station
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._orbits.topology import Nearest
from orbitsplit.leo._orbits.validation import check_moment, names_of

# Networks over time are cells x satellites x satellites.
MOST_SATELLITES = 64
# Between contacts nothing but the satellites' own links can change, and slowly.
_LONGEST_CELL_S = 60.0
# A station's longest acquisition: contacts that began before the timetable may have served it already.
_LOOK_BACK_S = 3600.0

# By satellite and station, begin and end of what serves, in seconds.
_Spans: TypeAlias = dict[tuple[int, int], list[tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Timetable:
    """Who can send how fast to whom, cell by cell: K cells, N satellites, S stations.

    `edges_s` [K + 1] are seconds since `start`. `isl_bytes_per_s` and `isl_km` are [K, N, N], `down_bytes_per_s`,
    `up_bytes_per_s` and `ground_km` [K, N, S]; a rate of 0 is no link. A station's antenna points where the plan
    wants it: every satellite in contact is a choice, and a plan uses as many at once as there are antennas.
    """

    constellation: Constellation
    start: datetime
    satellites: tuple[str, ...]
    edges_s: Array
    isl_bytes_per_s: Array
    isl_km: Array
    down_bytes_per_s: Array
    up_bytes_per_s: Array
    ground_km: Array

    @classmethod
    def of(
        cls,
        constellation: Constellation,
        start: datetime,
        stop: datetime,
        *,
        step_s: float = 10.0,
        satellites: Sequence[str] | None = None,
        guard_s: float = 1.0,
    ) -> Timetable:
        """Return the links between start and stop, in cells of at most `step_s` while there is contact with a station.

        Between contacts a cell lasts up to a minute. Nothing is sent to or from a station in the last `guard_s` of a
        contact. `satellites` names those that may take part (default: all).

        Raises:
            TypeError: Start or stop is no datetime.
            ValueError: There is no equipment or no station, too many satellites, a time has no time zone, or a number
                is out of range.
        """
        equipment = _checked(constellation, start, stop, step_s, guard_s)
        names, own = _members(constellation, satellites)
        contacts = constellation.contacts(start - timedelta(seconds=_LOOK_BACK_S), stop)
        spans = _serving(contacts, constellation.stations, names, start, guard_s)
        edges = _edges(spans.values(), (stop - start).total_seconds(), step_s)
        centre = (edges[1:] + edges[:-1]) / 2
        middle = Times.of(start).shifted(centre)
        positions = constellation.positions(middle)[own]
        isl_km = np.moveaxis(range_km(positions[:, None], positions[None]), 2, 0)
        ground_km = _ground_km(positions, constellation.stations, middle)
        in_contact = _in_contact(spans, centre, ground_km.shape)
        return cls(
            constellation=constellation,
            start=start,
            satellites=names,
            edges_s=edges,
            isl_bytes_per_s=_isl_rates(constellation, equipment, own, start, edges, isl_km),
            isl_km=isl_km,
            down_bytes_per_s=_ground_rates(equipment.downlink, in_contact, ground_km),
            up_bytes_per_s=_ground_rates(equipment.uplink or equipment.downlink, in_contact, ground_km),
            ground_km=ground_km,
        )

    @property
    def stations(self) -> tuple[Station, ...]:
        """Return the stations."""
        return self.constellation.stations

    @property
    def stop_s(self) -> float:
        """Return where the last cell ends, in seconds since the start."""
        return float(self.edges_s[-1])

    def seconds(self, when: datetime) -> float:
        """Return seconds since the start."""
        return (when - self.start).total_seconds()

    def datetime(self, seconds: float) -> datetime:
        """Return the instant this many seconds after the start."""
        return self.start + timedelta(seconds=seconds)

    def cell(self, at_s: float) -> int:
        """Return the cell an instant is in, that which begins there of two.

        Raises:
            ValueError: The instant is before the first cell or after the last.
        """
        if not 0 <= at_s <= self.stop_s:
            raise ValueError(f"{at_s:g} s is outside the timetable, which covers 0 to {self.stop_s:g} s")
        return min(int(np.searchsorted(self.edges_s, at_s, side="right")) - 1, len(self.edges_s) - 2)

    def cells(self, begin_s: float, end_s: float) -> slice:
        """Return the cells that the span touches, at least one."""
        first = self.cell(begin_s)
        return slice(first, max(first + 1, int(np.searchsorted(self.edges_s, end_s, side="left"))))

    def network(self, begin_s: float, end_s: float, nodes: Mapping[str, Node], stations: Sequence[int] = ()) -> Network:
        """Return the network that holds for a whole span: links that never end, at their lowest rate and longest delay.

        `nodes` are the computers by name; of the stations those by index take part that have one.
        """
        part = self.cells(begin_s, end_s)
        isl, far = self.isl_bytes_per_s[part].min(axis=0), self.isl_km[part].max(axis=0)
        down, up = self.down_bytes_per_s[part].min(axis=0), self.up_bytes_per_s[part].min(axis=0)
        ground = self.ground_km[part].max(axis=0)
        here = [n for n, name in enumerate(self.satellites) if name in nodes]
        there = [s for s in stations if self.stations[s].name in nodes]
        sat, names = self.satellites, [station.name for station in self.stations]
        rows = [(sat[a], sat[b], isl[a, b], far[a, b]) for a in here for b in here if a != b]
        rows += [(sat[n], names[s], down[n, s], ground[n, s]) for n in here for s in there]
        rows += [(names[s], sat[n], up[n, s], ground[n, s]) for n in here for s in there]
        links = tuple(Link(a, b, float(rate), float(delay_s(km))) for a, b, rate, km in rows if rate > 0)
        members = [*(sat[n] for n in here), *(names[s] for s in there)]
        return Network(
            f"{self.constellation.name} at {self.datetime(begin_s):%Y-%m-%dT%H:%M:%SZ}",
            tuple(replace(nodes[name], name=name) for name in members),
            links,
        )

    def changes_s(self, after_s: float, stations: Sequence[int]) -> list[float]:
        """Return when, after an instant, a link begins or ends, between satellites or to these stations."""
        columns = list(stations)
        down = self.down_bytes_per_s[:, :, columns] > 0
        up = self.up_bytes_per_s[:, :, columns] > 0
        count = len(self.edges_s) - 1
        there = np.concatenate([(self.isl_bytes_per_s > 0).reshape(count, -1), down.reshape(count, -1)], axis=1)
        there = np.concatenate([there, up.reshape(count, -1)], axis=1)
        changed = np.flatnonzero(np.any(there[1:] != there[:-1], axis=1)) + 1
        return [at for at in self.edges_s[changed].tolist() if at > after_s]

    def until_s(self, begin_s: float, links: Iterable[tuple[str, str]]) -> float:
        """Return when the first of the links (source, target) is no longer there, seen from an instant at which it is.

        The end of the timetable where none ends.
        """
        first = self.cell(begin_s)
        is_up = np.ones(len(self.edges_s) - 1 - first, dtype=np.bool_)
        for source, target in links:
            is_up &= self.rate_bytes_per_s(source, target)[first:] > 0
        ended = np.flatnonzero(~is_up)
        return self.stop_s if len(ended) == 0 else float(self.edges_s[first + ended[0]])

    def rate_bytes_per_s(self, source: str, target: str) -> Array:
        """Return the rate [K] from one satellite or station to another."""
        grounds = [station.name for station in self.stations]
        if target in grounds:
            rates = self.down_bytes_per_s[:, self.satellites.index(source), grounds.index(target)]
        elif source in grounds:
            rates = self.up_bytes_per_s[:, self.satellites.index(target), grounds.index(source)]
        else:
            rates = self.isl_bytes_per_s[:, self.satellites.index(source), self.satellites.index(target)]
        return rates


def _checked(constellation: Constellation, start: datetime, stop: datetime, step_s: float, guard_s: float) -> Equipment:
    if constellation.equipment is None:
        raise ValueError(f"constellation {constellation.name!r} has no equipment: give equipment=Equipment(node=...)")
    if not (math.isfinite(step_s) and 0.1 <= step_s <= _LONGEST_CELL_S):
        raise ValueError(f"step_s is {step_s}, must be from 0.1 to {_LONGEST_CELL_S:g}")
    if not (math.isfinite(guard_s) and 0 <= guard_s <= 600):
        raise ValueError(f"guard_s is {guard_s}, must be from 0 to 600")
    check_moment("start", start)
    check_moment("stop", stop)
    if stop <= start:
        raise ValueError(f"the timetable would stop at {stop}, it must be after its start {start}")
    return constellation.equipment


def _members(
    constellation: Constellation, satellites: Sequence[str] | None
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the names of the satellites that may take part, and their indices in the constellation [N]."""
    names = tuple(constellation.names if satellites is None else dict.fromkeys(names_of("satellites", satellites)))
    own = np.array([constellation.index(name) for name in names], dtype=np.int64)
    if len(names) > MOST_SATELLITES:
        raise ValueError(
            f"{len(names)} satellites are to be planned over time, at most {MOST_SATELLITES} can: name those that"
            " may take part in satellites"
        )
    return names, own


def _serving(
    contacts: Iterable[Contact], stations: Sequence[Station], names: Sequence[str], start: datetime, guard_s: float
) -> _Spans:
    """Return by satellite and station the spans that serve, in seconds: acquired, and not yet closing."""
    index = {station.name: s for s, station in enumerate(stations)}
    number = {name: n for n, name in enumerate(names)}
    spans: _Spans = {}
    for contact in contacts:
        if contact.satellite not in number:
            continue
        s = index[contact.station]
        begin = (contact.start - start).total_seconds() + stations[s].acquisition_s
        end = (contact.stop - start).total_seconds() - guard_s
        if end > max(begin, 0.0):
            spans.setdefault((number[contact.satellite], s), []).append((max(begin, 0.0), end))
    return spans


def _edges(spans: Iterable[Sequence[tuple[float, float]]], length_s: float, step_s: float) -> Array:
    """Return the edges of the cells: both ends of every span, and steps between them."""
    windows = [window for parts in spans for window in parts]
    fixed = sorted({0.0, length_s, *(edge for window in windows for edge in window if 0 < edge < length_s)})
    begins, ends = (np.array(sorted(side)) for side in (zip(*windows, strict=True) if windows else ([], [])))
    edges = [0.0]
    for low, high in pairwise(fixed):
        centre = (low + high) / 2
        is_contact = np.searchsorted(begins, centre) > np.searchsorted(ends, centre)
        count = max(1, math.ceil((high - low) / (step_s if is_contact else _LONGEST_CELL_S)))
        edges += [low + (high - low) * k / count for k in range(1, count)] + [high]
    return np.array(edges)


def _in_contact(spans: _Spans, centre_s: Array, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return whether a station serves a satellite in the middle [K] of each cell, as the shape [K, N, S] says."""
    found = np.zeros(shape, dtype=np.bool_)
    for (satellite, station), parts in spans.items():
        for begin, end in parts:
            found[:, satellite, station] |= (begin <= centre_s) & (centre_s <= end)
    return found


def _ground_rates(link: LinkRate | None, in_contact: npt.NDArray[np.bool_], ground_km: Array) -> Array:
    """Return the rates [K, N, S] of links to or from stations; without a link all are 0."""
    found: Array = np.where(in_contact, 0.0 if link is None else link.bytes_per_s(ground_km), 0.0)
    return found


def _isl_rates(
    constellation: Constellation,
    equipment: Equipment,
    own: npt.NDArray[np.int64],
    start: datetime,
    edges: Array,
    isl_km: Array,
) -> Array:
    if equipment.isl is None:
        return np.zeros(isl_km.shape)
    looks_s = np.arange(0.0, edges[-1] + _LONGEST_CELL_S, _LONGEST_CELL_S)
    linked = _linked(constellation, equipment.margin_km, own, Times.of(start).shifted(looks_s))
    before = np.searchsorted(looks_s, edges[:-1], side="right") - 1
    after = np.minimum(np.searchsorted(looks_s, edges[1:], side="left"), len(looks_s) - 1)
    # A cell is no longer than the time between looks, so at most one is inside it.
    is_up = linked[before] & linked[after] & linked[(before + after + 1) // 2]
    rates = equipment.isl.bytes_per_s(np.where(isl_km > 0, isl_km, 1.0))
    found: Array = np.where(is_up, rates, 0.0)
    return found


def _linked(
    constellation: Constellation, margin_km: float, own: npt.NDArray[np.int64], looks: Times
) -> npt.NDArray[np.bool_]:
    """Return whether satellites are linked [T, N, N]."""
    topology = constellation.topology
    if (
        isinstance(topology, Nearest)
        and topology.max_range_km is None
        and topology.acquisition_s == 0
        and len(constellation) <= topology.terminals + 1
    ):  # a terminal for everyone: all that see each other are linked
        positions = constellation.positions(looks)[own]
        seen = np.moveaxis(line_of_sight(positions[:, None], positions[None], margin_km=margin_km), 2, 0)
        return seen & ~np.eye(len(own), dtype=np.bool_)
    number = {int(n): k for k, n in enumerate(own)}
    linked = np.zeros((len(looks), len(own), len(own)), dtype=np.bool_)
    for k, at in enumerate(looks.julian().tolist()):
        # A Julian date in one number is good to 50 us, in which a satellite moves 40 cm.
        pairs, _ = constellation.links(at)
        for a, b in pairs.tolist():
            if a in number and b in number:
                linked[k, number[a], number[b]] = linked[k, number[b], number[a]] = True
    return linked


def _ground_km(positions: Array, stations: Sequence[Station], times: Times) -> Array:
    """Return ranges [K, N, S] of positions [N, K, 3] from the stations."""
    angle = times.sidereal_rad()
    ranges = [range_km(positions, rotated(station.position_km(), angle)) for station in stations]
    return np.moveaxis(np.stack(ranges, axis=-1), 1, 0)
