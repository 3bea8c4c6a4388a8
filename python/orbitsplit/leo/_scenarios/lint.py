"""Checks of a designed constellation against geometry: each finding states the fact, the limit, and a fix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._io.validation import quoted
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.contacts import Contact
from orbitsplit.leo._orbits.earth import ATMOSPHERE_MARGIN_KM, EARTH_RADIUS_KM, Array, line_of_sight, range_km
from orbitsplit.leo._orbits.link_budget import LinkRate
from orbitsplit.leo._orbits.stations import Station
from orbitsplit.leo._orbits.times import Times
from orbitsplit.leo._orbits.topology import pairs_within
from orbitsplit.leo._orbits.validation import check_moment, check_not_negative, check_positive, names_of

# Satellites whose ideal orbits intersect pass 14 km apart at 500 km: only the Earth's pear shape (J3) separates them.
COLLISION_KM = 20.0

_LINK_STEP_S = 30.0
_COLLISION_STEP_S = 15.0
# The highest relative speed of two satellites in low orbits, head on.
_CLOSING_KM_PER_S = 16.0

Kind = Literal["link", "collision", "station", "contact"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What geometry never allows (`is_error`) or only part of the time; `message` includes a fix."""

    kind: Kind
    is_error: bool
    message: str

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.message}"


def lint(
    constellation: Constellation,
    *,
    start: datetime | None = None,
    hours: float = 24.0,
    chains: Sequence[Sequence[str]] = (),
    transfer_bytes: float | None = None,
    collision_km: float = COLLISION_KM,
) -> tuple[Finding, ...]:
    """Return what geometry does not allow: links of `chains` of satellites, collisions, stations, downlink transfers.

    Links and collisions are checked over one revolution from `start` (default: the epoch), stations over `hours`.
    `transfer_bytes` is what one contact with a station should transmit to the ground.

    Raises:
        ValueError: A chain is empty or names no satellite, or a number is out of range.
        TypeError: A chain is not a sequence of names, or an argument is of another type.
    """
    if start is not None:
        check_moment("start", start)
    check_positive("hours", hours)
    if transfer_bytes is not None:
        check_not_negative("transfer_bytes", transfer_bytes)
    begin = constellation.epoch if start is None else start
    found: list[Finding] = []
    if isinstance(chains, str):
        raise TypeError(f"chains is the string {quoted(chains)}, must be a sequence of chains: [[{quoted(chains)}]]")
    for chain in chains:
        found += lint_chain(constellation, chain, start=begin)
    found += lint_collisions(constellation, start=begin, collision_km=collision_km)
    if constellation.stations:
        contacts = constellation.contacts(begin, begin + timedelta(hours=hours))
        for station in constellation.stations:
            own = [contact for contact in contacts if contact.station == station.name]
            found += _station_findings(constellation, station, own, begin, hours, transfer_bytes)
    return tuple(found)


def lint_chain(constellation: Constellation, chain: Sequence[str], *, start: datetime | None = None) -> list[Finding]:
    """Return the links of a chain of satellites that are not always in line of sight over one revolution.

    Raises:
        ValueError: The chain is empty or names no satellite.
        TypeError: It is not a sequence of names.
    """
    chain = names_of("a chain", chain)
    if not chain:
        raise ValueError("a chain is empty, it must name at least one satellite")
    members = [constellation.index(name) for name in chain]
    if len(set(members)) < len(members):
        raise ValueError(f"the chain {', '.join(chain)} names a satellite twice")
    if len(members) < 2:
        return []
    margin_km = _margin_km(constellation)
    times = _revolution(constellation, start, _LINK_STEP_S)
    positions = Constellation("chain", tuple(constellation.satellites[k] for k in members)).positions(times)
    found = []
    for k in range(len(members) - 1):
        a, b = positions[k], positions[k + 1]
        share = float(np.mean(line_of_sight(a, b, margin_km=margin_km)))
        if share < 1:
            found.append(_link_finding(constellation, chain[k], chain[k + 1], a, b, share, margin_km))
    return found


