"""Constellations: satellites, their equipment, and ground stations; networks and contacts over time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import quoted
from orbitsplit._network.network import Link, Network, Node

from .contacts import LONGEST_STEP_S, Contact, contacts_of
from .earth import ATMOSPHERE_MARGIN_KM, Array, earth_fixed, sun_km, sunlit
from .link_budget import FixedRate, LinkRate
from .satellites import Satellite, epochs_of, propagate, records_of
from .snapshot import ground_links, isl_links, isl_pairs, nodes_of
from .stations import Station, elevation_deg
from .times import Times, TimesLike
from .topology import Grid, Nearest, Topology
from .validation import check_between, check_not_negative
from .walker import Pattern

# Satellites times instants propagated at once: 48 bytes of states each, and a few times that while they are evaluated.
_CHUNK = 400_000


@dataclass(frozen=True, slots=True)
class Equipment:
    """The computer of every satellite of a constellation, and the rates of its links.

    `node` is the template of the computer; its name is ignored. `topology` chooses the inter-satellite links; None: a
    +grid in a Walker pattern, up to four nearest neighbours elsewhere. `uplink` None is as fast as the downlink. A beam
    between satellites must clear the equatorial sphere by `margin_km`.

    The default rates are those of arXiv 2604.04654: 0.5 Gbit/s between satellites, 0.8 Gbit/s to the ground, the upper
    end of the sweep behind its headline.

    Raises:
        ValueError: The margin is negative or not finite.
        TypeError: An argument is of another type.
    """

    node: Node
    topology: Topology | None = None
    isl: LinkRate | None = field(default_factory=lambda: FixedRate("0.5 Gbit/s"))
    downlink: LinkRate | None = field(default_factory=lambda: FixedRate("0.8 Gbit/s"))
    uplink: LinkRate | None = None
    margin_km: float = ATMOSPHERE_MARGIN_KM

    def __post_init__(self) -> None:
        if not isinstance(self.node, Node):
            raise TypeError(f"the node of an equipment is {quoted(self.node)}, must be a Node")
        if self.topology is not None and not _has_method(self.topology, "pairs"):
            raise TypeError(
                f"topology is {quoted(self.topology)}, must be Grid(), Nearest() or an object with a method pairs"
            )
        for name in ("isl", "downlink", "uplink"):
            rate = getattr(self, name)
            if rate is not None and not _has_method(rate, "bytes_per_s"):
                raise TypeError(
                    f"{name} is {quoted(rate)}, must be FixedRate(...), KaBand(), Optical() or an object with a method"
                    " bytes_per_s"
                )
        check_not_negative("margin_km", self.margin_km)


@dataclass(frozen=True)
class Constellation:
    """Satellites with one equipment, and ground stations.

    Example:
        >>> ring = walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
        >>> network = ring.equipped(Equipment(Node("jetson", 8_000_000_000, slowdown=4))).network(at=ring.epoch)
        >>> len(network.nodes), len(network.links)
        (12, 24)

    Raises:
        ValueError: No satellite, a name used twice, or a pattern of another number of satellites.
        TypeError: A satellite, the equipment or a station is of another type.
    """

    name: str
    satellites: tuple[Satellite, ...]
    pattern: Pattern | None = None
    equipment: Equipment | None = None
    stations: tuple[Station, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "satellites", tuple(self.satellites))
        object.__setattr__(self, "stations", tuple(self.stations))
        self._check_types()
        if not self.satellites:
            raise ValueError("a constellation needs at least one satellite")
        seen: set[str] = set()
        for name in [*self.names, *(station.name for station in self.stations)]:
            if name in seen:
                raise ValueError(f"two satellites or stations are called {quoted(name)}, names must differ")
            seen.add(name)
        if self.pattern is not None and self.pattern.total != len(self.satellites):
            raise ValueError(f"the pattern has {self.pattern.total} satellites, {len(self.satellites)} are given")

    def __add__(self, other: Constellation) -> Constellation:
        """Return all satellites and stations of both, with this one's name and equipment and without a pattern."""
        return replace(
            self,
            satellites=self.satellites + other.satellites,
            stations=self.stations + other.stations,
            pattern=None,
        )

    def __len__(self) -> int:
        return len(self.satellites)

    @property
    def names(self) -> list[str]:
        """Return the names of the satellites."""
        return [satellite.name for satellite in self.satellites]

    @property
    def epoch(self) -> datetime:
        """Return the latest epoch of the elements."""
        return self.satellites[int(np.argmax(self._epochs))].epoch

    @property
    def topology(self) -> Topology:
        """Return the topology of the equipment; by default the +grid of a pattern, else nearest neighbours."""
        if self.equipment is not None and self.equipment.topology is not None:
            return self.equipment.topology
        return Nearest() if self.pattern is None else Grid()

    def index(self, satellite: str) -> int:
        """Return the index of the satellite with this name.

        Raises:
            ValueError: There is no such satellite.
        """
        if satellite not in self._numbers:
            some = ", ".join(self.names[:5]) + (", ..." if len(self) > 5 else "")
            raise ValueError(f"no satellite {quoted(satellite)}; the satellites are {some}")
        return self._numbers[satellite]

    def equipped(self, equipment: Equipment) -> Constellation:
        """Return the constellation with this equipment. Raises TypeError for another type."""
        return replace(self, equipment=equipment)

    def served_by(self, *stations: Station) -> Constellation:
        """Return the constellation with these stations instead of its own.

        Raises:
            ValueError: A name is used twice.
            TypeError: A station is of another type.
        """
        return replace(self, stations=stations)

    def states(self, times: TimesLike) -> tuple[Array, Array]:
        """Return positions [N, T, 3] in km and velocities in km/s, TEME; `chunks` keeps memory bounded.

        Raises:
            ValueError: The times are too far from the elements' epochs, or a satellite has decayed.
        """
        when = Times.of(times)
        self._check_age(when)
        return propagate(self.satellites, self._records, when)

    def positions(self, times: TimesLike, *, frame: str = "teme") -> Array:
        """Return positions [N, T, 3] in km; `frame` is `"teme"` or `"earth_fixed"`.

        Raises:
            ValueError: As `states`, or there is no such frame.
        """
        if frame not in ("teme", "earth_fixed"):
            raise ValueError(f"no frame {quoted(frame)}; there are: teme, earth_fixed")
        when = Times.of(times)
        positions = self.states(when)[0]
        return positions if frame == "teme" else earth_fixed(positions, when)

    def chunks(self, times: TimesLike, *, overlap: int = 0) -> Iterator[tuple[Times, Array, Array]]:
        """Yield times [T], positions [N, T, 3] and velocities in consecutive chunks of 20 MB of states.

        Each chunk begins with the last `overlap` instants of the one before.
        """
        when = Times.of(times)
        size = max(_CHUNK // len(self), 4 * overlap, 1)
        for begin in range(0, max(len(when) - overlap, 1), size - overlap):
            part = when[begin : begin + size]
            yield part, *self.states(part)

    def elevation_deg(self, times: TimesLike) -> Array:
        """Return the elevation [S, N, T] of each satellite at each station in degrees, negative below the horizon."""
        when = Times.of(times)
        positions, angle = self.positions(when), when.sidereal_rad()
        return np.stack([elevation_deg(positions, station, angle) for station in self.stations])

    def sunlit(self, times: TimesLike) -> npt.NDArray[np.bool_]:
        """Return whether each satellite [N, T] is outside the Earth's shadow, accurate to a few seconds."""
        when = Times.of(times)
        return sunlit(self.positions(when), sun_km(when))

    def links(self, at: datetime | float) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the pairs [L, 2] of satellites that are linked at an instant and their ranges [L] in km."""
        margin_km = ATMOSPHERE_MARGIN_KM if self.equipment is None else self.equipment.margin_km
        return isl_pairs(self.positions, self.topology, self.pattern, margin_km, Times.of(at))

    def network(self, at: datetime | float) -> Network:
        """Return the network at an instant: the satellites, then the stations that have a node.

        The latency of a link is its propagation delay, its rate that of the equipment at its range.

        Raises:
            ValueError: The constellation has no equipment, or as `states`.
        """
        equipment, when = self.equipment, Times.of(at)
        if equipment is None:
            raise ValueError(
                f"constellation {quoted(self.name)} has no equipment: give equipment=Equipment(node=osp.Node(...))"
            )
        links: list[Link] = []
        if equipment.isl is not None:
            links += isl_links(self.names, *self.links(at), equipment.isl)
        if equipment.downlink is not None:
            uplink = equipment.uplink or equipment.downlink
            links += ground_links(self.positions, self.names, self.stations, equipment.downlink, uplink, when)
        nodes = nodes_of(equipment.node, self.names, self.stations)
        return Network(f"{self.name} at {when.datetimes()[0]:%Y-%m-%dT%H:%M:%SZ}", nodes, tuple(links))

    def networks(
        self, start: datetime | float, stop: datetime | float, step_s: float
    ) -> Iterator[tuple[datetime, Network]]:
        """Yield times and their networks from start to stop, `step_s` apart.

        Raises:
            ValueError: As `network`, or the span is empty or the step not positive.
        """
        for when in Times.span(start, stop, step_s).datetimes():
            yield when, self.network(when)

    def contacts(self, start: datetime | float, stop: datetime | float, *, step_s: float = 30.0) -> tuple[Contact, ...]:
        """Return the contacts of all stations with all satellites between start and stop, by start time.

        Orbits are sampled every `step_s`, at most 60 s; the edges of contacts are found between samples, to a few
        milliseconds, and passes shorter than a step are found, too.

        Raises:
            ValueError: There are no stations, the step is too long, or as `states`.
        """
        if not self.stations:
            raise ValueError(
                f"constellation {quoted(self.name)} has no stations to be seen from: served_by(Station(...))"
            )
        check_between("step_s", step_s, 1.0, LONGEST_STEP_S)
        ends = Times.of([*Times.of(start).datetimes(), *Times.of(stop).datetimes()])
        span = ends.datetimes()
        length_s = float(ends.seconds_since(ends)[1])
        if length_s == 0:
            raise ValueError(f"the span is empty: it starts and stops at {span[0].isoformat()}")
        if length_s < 0:
            raise ValueError(f"the span stops {-length_s:g} s before it starts")
        count = math.ceil(length_s / step_s) + 3
        samples = ends[:1].shifted(step_s * (np.arange(-1.0, count - 1.0, dtype=np.float64)))
        chunks = self.chunks(samples, overlap=2)
        elevations = self.elevation_deg(ends)
        return tuple(contacts_of(chunks, elevations, self.stations, self.names, step_s, (span[0], span[1])))

    def _check_types(self) -> None:
        for what, members, kind in (("satellite", self.satellites, Satellite), ("station", self.stations, Station)):
            for member in members:
                if not isinstance(member, kind):
                    raise TypeError(f"a {what} is {quoted(member)}, must be a {kind.__name__}")
        if self.equipment is not None and not isinstance(self.equipment, Equipment):
            raise TypeError(f"the equipment is {quoted(self.equipment)}, must be Equipment(node=...)")

    @cached_property
    def _records(self) -> Any:
        return records_of(self.satellites)

    @cached_property
    def _epochs(self) -> Array:
        return epochs_of(self.satellites)

    @cached_property
    def _ages(self) -> Array:
        return np.array([satellite.max_age_days for satellite in self.satellites])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.names)}

    def _check_age(self, times: Times) -> None:
        julian = times.julian()
        for at in (float(julian.min()), float(julian.max())):
            excess = np.abs(at - self._epochs) - self._ages
            worst = int(np.argmax(excess))
            if excess[worst] > 0:
                satellite, when = self.satellites[worst], Times.of(at).datetimes()[0]
                days = abs(at - float(self._epochs[worst]))
                raise ValueError(
                    f"the elements of satellite {quoted(satellite.name)} are of "
                    f"{satellite.epoch:%Y-%m-%d}, {when:%Y-%m-%d}"
                    f" is {days:,.0f} days away and the limit is {satellite.max_age_days:,.0f}: use newer elements,"
                    " another time, or a larger max_age_days"
                )


def _has_method(value: Any, name: str) -> bool:
    """Return whether a value that is an instance, not a class, has a method of this name."""
    return not isinstance(value, type) and callable(getattr(value, name, None))
