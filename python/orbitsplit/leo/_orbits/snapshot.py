"""Nodes and links of a constellation at an instant: which pairs are linked, their ranges, rates and delays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from orbitsplit._network.network import Link, Node

from .earth import Array, delay_s, range_km, rotated
from .link_budget import LinkRate
from .stations import Station, elevation_deg
from .times import Times
from .topology import Topology
from .walker import Pattern

# A pair that is being acquired is sampled this often: a satellite moves 80 km in between.
_SAMPLE_STEP_S = 10.0


def nodes_of(template: Node, satellites: list[str], stations: Sequence[Station]) -> tuple[Node, ...]:
    """Return the nodes of a network: a copy of the template for each satellite, then the stations that have one."""
    # Ten thousand times `dataclasses.replace` would be most of the time of a network.
    copies = [
        Node(
            name,
            template.memory_bytes,
            template.slowdown,
            template.flop_per_s,
            template.memory_bytes_per_s,
            template.headroom_bytes,
            template.half_duplex,
        )
        for name in satellites
    ]
    return (*copies, *(replace(s.node, name=s.name) for s in stations if s.node is not None))


def isl_links(satellites: list[str], pairs: npt.NDArray[np.int64], range_km: Array, rate: LinkRate) -> list[Link]:
    """Return the links, in both directions, of linked pairs [L, 2] of satellites at ranges [L]."""
    return _both_directions(satellites, satellites, pairs, range_km, rate, rate)


def ground_links(
    positions_at: Callable[[Times], Array],
    satellites: list[str],
    stations: Sequence[Station],
    down: LinkRate,
    up: LinkRate,
    at: Times,
) -> list[Link]:
    """Return the links, in both directions, between satellites and the stations that have a node."""
    ground = [station for station in stations if station.node is not None]
    if not ground:
        return []
    pairs, distance = _ground_pairs(positions_at, ground, at)
    return _both_directions(satellites, [station.name for station in ground], pairs, distance, down, up)


def isl_pairs(
    positions_at: Callable[[Times], Array],
    topology: Topology,
    pattern: Pattern | None,
    margin_km: float,
    at: Times,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the pairs [L, 2] linked at an instant and their ranges: chosen then and throughout the acquisition."""
    positions = positions_at(_samples(at, topology.acquisition_s))
    now = topology.pairs(positions[:, 0], margin_km=margin_km, pattern=pattern)
    count = len(positions)
    for sample in range(1, positions.shape[1]):
        before = topology.pairs(positions[:, sample], margin_km=margin_km, pattern=pattern)
        was_linked = np.isin(now[:, 0] * count + now[:, 1], before[:, 0] * count + before[:, 1])
        now = now[was_linked]
    return now, range_km(positions[now[:, 0], 0], positions[now[:, 1], 0])


def _ground_pairs(
    positions_at: Callable[[Times], Array], stations: Sequence[Station], at: Times
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the pairs [L, 2] of satellite and station linked at an instant and their ranges in km."""
    pairs, distances = [], []
    for k, station in enumerate(stations):
        samples = _samples(at, station.acquisition_s)
        positions, angle = positions_at(samples), samples.sidereal_rad()
        elevation = elevation_deg(positions, station, angle)
        seen = np.flatnonzero(np.all(elevation >= station.mask_deg, axis=1))
        highest = seen[np.argsort(-elevation[seen, 0], kind="stable")][: station.antennas]
        own = np.sort(highest)
        pairs.append(np.stack([own, np.full(len(own), k)], axis=1))
        distances.append(range_km(positions[own, 0], rotated(station.position_km(), angle)[0]))
    return np.concatenate(pairs), np.concatenate(distances)


def _samples(at: Times, acquisition_s: float) -> Times:
    """Return an instant, followed by those before it at which a link that is up must have been possible."""
    count = math.ceil(acquisition_s / _SAMPLE_STEP_S)
    return at.shifted(-np.linspace(0.0, acquisition_s, count + 1))


def _both_directions(
    sources: list[str],
    destinations: list[str],
    pairs: npt.NDArray[np.int64],
    distance: Array,
    forward: LinkRate,
    backward: LinkRate,
) -> list[Link]:
    """Return the links of the pairs in both directions; a direction whose rate is 0 has none."""
    delays = delay_s(distance).tolist()
    rates = [np.broadcast_to(rate.bytes_per_s(distance), distance.shape).tolist() for rate in (forward, backward)]
    links = []
    for (a, b), forward_rate, backward_rate, delay in zip(pairs.tolist(), *rates, delays, strict=True):
        if forward_rate > 0:
            links.append(Link(sources[a], destinations[b], forward_rate, delay))
        if backward_rate > 0:
            links.append(Link(destinations[b], sources[a], backward_rate, delay))
    return links
