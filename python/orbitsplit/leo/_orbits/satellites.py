"""Satellites as SGP4 propagates them, from mean elements and from the records of element sets.

The one module that imports sgp4. Gravity is WGS72 throughout, the model that published element sets are made with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import check_number, quoted

from .earth import EARTH_RADIUS_KM
from .times import DAY_S, Times
from .validation import check_name

try:
    from sgp4.api import SGP4_ERRORS, WGS72, Satrec, SatrecArray
except ModuleNotFoundError as error:
    raise ImportError('orbitsplit.leo needs sgp4, which is not installed: pip install "orbitsplit[leo]"') from error

# The error of published elements grows by about a kilometre a day from their epoch, more when the sun is active.
MEASURED_AGE_DAYS = 30.0
# A designed pattern does not age; an epoch further away than this is a typing error.
DESIGNED_AGE_DAYS = 3653.0

# Below this altitude drag deorbits a satellite within a revolution.
_LOWEST_KM = 100.0

_SGP4_RADIUS_KM = 6378.135
_SGP4_XKE = 60.0 / math.sqrt(_SGP4_RADIUS_KM**3 / 398600.8)
_SGP4_J2 = 0.001082616
_SGP4_EPOCH = 2433281.5
# The largest number that sgp4 has a code of five characters for.
_LARGEST_NUMBER = 339999


@dataclass(frozen=True, slots=True)
class Satellite:
    """One satellite: its name, its record for SGP4, and the most days from its epoch that it may be propagated.

    `catalogue_number` is the NORAD number of up to nine digits, None where the elements have none. The record has 0
    in place of one above 339999, of which SGP4 has no use.
    """

    name: str
    record: Any = field(repr=False, compare=False)
    max_age_days: float = MEASURED_AGE_DAYS
    catalogue_number: int | None = None

    @property
    def epoch(self) -> datetime:
        """Return the time of the elements, UTC."""
        return _epoch_of(self.record).datetimes()[0]

    @property
    def period_s(self) -> float:
        """Return the orbital period in seconds, from the mean motion."""
        return 2 * math.pi / float(self.record.no_kozai) * 60.0

    @property
    def altitude_km(self) -> float:
        """Return the mean semi-major axis less the equatorial radius."""
        return float(self.record.a) * _SGP4_RADIUS_KM - EARTH_RADIUS_KM

    @property
    def apogee_km(self) -> float:
        """Return the mean altitude above the equatorial radius at apogee."""
        return float(self.record.a) * (1 + float(self.record.ecco)) * _SGP4_RADIUS_KM - EARTH_RADIUS_KM

    @property
    def inclination_deg(self) -> float:
        """Return the mean inclination."""
        return math.degrees(float(self.record.inclo))


def from_elements(
    name: str,
    *,
    epoch: datetime | float,
    altitude_km: float,
    inclination_deg: float,
    eccentricity: float = 0.0,
    raan_deg: float = 0.0,
    argument_of_perigee_deg: float = 0.0,
    mean_anomaly_deg: float = 0.0,
    bstar: float = 0.0,
    number: int = 0,
    max_age_days: float = DESIGNED_AGE_DAYS,
) -> Satellite:
    """Return a satellite with these mean elements; `altitude_km` + 6378.137 km is the semi-major axis.

    `raan_deg` counts from the equinox of date; `bstar` is the drag term in 1 / Earth radii.

    Raises:
        ValueError: The name is empty, a number is out of range, or the orbit is too low or intersects the Earth.
        TypeError: An argument is of another type.
    """
    check_name("the name of a satellite", name)
    elements = {
        "altitude_km": altitude_km,
        "inclination_deg": inclination_deg,
        "eccentricity": eccentricity,
        "raan_deg": raan_deg,
        "argument_of_perigee_deg": argument_of_perigee_deg,
        "mean_anomaly_deg": mean_anomaly_deg,
        "bstar": bstar,
        "max_age_days": max_age_days,
    }
    _check_elements(name, elements)
    return Satellite(name, _record_of_elements(elements, Times.of(epoch), number), max_age_days)


def records_of(satellites: Iterable[Satellite]) -> Any:
    """Return SGP4's array of the satellites, which propagates them all at once."""
    return SatrecArray([satellite.record for satellite in satellites])


def epochs_of(satellites: Iterable[Satellite]) -> npt.NDArray[np.float64]:
    """Return the Julian dates [N] of the elements."""
    return np.array([satellite.record.jdsatepoch + satellite.record.jdsatepochF for satellite in satellites])


def _check_elements(name: str, elements: Mapping[str, float]) -> None:
    for key, value in elements.items():
        check_number(f"{key} of satellite {quoted(name)}", value)
        if key != "max_age_days" and not math.isfinite(value):
            raise ValueError(f"{key} of satellite {quoted(name)} is {value}, an element must be finite")
    altitude_km, inclination_deg = elements["altitude_km"], elements["inclination_deg"]
    eccentricity = elements["eccentricity"]
    if altitude_km < _LOWEST_KM:
        raise ValueError(f"altitude_km of satellite {quoted(name)} is {altitude_km}, must be at least {_LOWEST_KM:g}")
    if not 0 <= inclination_deg <= 180:
        raise ValueError(f"inclination of satellite {quoted(name)} is {inclination_deg} deg, must be from 0 to 180")
    if not 0 <= eccentricity < 1:
        raise ValueError(f"eccentricity of satellite {quoted(name)} is {eccentricity}, must be from 0 to under 1")
    perigee_km = (EARTH_RADIUS_KM + altitude_km) * (1 - eccentricity) - EARTH_RADIUS_KM
    if perigee_km <= 0:
        raise ValueError(f"perigee of satellite {quoted(name)} is {perigee_km:.0f} km above the equator, must be > 0")


