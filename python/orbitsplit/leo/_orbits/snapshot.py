"""The network of a constellation at an instant: who is linked to whom, how far, how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orbitsplit._network.network import Link, Network, Node

from .earth import Array, delay_s, range_km, rotated
from .stations import Station, elevation_deg
from .times import Times
from .topology import Topology
from .walker import Pattern

if TYPE_CHECKING:
    from .constellation import Constellation
    from .link_budget import LinkRate

# Between two looks at a pair that is being acquired nothing gets in between: a satellite moves 80 km.
_LOOK_EVERY_S = 10.0


def snapshot(constellation: Constellation, at: datetime | float) -> Network:
    """Return the network at an instant; see `Constellation.network`."""
    equipment = constellation.equipment
    if equipment is None:
        raise ValueError(
            f"constellation {constellation.name!r} has no equipment: give equipment=Equipment(node=osp.Node(...))"
        )
    when = Times.of(at)
    ground = [station for station in constellation.stations if station.node is not None]
    nodes = [*_nodes(equipment.node, constellation.names)]
    nodes += [replace(station.node, name=station.name) for station in ground if station.node is not None]
    links: list[Link] = []
    names = constellation.names
    if equipment.isl is not None:
        pairs, distance = constellation.links(at)
        links += _both_ways(names, names, pairs, distance, equipment.isl, equipment.isl)
    if ground and equipment.downlink is not None:
        uplink = equipment.uplink or equipment.downlink
        stations = [station.name for station in ground]
        pairs, distance = ground_pairs(constellation.positions, ground, when)
        links += _both_ways(names, stations, pairs, distance, equipment.downlink, uplink)
    return Network(f"{constellation.name} at {when.datetimes()[0]:%Y-%m-%dT%H:%M:%SZ}", tuple(nodes), tuple(links))


def isl_pairs(
    positions_at: Callable[[Times], Array],
    topology: Topology,
    pattern: Pattern | None,
    margin_km: float,
    at: Times,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the pairs [L, 2] linked at an instant and their ranges: chosen now and at all looks of the acquisition."""
    positions = positions_at(_looks(at, topology.acquisition_s))
    now = topology.pairs(positions[:, 0], margin_km=margin_km, pattern=pattern)
    count = len(positions)
    for look in range(1, positions.shape[1]):
        before = topology.pairs(positions[:, look], margin_km=margin_km, pattern=pattern)
        held = np.isin(now[:, 0] * count + now[:, 1], before[:, 0] * count + before[:, 1])
        now = now[held]
    return now, range_km(positions[now[:, 0], 0], positions[now[:, 1], 0])


def ground_pairs(
    positions_at: Callable[[Times], Array], stations: list[Station], at: Times
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the pairs [L, 2] of satellite and station linked at an instant and their ranges in km."""
    pairs, distances = [], []
    for k, station in enumerate(stations):
        looks = _looks(at, station.acquisition_s)
        positions, angle = positions_at(looks), looks.sidereal_rad()
        elevation = elevation_deg(positions, station, angle)
        seen = np.flatnonzero(np.all(elevation >= station.mask_deg, axis=1))
        highest = seen[np.argsort(-elevation[seen, 0], kind="stable")][: station.antennas]
        own = np.sort(highest)
        pairs.append(np.stack([own, np.full(len(own), k)], axis=1))
        distances.append(range_km(positions[own, 0], rotated(station.position_km(), angle)[0]))
    return np.concatenate(pairs), np.concatenate(distances)


def _looks(at: Times, acquisition_s: float) -> Times:
    """Return the instant, and after it those before it at which a link that serves must have been there."""
    count = math.ceil(acquisition_s / _LOOK_EVERY_S)
    return at.shifted(-np.linspace(0.0, acquisition_s, count + 1))


def _nodes(template: Node, names: list[str]) -> Iterator[Node]:
    for name in names:  # ten thousand times `dataclasses.replace` would be most of the time of a network
        yield Node(
            name,
            template.memory_bytes,
            template.slowdown,
            template.flop_per_s,
            template.memory_bytes_per_s,
            template.headroom_bytes,
            template.half_duplex,
        )


def _both_ways(
    sources: list[str],
    targets: list[str],
    pairs: npt.NDArray[np.int64],
    distance: Array,
    forth: LinkRate,
    back: LinkRate,
) -> list[Link]:
    """Return the links of the pairs in both directions; a direction whose rate is 0 has none."""
    delays = delay_s(distance).tolist()
    there, here = (np.broadcast_to(rate.bytes_per_s(distance), distance.shape).tolist() for rate in (forth, back))
    links = []
    for (a, b), forth_rate, back_rate, delay in zip(pairs.tolist(), there, here, delays, strict=True):
        if forth_rate > 0:
            links.append(Link(sources[a], targets[b], forth_rate, delay))
        if back_rate > 0:
            links.append(Link(targets[b], sources[a], back_rate, delay))
    return links
