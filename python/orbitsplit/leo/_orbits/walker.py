"""Walker patterns i:t/p/f: t satellites in p evenly spread planes, next planes out of phase by f * 360/t deg."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import check_integer, check_number

from .earth import Array

_ORBIT_SAMPLES = 180


@dataclass(frozen=True, slots=True)
class Pattern:
    """A Walker pattern of `total` satellites; satellite p * (total / planes) + s is slot s of plane p.

    The ascending nodes spread over `spread_deg`: 360 in a Walker delta, 180 in a Walker star.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The planes do not divide the satellites, the phasing is not from 0 to planes - 1, or a number is out
            of range.
    """

    total: int
    planes: int
    phasing: int
    inclination_deg: float
    spread_deg: float = 360.0

    def __post_init__(self) -> None:
        for name in ("total", "planes", "phasing"):
            check_integer(f"{name} of a pattern", getattr(self, name))
        for name in ("inclination_deg", "spread_deg"):
            check_number(f"{name} of a pattern", getattr(self, name))
        if self.total < 1 or self.planes < 1:
            raise ValueError(f"a pattern of {self.total} satellites in {self.planes} planes needs at least 1 of both")
        if self.total % self.planes:
            raise ValueError(
                f"{self.total} satellites do not divide into {self.planes} planes:"
                f" {self.planes * max(1, round(self.total / self.planes))} would"
            )
        if not 0 <= self.phasing < self.planes:
            raise ValueError(
                f"the phasing is {self.phasing}, with {self.planes} planes it must be from 0 to {self.planes - 1}"
            )

    @property
    def per_plane(self) -> int:
        """Return the number of satellites of a plane."""
        return self.total // self.planes

    def raan_rad(self) -> Array:
        """Return the ascending node of each satellite [total], from that of the first plane."""
        spread = math.radians(self.spread_deg)
        return np.repeat(np.arange(self.planes) * (spread / self.planes), self.per_plane)

    def phase_rad(self) -> Array:
        """Return the angle from its ascending node of each satellite [total]."""
        plane, slot = np.divmod(np.arange(self.total), self.per_plane)
        phase: Array = 2 * math.pi * (slot / self.per_plane + self.phasing * plane / self.total)
        return phase

    def grid_pairs(self) -> npt.NDArray[np.int64]:
        """Return the pairs [L, 2] of the +grid, in line of sight or not, each sorted, no pair twice."""
        pairs: npt.NDArray[np.int64] = _grid_pairs(self).copy()
        return pairs


def directions(raan_rad: Array, phase_rad: Array, inclination_deg: float) -> Array:
    """Return unit vectors [..., 3] of satellites on circular orbits."""
    inclination = math.radians(inclination_deg)
    cosine, sine = np.cos(phase_rad), np.sin(phase_rad)
    node_cosine, node_sine = np.cos(raan_rad), np.sin(raan_rad)
    level = sine * math.cos(inclination)
    return np.stack(
        [
            node_cosine * cosine - node_sine * level,
            node_sine * cosine + node_cosine * level,
            sine * math.sin(inclination),
        ],
        axis=-1,
    )


@lru_cache(maxsize=64)
def _grid_pairs(pattern: Pattern) -> npt.NDArray[np.int64]:
    slots = pattern.per_plane
    plane, slot = np.divmod(np.arange(pattern.total), slots)
    pairs = [np.stack([plane * slots + slot, plane * slots + (slot + 1) % slots], axis=1)]
    is_closed = pattern.spread_deg == 360.0
    if pattern.planes > 1:
        # Once around a delta, the phase has grown by `phasing` slots at the first plane.
        seam = np.where(plane == pattern.planes - 1, pattern.phasing, 0)
        neighbour = (plane + 1) % pattern.planes * slots + (slot + _shift(pattern) + seam) % slots
        across = np.stack([np.arange(pattern.total), neighbour], axis=1)
        pairs.append(across if is_closed else across[plane < pattern.planes - 1])
    every = np.sort(np.concatenate(pairs), axis=1)
    return np.unique(every[every[:, 0] != every[:, 1]], axis=0)


def _shift(pattern: Pattern) -> int:
    """Return by how many slots the best partner in the next plane is ahead."""
    along = np.linspace(0, 2 * math.pi, _ORBIT_SAMPLES, endpoint=False)
    ahead = np.arange(pattern.per_plane)
    # 0 first, and slots behind after those ahead: of two equally distant partners, the nearer number is chosen.
    ahead = np.where(2 * ahead > pattern.per_plane, ahead - pattern.per_plane, ahead)
    ahead = ahead[np.argsort(np.abs(ahead), kind="stable")]
    node = math.radians(pattern.spread_deg) / pattern.planes
    phase = 2 * math.pi * (ahead / pattern.per_plane + pattern.phasing / pattern.total)
    here = directions(np.zeros(1), along, pattern.inclination_deg)
    there = directions(np.array([node]), along + phase[:, None], pattern.inclination_deg)
    least = np.min(np.sum(here * there, axis=-1), axis=1)
    return int(ahead[np.argmax(np.round(least, 9))])
