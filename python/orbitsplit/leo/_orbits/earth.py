"""The Earth and the sun, as links need them: WGS84, rotation, lines of sight, shadow.

Positions are kilometres from the Earth's centre. TEME is the frame of SGP4 (true equator, mean equinox of date), which
a rotation by Greenwich mean sidereal time makes Earth-fixed; polar motion, some ten metres, is left out.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import check_finite, check_number, quoted

from .times import J2000, Times

Array = npt.NDArray[np.float64]

# WGS84: equatorial radius and flattening; EGM96 gravity and the rotation of the IERS conventions.
EARTH_RADIUS_KM = 6378.137
FLATTENING = 1 / 298.257223563
MU_KM3_PER_S2 = 398600.4418
EARTH_RAD_PER_S = 7.292115e-5
LIGHT_KM_PER_S = 299792.458
# Clearance of a beam above the equatorial sphere: denser air below refracts and absorbs it.
ATMOSPHERE_MARGIN_KM = 80.0

_AU_KM = 149597870.7


def period_s(altitude_km: float) -> float:
    """Return the Kepler period in seconds of a circular orbit `altitude_km` above the equatorial radius.

    Raises:
        ValueError: The altitude is not finite, or not above 0.
        TypeError: The altitude is no number.
    """
    _check_altitude(altitude_km)
    return 2 * math.pi * math.sqrt((EARTH_RADIUS_KM + altitude_km) ** 3 / MU_KM3_PER_S2)


def maximal_range_km(
    altitude_km: float, other_altitude_km: float | None = None, *, margin_km: float = ATMOSPHERE_MARGIN_KM
) -> float:
    """Return the longest line of sight in km between two altitudes; it grazes the equatorial sphere plus the margin.

    Example:
        >>> round(maximal_range_km(500))
        4733

    Raises:
        ValueError: An altitude is not finite, not above 0, or below the margin.
        TypeError: An altitude is no number.
    """
    check_finite("margin_km", margin_km, least=0)
    grazing = EARTH_RADIUS_KM + margin_km
    total = 0.0
    for altitude in (altitude_km, altitude_km if other_altitude_km is None else other_altitude_km):
        _check_altitude(altitude)
        if altitude < margin_km:
            raise ValueError(f"an altitude of {altitude:g} km is below the atmosphere margin of {margin_km:g} km")
        total += math.sqrt((EARTH_RADIUS_KM + altitude) ** 2 - grazing**2)
    return total


def line_of_sight(a: Array, b: Array, *, margin_km: float = ATMOSPHERE_MARGIN_KM) -> npt.NDArray[np.bool_]:
    """Return whether points a and b [..., 3] see each other past a sphere of the equatorial radius + `margin_km`.

    The sphere, up to 21 km larger than the ellipsoid at the poles, errs on the side of no link.

    Raises:
        ValueError: The shapes of the arrays do not broadcast.
    """
    check_finite("margin_km", margin_km, least=0)
    a, b = _positions("a", a), _positions("b", b)
    step = b - a
    squared = np.sum(step * step, axis=-1)
    along = np.sum(a * step, axis=-1)
    nearest = np.clip(-along / np.where(squared > 0, squared, 1.0), 0.0, 1.0)
    height = np.sum(a * a, axis=-1) + nearest * (2 * along + nearest * squared)
    seen: npt.NDArray[np.bool_] = height >= (EARTH_RADIUS_KM + margin_km) ** 2
    return seen


def range_km(a: Array, b: Array) -> Array:
    """Return distances [...] in km between points [..., 3].

    Raises:
        ValueError: The shapes of the arrays do not broadcast.
    """
    distance: Array = np.sqrt(np.sum((_positions("b", b) - _positions("a", a)) ** 2, axis=-1))
    return distance


def delay_s(distance_km: Array) -> Array:
    """Return the propagation delay [...] in seconds of distances [...] in km, at the speed of light.

    Raises:
        TypeError: The distances are no numbers.
    """
    return _positions("distance_km", distance_km) / LIGHT_KM_PER_S


def geodetic_km(latitude_deg: float, longitude_deg: float, altitude_km: float) -> Array:
    """Return the Earth-fixed position [3] in km of a point given in WGS84."""
    up = geodetic_up(latitude_deg, longitude_deg)
    squared = FLATTENING * (2 - FLATTENING)
    normal = EARTH_RADIUS_KM / math.sqrt(1 - squared * up[2] ** 2)
    position: Array = (normal * np.array([1.0, 1.0, 1 - squared]) + altitude_km) * up
    return position


def geodetic_up(latitude_deg: float, longitude_deg: float) -> Array:
    """Return the Earth-fixed unit vector [3] that points to the zenith."""
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    horizontal = math.cos(latitude)
    return np.array([horizontal * math.cos(longitude), horizontal * math.sin(longitude), math.sin(latitude)])


def rotated(vectors: Array, angle_rad: Array) -> Array:
    """Return vectors [..., 3] rotated about the Earth's axis by angles that broadcast with [...]."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    x, y = vectors[..., 0], vectors[..., 1]
    turned_x = cosine * x - sine * y
    turned_y = sine * x + cosine * y
    return np.stack([turned_x, turned_y, np.broadcast_to(vectors[..., 2], turned_x.shape)], axis=-1)