def propagate(
    satellites: Sequence[Satellite], records: Any, times: Times
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return positions [N, T, 3] in km and velocities in km/s, TEME.

    Raises:
        ValueError: SGP4 reports that a satellite has decayed or that its elements are invalid; the message names it.
    """
    errors, positions, velocities = records.sgp4(times.day, times.fraction)
    if errors.any():
        n, t = (int(index) for index in np.argwhere(errors)[0])
        when = times[t : t + 1].datetimes()[0]
        code = int(errors[n, t])
        fact = "has decayed" if code == 6 else "cannot be propagated"
        reason = SGP4_ERRORS.get(code, f"error {code} of SGP4")
        raise ValueError(
            f"satellite {quoted(satellites[n].name)} {fact} at {when:%Y-%m-%d %H:%M} UTC,"
            f" {_days(satellites[n], when):.1f} days from its epoch: {reason}; leave it out or use newer elements"
        )
    if not np.isfinite(positions).all():
        n = int(np.argwhere(~np.isfinite(positions))[0, 0])
        raise ValueError(
            f"satellite {quoted(satellites[n].name)} cannot be propagated: SGP4 gives positions that are no numbers"
        )
    return positions, velocities


def _days(satellite: Satellite, when: datetime) -> float:
    return abs((when - satellite.epoch).total_seconds()) / DAY_S


def _epoch_of(record: Any) -> Times:
    day = math.floor(record.jdsatepoch - 0.5) + 0.5
    return Times(np.array([day]), np.array([record.jdsatepoch - day + record.jdsatepochF]))


def _kozai_mean_motion(axis_km: float, eccentricity: float, inclination: float) -> float:
    """Return the mean motion in rad/min that gives SGP4 a semi-major axis: the inverse of its correction for J2."""
    axis = axis_km / _SGP4_RADIUS_KM
    motion = _SGP4_XKE / axis**1.5
    squared = 1 - eccentricity**2
    j2 = 0.75 * _SGP4_J2 * (3 * math.cos(inclination) ** 2 - 1) / (math.sqrt(squared) * squared)
    kozai: float = motion
    for _ in range(8):  # each iteration gains three digits
        first: float = (_SGP4_XKE / kozai) ** (2 / 3)
        change = j2 / first**2
        adjusted = first * (1 - change**2 - change * (1 / 3 + 134 * change**2 / 81))
        kozai = motion * (1 + j2 / adjusted**2)
    return kozai


def _record_of_elements(elements: Mapping[str, float], epoch: Times, number: int) -> Any:
    eccentricity, inclination = elements["eccentricity"], math.radians(elements["inclination_deg"])
    record = Satrec()
    record.sgp4init(
        WGS72,
        "i",
        number,
        float(epoch.day[0] - _SGP4_EPOCH + epoch.fraction[0]),
        elements["bstar"],
        0.0,
        0.0,
        eccentricity,
        math.radians(elements["argument_of_perigee_deg"] % 360),
        inclination,
        math.radians(elements["mean_anomaly_deg"] % 360),
        _kozai_mean_motion(EARTH_RADIUS_KM + elements["altitude_km"], eccentricity, inclination),
        math.radians(elements["raan_deg"] % 360),
    )
    return record


def record_of_tle(first: str, second: str) -> Any:
    """Return the record of two lines. Raises `ValueError` for what sgp4 does not read."""
    return Satrec.twoline2rv(first, second)


def record_of_mean_elements(epoch: tuple[float, float], values: Mapping[str, float], number: int) -> Any:
    """Return the record of an epoch (Julian date of a midnight, seconds) and elements by their OMM keys."""
    record = Satrec()
    motion = math.pi / 720.0  # rev/day to rad/min
    record.sgp4init(
        WGS72,
        "i",
        number if number <= _LARGEST_NUMBER else 0,
        epoch[0] - _SGP4_EPOCH + epoch[1] / DAY_S,
        values["BSTAR"],
        values["MEAN_MOTION_DOT"] * motion / 1440.0,
        values["MEAN_MOTION_DDOT"] * motion / 1440.0**2,
        values["ECCENTRICITY"],
        math.radians(values["ARG_OF_PERICENTER"]),
        math.radians(values["INCLINATION"]),
        math.radians(values["MEAN_ANOMALY"]),
        values["MEAN_MOTION"] * motion,
        math.radians(values["RA_OF_ASC_NODE"]),
    )
    return record


def check_record(record: Any, where: str) -> None:
    """Raise `ValueError` for elements that SGP4 cannot propagate."""
    if not (math.isfinite(record.no_kozai) and record.no_kozai > 0):
        raise ValueError(
            f"{where}: the mean motion is {record.no_kozai * 720 / math.pi:g} revolutions a day, must be > 0"
        )
    if record.error:
        raise ValueError(f"{where}: {SGP4_ERRORS.get(record.error, record.error)}")
    error, position, _ = record.sgp4(record.jdsatepoch, record.jdsatepochF)
    if not error and not all(math.isfinite(coordinate) for coordinate in position):
        raise ValueError(f"{where}: SGP4 gives no position at the epoch, an element is far out of range")
