"""How long does a constellation take: a network at an instant, a day of contacts, ten thousand satellites?

pytest benches/bench_leo.py -s                     timings, and the most memory each took
pytest benches/bench_leo.py --benchmark-disable    the answers only
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from orbitsplit import Network, Node, leo

EQUIPMENT = leo.Equipment(Node("any", 8_000_000_000, slowdown=1.0), isl=leo.Optical())
STATIONS = [
    leo.Station(f"station {k}", latitude, longitude)
    for k, (latitude, longitude) in enumerate(
        [(0, 0), (10, 40), (-20, 80), (30, 120), (-35, 150), (40, -75), (48, 11), (53, -130), (-54, -68), (64, -147)]
    )
]


@pytest.fixture(scope="module")
def shell() -> leo.Constellation:
    """1,584 satellites as Starlink's first shell: 72 planes of 22 at 550 km and 53 deg."""
    return leo.walker_delta(1584, 72, 39, altitude_km=550, inclination_deg=53, equipment=EQUIPMENT)


@pytest.fixture(scope="module")
def large() -> leo.Constellation:
    return leo.walker_delta(10_000, 100, 1, altitude_km=550, inclination_deg=53, equipment=EQUIPMENT)


def checked(network: Network, constellation: leo.Constellation, at: Any, links: int) -> None:
    """Compare the number of links, and some latencies with positions propagated one satellite at a time."""
    assert len(network.nodes) == len(constellation)
    assert len(network.links) == links
    for link in network.links[:: links // 50]:
        a, b = (
            leo.Constellation("one", (constellation.satellites[constellation.index(name)],)).positions(at)[0, 0]
            for name in (link.source, link.destination)
        )
        assert link.latency_s == pytest.approx(float(np.linalg.norm(a - b)) / 299792.458)


@pytest.mark.benchmark(group="a +grid network at an instant")
@pytest.mark.parametrize("name", ["shell", "large"])
def test_grid_network(benchmark: Any, request: pytest.FixtureRequest, name: str) -> None:
    constellation = request.getfixturevalue(name)
    at = constellation.epoch + timedelta(hours=1)
    checked(benchmark(lambda: constellation.network(at)), constellation, at, 4 * len(constellation))


@pytest.mark.benchmark(group="a network of four nearest neighbours at an instant")
@pytest.mark.parametrize("name", ["shell", "large"])
def test_nearest_network(benchmark: Any, request: pytest.FixtureRequest, name: str) -> None:
    constellation = request.getfixturevalue(name)
    at = constellation.epoch + timedelta(hours=1)
    near = constellation.equipped(leo.Equipment(EQUIPMENT.node, leo.Nearest(4)))
    network = benchmark(lambda: near.network(at))
    degrees = np.bincount([constellation.index(link.source) for link in network.links], minlength=len(constellation))
    assert degrees.max() <= 4
    assert degrees.mean() > 3.9
    checked(network, constellation, at, len(network.links))


@pytest.mark.benchmark(group="a day of contacts of 1,584 satellites with 10 stations, every 30 s")
def test_contacts(benchmark: Any, shell: leo.Constellation) -> None:
    served = shell.served_by(*STATIONS)
    stop = served.epoch + timedelta(days=1)
    contacts = benchmark.pedantic(lambda: served.contacts(served.epoch, stop, step_s=30.0), rounds=1)
    r = np.random.default_rng(0)
    # At random instants, who is in view is who has a contact.
    for seconds in r.uniform(0, 86400, 20):
        when = served.epoch + timedelta(seconds=seconds)
        elevation = served.elevation_deg(when)[:, :, 0]
        expected = {(STATIONS[s].name, served.names[n]) for s, n in np.argwhere(elevation >= 10).tolist()}
        assert {(c.station, c.satellite) for c in contacts if c.start <= when <= c.stop} == expected


@pytest.mark.benchmark(group="is memory bounded?", disable_gc=False)
@pytest.mark.parametrize("hours", [6, 24])
def test_memory_of_contacts_does_not_grow_with_time(shell: leo.Constellation, hours: int) -> None:
    served = shell.served_by(*STATIONS[:2])
    peak = _peak_bytes(lambda: served.contacts(served.epoch, served.epoch + timedelta(hours=hours)))
    print(f"{hours} h of contacts: {peak / 1e6:.0f} MB at most")
    assert peak < 150e6


def test_memory_of_a_network_does_not_grow_with_the_square(large: leo.Constellation) -> None:
    near = large.equipped(leo.Equipment(EQUIPMENT.node, leo.Nearest(4)))
    peak = _peak_bytes(lambda: near.network(near.epoch))
    print(f"a network of 10,000: {peak / 1e6:.0f} MB at most")
    assert peak < 200e6  # a matrix of their distances alone would be 800 MB


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