def earth_fixed(positions: Array, times: Times) -> Array:
    """Return positions [N, T, 3] in TEME as Earth-fixed ones."""
    return rotated(positions, -times.sidereal_rad())


def sun_km(times: Times) -> Array:
    """Return the sun's position [T, 3] in km, equator and equinox of date: the Astronomical Almanac's low precision.

    Accurate to 0.01 deg from 1950 to 2050. Vallado, Fundamentals of Astrodynamics and Applications, algorithm 29.
    """
    days = (times.day - J2000) + times.fraction
    centuries = days / 36525.0
    anomaly = np.radians(357.5291092 + 35999.05034 * centuries)
    longitude = np.radians(
        280.460 + 36000.771285 * centuries + 1.914666471 * np.sin(anomaly) + 0.019994643 * np.sin(2 * anomaly)
    )
    distance = _AU_KM * (1.000140612 - 0.016708617 * np.cos(anomaly) - 0.000139589 * np.cos(2 * anomaly))
    obliquity = np.radians(23.439291 - 0.0130042 * centuries)
    direction = np.stack(
        [np.cos(longitude), np.cos(obliquity) * np.sin(longitude), np.sin(obliquity) * np.sin(longitude)], axis=-1
    )
    position: Array = distance[:, None] * direction
    return position


def sunlit(positions: Array, sun: Array) -> npt.NDArray[np.bool_]:
    """Return whether satellites [N, T, 3] see the centre of the sun [T, 3] past the Earth's equatorial sphere.

    Half of the penumbra, which a satellite at 500 km crosses in about ten seconds, counts as light.
    """
    distance = np.sqrt(np.sum(positions * positions, axis=-1))
    towards = sun - positions
    cosine = -np.sum(positions * towards, axis=-1) / (distance * np.sqrt(np.sum(towards * towards, axis=-1)))
    limb = np.sqrt(np.clip(1 - (EARTH_RADIUS_KM / distance) ** 2, 0.0, 1.0))
    lit: npt.NDArray[np.bool_] = cosine <= limb
    return lit


def _positions(name: str, values: Array) -> Array:
    """Return numbers of any shape as an array. Raises TypeError naming the argument for anything else."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} is {quoted(values)}, must be an array of numbers")
    return array


def _check_altitude(altitude_km: float) -> None:
    check_number("the altitude", altitude_km)
    if not (math.isfinite(altitude_km) and altitude_km > 0):
        raise ValueError(f"the altitude is {altitude_km} km, must be finite and > 0")
