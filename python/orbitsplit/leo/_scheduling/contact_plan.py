"""Contact plans: the links over a span of time, in cells of constant rate between the edges of contacts.

Cells begin and end where a contact opens or closes, and are at most a step long. Links between satellites are sampled
once a minute, and are up in a cell if they are up at the samples before and after it. Rates and ranges are those at the
middle of the cell.
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

from orbitsplit._io.deprecation import takes_renamed
from orbitsplit._io.validation import quoted
from orbitsplit._network.network import Link, Network, Node
from orbitsplit.leo._orbits.constellation import Constellation, Equipment
from orbitsplit.leo._orbits.contacts import Contact
from orbitsplit.leo._orbits.earth import Array, delay_s, line_of_sight, range_km, rotated
from orbitsplit.leo._orbits.link_budget import LinkRate
from orbitsplit.leo._orbits.stations import Station
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._orbits.topology import Nearest
from orbitsplit.leo._orbits.validation import check_between, check_moment, names_of

# A contact plan has cells x satellites x satellites rates.
MAX_SATELLITES = 64
# Between contacts only links between satellites can change, and slowly.
_LONGEST_CELL_S = 60.0
# The longest acquisition time of a station, which a contact that began before the timetable may have spent already.
_MAX_ACQUISITION_S = 3600.0

# By satellite and station, begin and end of each usable span, in seconds.
_Spans: TypeAlias = dict[tuple[int, int], list[tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Timetable:
    """A contact plan: the rate and range of every link, cell by cell, for K cells, N satellites and S stations.

    `edges_s` [K + 1] are seconds since `start`. `isl_bytes_per_s` and `isl_km` are [K, N, N], `down_bytes_per_s`,
    `up_bytes_per_s` and `ground_km` [K, N, S]; a rate of 0 is no link. The antenna of a station points where a plan
    needs it: every satellite in contact may be served, as many at once as there are antennas.
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
        """Return the links between start and stop, in cells of at most `step_s` while a station is in contact.

        Between contacts a cell lasts up to a minute. The last `guard_s` of a contact are not used. `satellites` names
        those that may take part (default: all).

        Raises:
            TypeError: An argument is of another type.
            ValueError: There is no equipment or no station, too many satellites, a time has no time zone, or a number
                is out of range.
        """
        equipment = _checked(constellation, start, stop, step_s, guard_s)
        names, own = _members(constellation, satellites)
        contacts = constellation.contacts(start - timedelta(seconds=_MAX_ACQUISITION_S), stop)
        spans = _usable_spans(contacts, constellation.stations, names, start, guard_s)
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
        """Return the end of the last cell, in seconds since the start."""
        return float(self.edges_s[-1])

    def seconds(self, when: datetime) -> float:
        """Return seconds since the start."""
        return (when - self.start).total_seconds()

    def datetime(self, seconds: float) -> datetime:
        """Return the instant this many seconds after the start."""
        return self.start + timedelta(seconds=seconds)

    def cell(self, at_s: float) -> int:
        """Return the cell that contains an instant; on an edge, the cell that begins there.

        Raises:
            ValueError: The instant is before the first cell or after the last.
        """
        if not 0 <= at_s <= self.stop_s:
            raise ValueError(f"{at_s:g} s is outside the timetable, which covers 0 to {self.stop_s:g} s")
        return min(int(np.searchsorted(self.edges_s, at_s, side="right")) - 1, len(self.edges_s) - 2)

    def cells(self, begin_s: float, end_s: float) -> slice:
        """Return the cells that a span overlaps, at least one."""
        first = self.cell(begin_s)
        return slice(first, max(first + 1, int(np.searchsorted(self.edges_s, end_s, side="left"))))

    def network(self, begin_s: float, end_s: float, nodes: Mapping[str, Node], stations: Sequence[int] = ()) -> Network:
        """Return the network over a whole span: the links that last through it, at lowest rate and longest delay.

        `nodes` are the computers by name. Of `stations`, by index, those with a computer take part.
        """
        part = self.cells(begin_s, end_s)
        isl, isl_km = self.isl_bytes_per_s[part].min(axis=0), self.isl_km[part].max(axis=0)
        down, up = self.down_bytes_per_s[part].min(axis=0), self.up_bytes_per_s[part].min(axis=0)
        ground_km = self.ground_km[part].max(axis=0)
        own = [n for n, name in enumerate(self.satellites) if name in nodes]
        servers = [s for s in stations if self.stations[s].name in nodes]
        sat, names = self.satellites, [station.name for station in self.stations]
        rows = [(sat[a], sat[b], isl[a, b], isl_km[a, b]) for a in own for b in own if a != b]
        rows += [(sat[n], names[s], down[n, s], ground_km[n, s]) for n in own for s in servers]
        rows += [(names[s], sat[n], up[n, s], ground_km[n, s]) for n in own for s in servers]
        links = tuple(Link(a, b, float(rate), float(delay_s(km))) for a, b, rate, km in rows if rate > 0)
        members = [*(sat[n] for n in own), *(names[s] for s in servers)]
        return Network(
            f"{self.constellation.name} at {self.datetime(begin_s):%Y-%m-%dT%H:%M:%SZ}",
            tuple(replace(nodes[name], name=name) for name in members),
            links,
        )

    def changes_s(self, after_s: float, stations: Sequence[int]) -> list[float]:
        """Return the instants after `after_s` at which a link opens or closes, between satellites or to `stations`."""
        columns = list(stations)
        down = self.down_bytes_per_s[:, :, columns] > 0
        up = self.up_bytes_per_s[:, :, columns] > 0
        count = len(self.edges_s) - 1
        isl = self.isl_bytes_per_s > 0
        is_up = np.concatenate([rates.reshape(count, -1) for rates in (isl, down, up)], axis=1)
        changed = np.flatnonzero(np.any(is_up[1:] != is_up[:-1], axis=1)) + 1
        return [at for at in self.edges_s[changed].tolist() if at > after_s]

    def until_s(self, begin_s: float, links: Iterable[tuple[str, str]]) -> float:
        """Return when the first of the links (source, destination) closes, all of which are up at `begin_s`.

        If none closes, that is the end of the timetable.
        """
        first = self.cell(begin_s)
        is_up = np.ones(len(self.edges_s) - 1 - first, dtype=np.bool_)
        for source, destination in links:
            is_up &= self.rate_bytes_per_s(source, destination)[first:] > 0
        closed = np.flatnonzero(~is_up)
        return self.stop_s if len(closed) == 0 else float(self.edges_s[first + closed[0]])

    @takes_renamed(target="destination")
    def rate_bytes_per_s(self, source: str, destination: str) -> Array:
        """Return the rate [K] from one satellite or station to another."""
        stations = [station.name for station in self.stations]
        if destination in stations:
            rates = self.down_bytes_per_s[:, self.satellites.index(source), stations.index(destination)]
        elif source in stations:
            rates = self.up_bytes_per_s[:, self.satellites.index(destination), stations.index(source)]
        else:
            rates = self.isl_bytes_per_s[:, self.satellites.index(source), self.satellites.index(destination)]
        return rates


