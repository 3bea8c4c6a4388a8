"""Ground stations: where they are, from which elevation they see, and what computes there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orbitsplit._network.network import Node

from .earth import Array, geodetic_km, geodetic_up, rotated
from .validation import check_name, check_real


@dataclass(frozen=True, slots=True)
class Station:
    """A ground station, geodetic in WGS84; it sees satellites at `mask_deg` above its horizon and more.

    `node` is the computer there; without one the station has contacts but is no node of a network. `antennas` limits
    how many satellites it serves at once, highest first; None: all it sees. A link needs `acquisition_s` in view first.

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
            raise TypeError(f"the node of station {self.name!r} is {self.node!r}, expected a Node")
        for what, value, low, high in (
            ("latitude", self.latitude_deg, -90.0, 90.0),
            ("longitude", self.longitude_deg, -360.0, 360.0),
            ("altitude in km", self.altitude_km, -1.0, 10.0),
            ("elevation mask", self.mask_deg, 0.0, 89.0),
            ("acquisition time", self.acquisition_s, 0.0, 3600.0),
        ):
            check_real(f"{what} of station {self.name!r}", value)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{what} of station {self.name!r} is {value}, must be from {low:g} to {high:g}")
        if self.antennas is None:
            return
        if isinstance(self.antennas, bool) or not isinstance(self.antennas, (int, np.integer)):
            raise TypeError(f"antennas of station {self.name!r} is {self.antennas!r}, expected a whole number")
        if self.antennas < 1:
            raise ValueError(f"station {self.name!r} has {self.antennas} antennas, needs at least 1")

    def position_km(self) -> Array:
        """Return the Earth-fixed position [3]."""
        return geodetic_km(self.latitude_deg, self.longitude_deg, self.altitude_km)

    def up(self) -> Array:
        """Return the Earth-fixed direction of the zenith [3]."""
        return geodetic_up(self.latitude_deg, self.longitude_deg)


def elevation_deg(positions: Array, station: Station, sidereal_rad: Array) -> Array:
    """Return the elevations [...] in degrees at which a station sees TEME positions [..., 3] at sidereal angles [...].

    Geometric: the air lifts an object at the horizon by half a degree, at 10 deg by a tenth.
    """
    towards = positions - rotated(station.position_km(), sidereal_rad)
    up = rotated(station.up(), sidereal_rad)
    sine = np.sum(towards * up, axis=-1) / np.sqrt(np.sum(towards * towards, axis=-1))
    elevation: Array = np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0)))
    return elevation