def lint_collisions(
    constellation: Constellation, *, start: datetime | None = None, collision_km: float = COLLISION_KM
) -> list[Finding]:
    """Return the pairs of satellites that come within `collision_km` of each other in one revolution, nearest first.

    Raises:
        ValueError: `collision_km` is not positive.
    """
    check_positive("collision_km", collision_km)
    # Between samples relative motion is taken as straight: in that time orbits curve by 0.2 km.
    reach = collision_km + _CLOSING_KM_PER_S * _COLLISION_STEP_S / 2
    nearest: dict[tuple[int, int], float] = {}
    for _, positions, velocities in constellation.chunks(_revolution(constellation, start, _COLLISION_STEP_S)):
        for t in range(positions.shape[1]):
            pairs, _ = pairs_within(positions[:, t], reach)
            apart = _closest_km(positions[:, t], velocities[:, t], pairs)
            for k in np.flatnonzero(apart < collision_km).tolist():
                pair = (int(pairs[k, 0]), int(pairs[k, 1]))
                nearest[pair] = min(nearest.get(pair, math.inf), float(apart[k]))
    names = constellation.names
    ranked = sorted(nearest.items(), key=lambda item: (round(item[1], 3), item[0]))
    return [_collision_finding(constellation, names[a], names[b], km, collision_km) for (a, b), km in ranked]


def _closest_km(positions: Array, velocities: Array, pairs: npt.NDArray[np.int64]) -> Array:
    """Return the closest approach of each pair [L, 2] within half a step of this instant, in straight motion."""
    apart = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    closing = velocities[pairs[:, 1]] - velocities[pairs[:, 0]]
    squared = np.maximum(np.sum(closing * closing, axis=1), 1e-12)
    when = np.clip(-np.sum(apart * closing, axis=1) / squared, -_COLLISION_STEP_S / 2, _COLLISION_STEP_S / 2)
    closest: Array = np.linalg.norm(apart + when[:, None] * closing, axis=1)
    return closest


def _link_finding(
    constellation: Constellation, first: str, second: str, a: Array, b: Array, share: float, margin_km: float
) -> Finding:
    radii = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    # A circular orbit around the flattened Earth is not exactly circular: a fix must hold at its lowest point.
    lowest, mean = float(np.min(radii)), float(np.mean(radii))
    widest = math.acos(max(-1.0, float(np.min(np.sum(a * b, axis=-1) / (radii[0] * radii[1])))))
    grazing = EARTH_RADIUS_KM + margin_km
    limit_km = 2 * math.sqrt(max(mean**2 - grazing**2, 0.0))
    fixes = []
    if widest < math.radians(170):
        altitude = grazing / math.cos(widest / 2) + mean - lowest - EARTH_RADIUS_KM
        fixes.append(f"an altitude of {math.ceil(altitude / 10) * 10:,} km")
    reach = math.acos(min(1.0, grazing / lowest))
    if reach > 0:
        fixes.append(f"{math.ceil(math.pi / reach)} or more satellites evenly in one plane")
    when = "never see each other" if share == 0 else f"see each other {share:.0%} of the time"
    return Finding(
        "link",
        share == 0,
        f"{quoted(first)} and {quoted(second)} {when}: they are up to "
        f"{float(range_km(a, b).max()):,.0f} km apart, and a line of"
        f" sight {margin_km:g} km above the Earth ends at {limit_km:,.0f} km; {' or '.join(fixes)} would hold the link",
    )


def _collision_finding(constellation: Constellation, first: str, second: str, km: float, limit: float) -> Finding:
    pattern = constellation.pattern
    if pattern is not None and pattern.planes > 1:
        others = [f for f in range(pattern.planes) if f != pattern.phasing]
        some = ", ".join(map(str, others[:6]))
        fix = f"another phasing than {pattern.phasing} (of {some}) or planes at other altitudes"
    else:
        fix = "another phase or altitude of one of them"
    return Finding(
        "collision",
        True,
        f"{quoted(first)} and {quoted(second)} come within {km:.1f} km of each other, the limit is {limit:g} km;"
        f" {fix} would separate them",
    )