def _checked(constellation: Constellation, start: datetime, stop: datetime, step_s: float, guard_s: float) -> Equipment:
    if constellation.equipment is None:
        raise ValueError(
            f"constellation {quoted(constellation.name)} has no equipment: give equipment=Equipment(node=...)"
        )
    check_between("step_s", step_s, 0.1, _LONGEST_CELL_S)
    check_between("guard_s", guard_s, 0.0, 600.0)
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
    if len(names) > MAX_SATELLITES:
        raise ValueError(
            f"a timetable has at most {MAX_SATELLITES} satellites, {len(names)} are given: name those that may take"
            " part in satellites"
        )
    return names, own


def _usable_spans(
    contacts: Iterable[Contact], stations: Sequence[Station], names: Sequence[str], start: datetime, guard_s: float
) -> _Spans:
    """Return the usable spans by satellite and station, in seconds: after acquisition and before the guard time."""
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
    """Return the edges of the cells: both ends of every span, and steps in between."""
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
    """Return whether a station can serve a satellite at the middle [K] of each cell; `shape` is [K, N, S]."""
    found = np.zeros(shape, dtype=np.bool_)
    for (satellite, station), parts in spans.items():
        for begin, end in parts:
            found[:, satellite, station] |= (begin <= centre_s) & (centre_s <= end)
    return found


def _ground_rates(link: LinkRate | None, in_contact: npt.NDArray[np.bool_], ground_km: Array) -> Array:
    """Return the rates [K, N, S] of links to or from stations; without `link` all are 0."""
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
    samples_s = np.arange(0.0, edges[-1] + _LONGEST_CELL_S, _LONGEST_CELL_S)
    linked = _linked(constellation, equipment.margin_km, own, Times.of(start).shifted(samples_s))
    before = np.searchsorted(samples_s, edges[:-1], side="right") - 1
    after = np.minimum(np.searchsorted(samples_s, edges[1:], side="left"), len(samples_s) - 1)
    # A cell is no longer than the time between samples, so it contains at most one.
    is_up = linked[before] & linked[after] & linked[(before + after + 1) // 2]
    rates = equipment.isl.bytes_per_s(np.where(isl_km > 0, isl_km, 1.0))
    found: Array = np.where(is_up, rates, 0.0)
    return found


def _linked(
    constellation: Constellation, margin_km: float, own: npt.NDArray[np.int64], times: Times
) -> npt.NDArray[np.bool_]:
    """Return whether satellites are linked [T, N, N]."""
    topology = constellation.topology
    if (
        isinstance(topology, Nearest)
        and topology.max_range_km is None
        and topology.acquisition_s == 0
        and len(constellation) <= topology.terminals + 1
    ):  # terminals for all: every pair in line of sight is linked
        positions = constellation.positions(times)[own]
        seen = np.moveaxis(line_of_sight(positions[:, None], positions[None], margin_km=margin_km), 2, 0)
        return seen & ~np.eye(len(own), dtype=np.bool_)
    number = {int(n): k for k, n in enumerate(own)}
    linked = np.zeros((len(times), len(own), len(own)), dtype=np.bool_)
    for k, at in enumerate(times.julian().tolist()):
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
