"""Contacts of ground stations with satellites, from sampled orbits; their edges are found between samples.

Samples are TEME states. Between two of them the orbit is the cubic through both positions and velocities, which for
steps of up to 60 s is accurate to half a metre in low orbits: refinement needs no further propagation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from .earth import EARTH_RAD_PER_S, Array, rotated
from .stations import Station, elevation_deg
from .times import Times

LONGEST_STEP_S = 60.0

Index = npt.NDArray[np.int64]

_BISECTIONS = 20
_GOLDEN_STEPS = 16
_GOLDEN = (math.sqrt(5) - 1) / 2
# The largest angle between the geodetic zenith and the geocentric one, which the coarse filter uses.
_ZENITH_DEG = 0.2


@dataclass(frozen=True, slots=True)
class Contact:
    """A satellite above a station's mask from `start` to `stop` (UTC), and its largest elevation, at `highest`."""

    satellite: str
    station: str
    start: datetime
    stop: datetime
    max_elevation_deg: float
    highest: datetime

    @property
    def duration_s(self) -> float:
        """Return seconds from start to stop."""
        return (self.stop - self.start).total_seconds()


@dataclass(frozen=True, slots=True)
class _Events:
    """Events in seconds since the start of the span: kind 1 rises, -1 sets, 0 is highest."""

    satellite: Index
    at_s: Array
    kind: Index
    elevation_deg: Array


