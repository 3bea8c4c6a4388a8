"""Constellations from Walker patterns, from the elements of single satellites, and from files of elements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from orbitsplit._io.validation import check_number, quoted, tuple_of

from . import element_files, tle
from .constellation import Constellation, Equipment
from .names import with_distinct_names
from .satellites import DESIGNED_AGE_DAYS, MEASURED_AGE_DAYS, from_elements
from .stations import Station
from .walker import Pattern

# The epoch of designed constellations: arbitrary, but fixed, so that networks are reproducible.
DEFAULT_EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


def walker_delta(
    total: int,
    planes: int,
    phasing: int,
    *,
    altitude_km: float,
    inclination_deg: float,
    epoch: datetime | float = DEFAULT_EPOCH,
    raan_deg: float = 0.0,
    name: str = "sat",
    equipment: Equipment | None = None,
    stations: Sequence[Station] = (),
) -> Constellation:
    """Return the Walker delta i:t/p/f: circular orbits, nodes spread over 360 deg from `raan_deg`.

    Satellites are called `name`-plane-slot, of a single plane `name`-slot.

    Raises:
        ValueError: The planes do not divide the satellites, or a number is out of range.
    """
    pattern = Pattern(total, planes, phasing, inclination_deg)
    return _walker(pattern, altitude_km, epoch, raan_deg, name, equipment, stations)


def walker_star(
    total: int,
    planes: int,
    phasing: int,
    *,
    altitude_km: float,
    inclination_deg: float,
    epoch: datetime | float = DEFAULT_EPOCH,
    raan_deg: float = 0.0,
    name: str = "sat",
    equipment: Equipment | None = None,
    stations: Sequence[Station] = (),
) -> Constellation:
    """Return the Walker star i:t/p/f: as the delta, with nodes spread over 180 deg, for near-polar orbits.

    Raises:
        ValueError: As `walker_delta`.
    """
    pattern = Pattern(total, planes, phasing, inclination_deg, spread_deg=180.0)
    return _walker(pattern, altitude_km, epoch, raan_deg, name, equipment, stations)


def single(
    name: str,
    *,
    altitude_km: float,
    inclination_deg: float,
    eccentricity: float = 0.0,
    raan_deg: float = 0.0,
    argument_of_perigee_deg: float = 0.0,
    mean_anomaly_deg: float = 0.0,
    bstar: float = 0.0,
    epoch: datetime | float = DEFAULT_EPOCH,
    max_age_days: float = DESIGNED_AGE_DAYS,
    equipment: Equipment | None = None,
    stations: Sequence[Station] = (),
) -> Constellation:
    """Return a constellation of one satellite with these mean elements; add several with `+`.

    The semi-major axis is `altitude_km` + 6378.137 km; `bstar` is the drag term of SGP4 in 1 / Earth radii.

    Raises:
        ValueError: A number is out of range, or the orbit intersects the Earth.
    """
    satellite = from_elements(
        name,
        epoch=epoch,
        altitude_km=altitude_km,
        inclination_deg=inclination_deg,
        eccentricity=eccentricity,
        raan_deg=raan_deg,
        argument_of_perigee_deg=argument_of_perigee_deg,
        mean_anomaly_deg=mean_anomaly_deg,
        bstar=bstar,
        max_age_days=max_age_days,
    )
    return Constellation(name, (satellite,), None, equipment, tuple_of("stations", stations))


def load(
    path: str | Path,
    *,
    max_age_days: float = MEASURED_AGE_DAYS,
    equipment: Equipment | None = None,
    stations: Sequence[Station] = (),
) -> Constellation:
    """Return the satellites of a file: orbit mean-elements messages (OMM) or two-line element sets.

    The suffix .csv, .json, .kvn or .xml says that it holds OMM, .tle two-line element sets; with any other the content
    decides.

    Satellites of one name get their catalogue numbers added to it, which a UserWarning says.

    Raises:
        ValueError: A line is damaged, a key missing or a value wrong; the message names the place.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path is {quoted(path)}, must be a path")
    _check_age(max_age_days)
    loaded = element_files.load(path, max_age_days=max_age_days)
    return Constellation(
        Path(path).stem, with_distinct_names(loaded, str(path)), None, equipment, tuple_of("stations", stations)
    )


def from_tle(
    text: str,
    *,
    source: str = "TLE",
    max_age_days: float = MEASURED_AGE_DAYS,
    equipment: Equipment | None = None,
    stations: Sequence[Station] = (),
) -> Constellation:
    """Return the satellites of two-line element sets, each optionally after a line with its name.

    Raises:
        ValueError: As `load`; the message names `source`.
    """
    _check_age(max_age_days)
    loaded = tle.from_tle(text, source=source, max_age_days=max_age_days)
    return Constellation(source, with_distinct_names(loaded, source), None, equipment, tuple_of("stations", stations))


def _check_age(max_age_days: float) -> None:
    check_number("max_age_days", max_age_days)
    if not max_age_days > 0:
        raise ValueError(f"max_age_days is {max_age_days}, must be above 0")


def _walker(
    pattern: Pattern,
    altitude_km: float,
    epoch: datetime | float,
    raan_deg: float,
    name: str,
    equipment: Equipment | None,
    stations: Sequence[Station],
) -> Constellation:
    check_number("raan_deg", raan_deg)
    satellites = []
    nodes, phases = np.degrees(pattern.raan_rad()).tolist(), np.degrees(pattern.phase_rad()).tolist()
    for k, (node, phase) in enumerate(zip(nodes, phases, strict=True)):
        plane, slot = divmod(k, pattern.per_plane)
        satellites.append(
            from_elements(
                f"{name}-{slot}" if pattern.planes == 1 else f"{name}-{plane}-{slot}",
                epoch=epoch,
                altitude_km=altitude_km,
                inclination_deg=pattern.inclination_deg,
                raan_deg=raan_deg + node,
                mean_anomaly_deg=phase,
                number=k + 1,
            )
        )
    kind = "delta" if pattern.spread_deg == 360 else "star"
    title = f"Walker {kind} {pattern.inclination_deg:g}: {pattern.total}/{pattern.planes}/{pattern.phasing}"
    return Constellation(title, tuple(satellites), pattern, equipment, tuple_of("stations", stations))
