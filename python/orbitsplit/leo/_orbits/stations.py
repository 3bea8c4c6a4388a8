"""Ground stations: where they are, their elevation mask, and their computer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orbitsplit._io.validation import check_count, quoted
from orbitsplit._network.network import Node

from .earth import Array, geodetic_km, geodetic_up, rotated
from .validation import check_between, check_name


@dataclass(frozen=True, slots=True)
class Station:
    """A ground station, geodetic in WGS84; it sees satellites at an elevation of at least `mask_deg`.

    `node` is the computer there; without one the station has contacts but is no node of a network. `antennas` limits
    how many satellites it serves at once, highest first; None: all it sees. A link is up after `acquisition_s` in view.

    Raises:
        ValueError: A number is out of range, or the name is empty.
        TypeError: An argument is of another type.
    """

    name: str
    latitude_deg: float
    longitude_deg: float
    altitude_km: float = 0.0
    mask_deg: float = 10.0
    node: Node | None = None
    antennas: int | None = None
    acquisition_s: float = 0.0

    def __post_init__(self) -> None:
        check_name("the name of a station", self.name)
        if self.node is not None and not isinstance(self.node, Node):
            raise TypeError(f"the node of station {quoted(self.name)} is {quoted(self.node)}, must be a Node")
        for what, value, low, high in (
            ("latitude", self.latitude_deg, -90.0, 90.0),
            ("longitude", self.longitude_deg, -360.0, 360.0),
            ("altitude in km", self.altitude_km, -1.0, 10.0),
            ("elevation mask", self.mask_deg, 0.0, 89.0),
            ("acquisition time", self.acquisition_s, 0.0, 3600.0),
        ):
            check_between(f"{what} of station {quoted(self.name)}", value, low, high)
        if self.antennas is not None:
            check_count(f"antennas of station {quoted(self.name)}", self.antennas, 1)

    def position_km(self) -> Array:
        """Return the Earth-fixed position [3]."""
        return geodetic_km(self.latitude_deg, self.longitude_deg, self.altitude_km)

    def up(self) -> Array:
        """Return the Earth-fixed direction of the zenith [3]."""
        return geodetic_up(self.latitude_deg, self.longitude_deg)


def elevation_deg(positions: Array, station: Station, sidereal_rad: Array) -> Array:
    """Return the elevations [...] in degrees at which a station sees TEME positions [..., 3] at sidereal angles [...].

    Geometric: refraction lifts an object at the horizon by half a degree, at 10 deg by a tenth.
    """
    towards = positions - rotated(station.position_km(), sidereal_rad)
    up = rotated(station.up(), sidereal_rad)
    sine = np.sum(towards * up, axis=-1) / np.sqrt(np.sum(towards * towards, axis=-1))
    elevation: Array = np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))
    return elevation