@dataclass(frozen=True, slots=True)
class _Arcs:
    """Orbits [A] between three samples `step_s` apart, about the middle one: states [A, 3, 3], sidereal angle [A]."""

    positions: Array
    velocities: Array
    angle_rad: Array
    step_s: float
    station: Station

    def elevation_deg(self, seconds: Array) -> Array:
        """Return the elevation [A] at `seconds` [A] from the middle sample, -step_s to step_s."""
        row, first = np.arange(len(seconds)), np.where(seconds < 0, 0, 1)
        u = (seconds / self.step_s + np.where(seconds < 0, 1.0, 0.0))[:, None]
        r0, r1 = self.positions[row, first], self.positions[row, first + 1]
        v0, v1 = (self.velocities[row, k] * self.step_s for k in (first, first + 1))
        place = r0 + u * (v0 + u * (3 * (r1 - r0) - 2 * v0 - v1 + u * (2 * (r0 - r1) + v0 + v1)))
        return elevation_deg(place, self.station, self.angle_rad + EARTH_RAD_PER_S * seconds)

    def crossing_s(self, low: Array, high: Array) -> Array:
        """Return when the elevation passes the mask, which it does between `low` and `high`."""
        is_up = self.elevation_deg(low) >= self.station.mask_deg
        low, high = low.copy(), high.copy()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            is_low = (self.elevation_deg(middle) >= self.station.mask_deg) == is_up
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        crossing: Array = (low + high) / 2
        return crossing

    def highest(self) -> tuple[Array, Array]:
        """Return when [A] the elevation is largest, and that elevation in degrees, by golden section."""
        low, high = np.full(len(self.angle_rad), -self.step_s), np.full(len(self.angle_rad), self.step_s)
        for _ in range(_GOLDEN_STEPS):
            width = _GOLDEN * (high - low)
            is_left = self.elevation_deg(high - width) > self.elevation_deg(low + width)
            low, high = np.where(is_left, low, high - width), np.where(is_left, low + width, high)
        best = (low + high) / 2
        return best, self.elevation_deg(best)

    def part(self, rows: npt.NDArray[np.bool_]) -> _Arcs:
        """Return some of the arcs."""
        return _Arcs(self.positions[rows], self.velocities[rows], self.angle_rad[rows], self.step_s, self.station)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Samples of all satellites: states [N, T, 3], sidereal angle [T], radius [N, T], fastest angular motion [N]."""

    positions: Array
    velocities: Array
    angle_rad: Array
    radius_km: Array
    motion_rad_per_s: Array
    step_s: float

    @classmethod
    def of(cls, times: Times, positions: Array, velocities: Array, step_s: float) -> _Chunk:
        """Return the chunk with the quantities that all stations need."""
        radius = np.linalg.norm(positions, axis=-1)
        motion = np.max(np.linalg.norm(velocities, axis=-1) / radius, axis=1) + EARTH_RAD_PER_S
        return cls(positions, velocities, times.sidereal_rad(), radius, motion, step_s)

    def arcs(self, satellite: Index, k: Index, station: Station) -> _Arcs:
        """Return the orbits around sample k of each satellite."""
        around = k[:, None] + np.array([-1, 0, 1])
        own = satellite[:, None]
        return _Arcs(self.positions[own, around], self.velocities[own, around], self.angle_rad[k], self.step_s, station)


def contacts_of(
    chunks: Iterator[tuple[Times, Array, Array]],
    ends: Array,
    stations: Sequence[Station],
    names: Sequence[str],
    step_s: float,
    span: tuple[datetime, datetime],
) -> list[Contact]:
    """Return the contacts of a span, by start time.

    `chunks` are times [T] and states [N, T, 3], of which each begins with the last two samples of the one before; the
    first sample is a step before the span, the last at least a step after it. `ends` are the elevations [S, N, 2] at
    both ends of the span, which cut contacts.
    """
    events: list[list[_Events]] = [[] for _ in stations]
    first_s, length_s = -step_s, (span[1] - span[0]).total_seconds()
    for times, positions, velocities in chunks:
        chunk = _Chunk.of(times, positions, velocities, step_s)
        for found, station in zip(events, stations, strict=True):
            found.append(_events(chunk, station, first_s))
        first_s += step_s * (len(times) - 2)
    contacts = [
        contact
        for found, station, end in zip(events, stations, ends, strict=True)
        for contact in _windows([*found, _cut(end, station.mask_deg, length_s)], station, names, span[0], length_s)
    ]
    return sorted(contacts, key=lambda contact: (contact.start, contact.station, contact.satellite))


def _events(chunk: _Chunk, station: Station, first_s: float) -> _Events:
    """Return the events around the samples 1 ... T - 2 of a chunk whose first sample is `first_s` into the span.

    An edge between samples k and k + 1 belongs to k, so adjacent chunks do not find it twice.
    """
    count, step_s = len(chunk.angle_rad), chunk.step_s
    near = np.flatnonzero(_may_be_seen(chunk, station))
    satellite, k = np.divmod(near, count)
    flat = elevation_deg(chunk.positions.reshape(-1, 3)[near], station, chunk.angle_rad[k])
    follows = np.zeros(len(near) + 1, dtype=np.bool_)
    follows[1:-1] = (np.diff(near) == 1) & (np.diff(satellite) == 0)
    padded = np.concatenate([[-90.0], flat, [-90.0]])
    before, after = np.where(follows[:-1], padded[:-2], -90.0), np.where(follows[1:], padded[2:], -90.0)
    middle = (k > 0) & (k < count - 1)
    is_up, will_be_up = flat >= station.mask_deg, after >= station.mask_deg
    parts: list[_Events] = []
    edge = middle & (is_up != will_be_up)
    arcs = chunk.arcs(satellite[edge], k[edge], station)
    zero = np.zeros(len(arcs.angle_rad))
    at_s = arcs.crossing_s(zero, zero + step_s) + k[edge] * step_s
    parts.append(_Events(satellite[edge], at_s, np.where(is_up[edge], -1, 1), zero))
    top = middle & (flat >= before) & (flat > after)
    is_short = ~is_up[top] & (before[top] < station.mask_deg) & ~will_be_up[top]
    parts += _tops(chunk.arcs(satellite[top], k[top], station), satellite[top], k[top] * step_s, is_short)
    return _joined(parts, first_s)


def _tops(arcs: _Arcs, satellite: Index, at_s: Array, is_short: npt.NDArray[np.bool_]) -> list[_Events]:
    """Return the culminations, and both edges of the passes that rise and set between two samples."""
    offset, height = arcs.highest()
    seen = height >= arcs.station.mask_deg
    zero = np.zeros(len(satellite), dtype=np.int64)
    found = [_Events(satellite[seen], (at_s + offset)[seen], zero[seen], height[seen])]
    short = seen & is_short
    part = arcs.part(short)
    for kind, side in ((1, -arcs.step_s), (-1, arcs.step_s)):
        edge_s = part.crossing_s(np.full(len(part.angle_rad), side), offset[short])
        found.append(_Events(satellite[short], at_s[short] + edge_s, zero[short] + kind, height[short]))
    return found


def _may_be_seen(chunk: _Chunk, station: Station) -> npt.NDArray[np.bool_]:
    """Return for samples [N, T] whether the satellite may be above the mask within a step.

    A cheap filter, applied to every sample: one product and one comparison each.
    """
    position = station.position_km()
    place = float(np.linalg.norm(position))
    zenith = math.radians(_ZENITH_DEG)
    mask = math.radians(station.mask_deg) - zenith
    ratio = place * math.cos(mask) / np.max(chunk.radius_km, axis=1)
    reach = np.arccos(np.clip(ratio, -1.0, 1.0)) - mask + zenith + 1.5 * chunk.step_s * chunk.motion_rad_per_s
    towards = rotated(position / place, chunk.angle_rad)
    limit = np.cos(np.minimum(reach, math.pi))
    near: npt.NDArray[np.bool_] = np.einsum("ntx,tx->nt", chunk.positions, towards) >= limit[:, None] * chunk.radius_km
    return near


def _joined(parts: Sequence[_Events], later_s: float = 0.0) -> _Events:
    return _Events(
        np.concatenate([part.satellite for part in parts]),
        np.concatenate([part.at_s for part in parts]) + later_s,
        np.concatenate([part.kind for part in parts]),
        np.concatenate([part.elevation_deg for part in parts]),
    )


def _cut(ends: Array, mask_deg: float, length_s: float) -> _Events:
    """Return the events that open and close, at the ends of the span, the contacts cut there; `ends` is [N, 2]."""
    parts = []
    for side, kind, at_s in ((0, 1, 0.0), (1, -1, length_s)):
        seen = np.flatnonzero(ends[:, side] >= mask_deg)
        for what in (kind, 0):
            parts.append(_Events(seen, np.full(len(seen), at_s), np.full(len(seen), what), ends[seen, side]))
    return _joined(parts)


def _windows(
    found: Sequence[_Events], station: Station, names: Sequence[str], start: datetime, length_s: float
) -> Iterator[Contact]:
    """Pair rises with sets, satellite by satellite."""
    events = _joined(found)
    inside = (events.at_s >= 0) & (events.at_s <= length_s)
    satellite, at_s = events.satellite[inside], events.at_s[inside]
    kind, elevation = events.kind[inside], events.elevation_deg[inside]
    order = np.lexsort((-kind, at_s, satellite))
    rows = zip(*(column[order].tolist() for column in (satellite, at_s, kind, elevation)), strict=True)
    current, since, top = -1, -1.0, (-90.0, 0.0)
    for own, at, what, height in rows:
        if own != current:
            current, since = own, -1.0
        if what == 1 and since < 0:
            since, top = at, (-90.0, at)
        elif what == 0 and since >= 0:
            top = max(top, (height, at))
        elif what == -1 and since >= 0:
            if at > since:
                rise, fall, highest = (start + timedelta(seconds=seconds) for seconds in (since, at, top[1]))
                yield Contact(names[own], station.name, rise, fall, top[0], highest)
            since = -1.0