def _station_findings(
    constellation: Constellation,
    station: Station,
    contacts: list[Contact],
    start: datetime,
    hours: float,
    transfer_bytes: float | None,
) -> list[Finding]:
    if not contacts:
        return [_never_seen(constellation, station, start, hours)]
    equipment = constellation.equipment
    if transfer_bytes is None or equipment is None or equipment.downlink is None:
        return []
    longest = max(contacts, key=lambda contact: contact.duration_s)
    available = _contact_bytes(constellation, longest, station, equipment.downlink)
    if available >= transfer_bytes:
        return []
    seconds = longest.duration_s
    return [
        Finding(
            "contact",
            True,
            f"{format_bytes(transfer_bytes)} do not fit into a contact of "
            f"station {quoted(station.name)}: the longest in"
            f" {hours:g} h, with {quoted(longest.satellite)}, lasts {format_seconds(seconds)} and transmits"
            f" {format_bytes(available)};"
            f" {8 * transfer_bytes / seconds / 1e6:,.1f} Mbit/s,"
            f" {math.ceil(transfer_bytes / max(available, 1.0))} contacts"
            " or"
            f" {format_bytes(available)} would fit",
        )
    ]


def _never_seen(constellation: Constellation, station: Station, start: datetime, hours: float) -> Finding:
    """Return the finding of a station that never sees a satellite: largest elevation, and latitudes that are served."""
    times = Times.span(start, start + timedelta(hours=min(hours, 24.0)), 60.0)
    single = constellation.served_by(station)
    highest = max(float(single_part.max()) for single_part in _elevations(single, times))
    inclination = max(min(s.inclination_deg, 180 - s.inclination_deg) for s in constellation.satellites)
    top = max(satellite.apogee_km for satellite in constellation.satellites)
    mask = math.radians(station.mask_deg)
    seen = math.degrees(math.acos(EARTH_RADIUS_KM * math.cos(mask) / (EARTH_RADIUS_KM + top)) - mask)
    reach = min(90.0, inclination + seen)
    if abs(station.latitude_deg) > reach:
        fix = (
            f"at an inclination of {inclination:.1f} deg and up to {top:,.0f} km they serve latitudes up to"
            f" {reach:.1f} deg:"
            f" an inclination of {math.ceil(abs(station.latitude_deg) - seen)} deg or a station nearer the equator"
            " would do"
        )
    elif highest > 0:
        fix = f"a mask of {math.floor(highest)} deg, more hours or more satellites would do"
    else:
        fix = "more hours or more satellites would do"
    return Finding(
        "station",
        True,
        f"station {quoted(station.name)} at latitude {station.latitude_deg:g} "
        f"deg sees no satellite in {hours:g} h: they rise"
        f" to {highest:.1f} deg, its mask is {station.mask_deg:g} deg; {fix}",
    )


def _elevations(constellation: Constellation, times: Times) -> list[Array]:
    return [constellation.elevation_deg(part) for part, _, _ in constellation.chunks(times)]


def _contact_bytes(constellation: Constellation, contact: Contact, station: Station, rate: LinkRate) -> float:
    """Return the bytes of a contact: its rate by range, integrated."""
    times = Times.span(contact.start, contact.stop, max(contact.duration_s / 400, 0.01))
    satellite = constellation.satellites[constellation.index(contact.satellite)]
    fixed = Constellation("one", (satellite,)).positions(times, frame="earth_fixed")[0]
    rates = rate.bytes_per_s(range_km(fixed, station.position_km()))
    return float(np.mean(np.broadcast_to(rates, len(times)))) * contact.duration_s


def _revolution(constellation: Constellation, start: datetime | None, step_s: float) -> Times:
    first = constellation.epoch if start is None else start
    longest = max(satellite.period_s for satellite in constellation.satellites)
    return Times.span(first, first + timedelta(seconds=longest), step_s)


def _margin_km(constellation: Constellation) -> float:
    return ATMOSPHERE_MARGIN_KM if constellation.equipment is None else constellation.equipment.margin_km
