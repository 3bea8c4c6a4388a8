"""Networks at an instant: nodes by template, latency from range, rates from budgets, stations and their antennas."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orbitsplit import Network, Node, leo

TEMPLATE = Node("jetson", 8_000_000_000, slowdown=4.0, headroom_bytes=500_000_000, half_duplex=True)
GROUND = Node("server", 12_000_000_000, slowdown=1.0)
RING = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53, equipment=leo.Equipment(TEMPLATE))
MUNICH = leo.Station("munich", 48.15, 11.57, 0.5, node=GROUND)


def in_view(constellation: leo.Constellation, hours: float = 24.0) -> leo.Contact:
    contacts = constellation.contacts(constellation.epoch, constellation.epoch + timedelta(hours=hours))
    return max(contacts, key=lambda contact: contact.max_elevation_deg)


def test_satellites_are_the_template_under_their_own_names() -> None:
    network = RING.network(at=RING.epoch)
    assert [node.name for node in network.nodes] == [f"sat-{k}" for k in range(12)]
    assert {(n.memory_bytes, n.slowdown, n.headroom_bytes, n.half_duplex) for n in network.nodes} == {
        (8_000_000_000, 4.0, 500_000_000, True)
    }
    assert network.name == "Walker delta 53: 12/1/0 at 2026-01-01T00:00:00Z"


def test_latency_is_range_over_light_and_links_go_both_ways() -> None:
    at = RING.epoch + timedelta(minutes=13)
    network, positions = RING.network(at), RING.positions(at)[:, 0]
    assert len(network.links) == 24
    for link in network.links:
        a, b = RING.index(link.source), RING.index(link.destination)
        assert (a - b) % 12 in (1, 11)
        assert link.latency_s == pytest.approx(np.linalg.norm(positions[a] - positions[b]) / 299792.458)
        assert link.bytes_per_s == 62.5e6
    assert np.array_equal(network.latency_s(), network.latency_s().T)


def test_a_julian_date_is_the_same_instant() -> None:
    julian = float(leo.Times.of(RING.epoch).julian()[0])
    assert RING.network(julian).links == RING.network(RING.epoch).links


def test_budgets_give_the_rates() -> None:
    equipment = leo.Equipment(TEMPLATE, isl=leo.Optical(), downlink=leo.KaBand(), uplink=leo.FixedRate("0.1 Gbit/s"))
    fleet = RING.equipped(equipment).served_by(MUNICH)
    best = in_view(fleet)
    network = fleet.network(best.highest)
    for link in network.links:
        distance = np.array(link.latency_s * 299792.458)
        if link.source == "munich":
            assert link.bytes_per_s == 12.5e6
        elif link.destination == "munich":
            assert link.bytes_per_s == pytest.approx(float(leo.KaBand().bytes_per_s(distance)))
        else:
            assert link.bytes_per_s == pytest.approx(float(leo.Optical().bytes_per_s(distance)))
    assert {(best.satellite, "munich"), ("munich", best.satellite)} <= {
        (k.source, k.destination) for k in network.links
    }


def test_stations_are_linked_while_in_view_and_only_then() -> None:
    fleet = RING.served_by(MUNICH, leo.Station("no computer there", 48.0, 11.0))
    for contact in fleet.contacts(fleet.epoch, fleet.epoch + timedelta(hours=5)):
        if contact.station != "munich" or contact.start == fleet.epoch:
            continue
        for seconds, is_up in ((-1, False), (1, True)):
            network = fleet.network(contact.start + timedelta(seconds=seconds))
            assert ("munich" in {k.destination for k in network.links if k.source == contact.satellite}) is is_up
            assert network.nodes[network.index("munich")].memory_bytes == 12_000_000_000
            assert len(network.nodes) == 13


def test_a_station_with_one_antenna_takes_the_highest() -> None:
    train = leo.walker_delta(60, 1, 0, altitude_km=500, inclination_deg=53, equipment=leo.Equipment(TEMPLATE))
    fleet = train.served_by(MUNICH)
    at = in_view(fleet, 12).highest
    seen = [link.source for link in fleet.network(at).links if link.destination == "munich"]
    assert len(seen) > 1
    one = train.served_by(leo.Station("munich", 48.15, 11.57, 0.5, node=GROUND, antennas=1))
    elevation = fleet.elevation_deg(at)[0, :, 0]
    assert [link.source for link in one.network(at).links if link.destination == "munich"] == [
        train.names[int(np.argmax(elevation))]
    ]


def test_a_station_acquires_before_it_serves() -> None:
    slow = leo.Station("munich", 48.15, 11.57, 0.5, node=GROUND, acquisition_s=45.0)
    fleet = RING.served_by(slow)
    contact = in_view(fleet)
    for seconds, is_up in ((44, False), (46, True)):
        links = fleet.network(contact.start + timedelta(seconds=seconds)).links
        assert ("munich" in {link.destination for link in links if link.source == contact.satellite}) is is_up


def test_links_that_a_constellation_does_not_have_are_not_there() -> None:
    fleet = RING.equipped(leo.Equipment(TEMPLATE, isl=None, downlink=None)).served_by(MUNICH)
    assert fleet.network(in_view(fleet).highest).links == ()


def test_networks_over_time() -> None:
    found = list(RING.networks(RING.epoch, RING.epoch + timedelta(minutes=10), 120.0))
    assert [when for when, _ in found] == [RING.epoch + timedelta(minutes=2 * k) for k in range(6)]
    assert all(isinstance(network, Network) for _, network in found)
    assert found[3][1] == RING.network(RING.epoch + timedelta(minutes=6))


def test_without_equipment_what_is_missing_is_named() -> None:
    bare = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    with pytest.raises(ValueError, match=r"has no equipment: give equipment=Equipment\(node=osp.Node"):
        bare.network(bare.epoch)
    with pytest.raises(ValueError, match="no satellite 'moon'; the satellites are sat-0, sat-1"):
        bare.index("moon")
    with pytest.raises(ValueError, match="margin_km is -1"):
        leo.Equipment(TEMPLATE, margin_km=-1)
    with pytest.raises(ValueError, match="no frame 'j2000'; there are: teme, earth_fixed"):
        bare.positions(bare.epoch, frame="j2000")
    with pytest.raises(ValueError, match="two satellites or stations are called 'munich'"):
        bare.served_by(MUNICH, MUNICH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": "jetson"}, "the node of an equipment is 'jetson', must be a Node"),
        ({"isl": "1 Gbit/s"}, r"isl is '1 Gbit/s', must be FixedRate\(\.\.\.\), KaBand\(\), Optical\(\)"),
        ({"isl": leo.Optical}, "isl is <class .*Optical'>, must be FixedRate"),
        ({"topology": leo.Grid}, "topology is <class .*Grid'>, must be Grid"),
        ({"downlink": 1e6}, "downlink is 1000000.0, must be FixedRate"),
        ({"uplink": "ka_band"}, "uplink is 'ka_band', must be FixedRate"),
        ({"topology": "grid"}, r"topology is 'grid', must be Grid\(\), Nearest\(\)"),
        ({"margin_km": "80"}, "margin_km is '80', must be a number"),
    ],
)
def test_equipment_of_other_types_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        leo.Equipment(**{"node": TEMPLATE, **change})


def test_what_has_the_method_is_a_rate() -> None:
    rate = SimpleNamespace(bytes_per_s=lambda km: np.full(np.shape(km), 7.0))
    network = RING.equipped(leo.Equipment(TEMPLATE, isl=rate)).network(at=RING.epoch)
    assert {link.bytes_per_s for link in network.links} == {7.0}


def test_what_is_no_equipment_or_station_is_refused() -> None:
    given: Any = "x"
    with pytest.raises(TypeError, match=r"the equipment is 'x', must be Equipment\(node=\.\.\.\)"):
        RING.equipped(given)
    with pytest.raises(TypeError, match="a station is 'x', must be a Station"):
        RING.served_by(given)
    given = [MUNICH]
    with pytest.raises(TypeError, match=r"a station is \[Station.*must be a Station"):
        RING.served_by(given)
    given = ["sat-0"]
    with pytest.raises(TypeError, match="a satellite is 'sat-0', must be a Satellite"):
        leo.Constellation("ring", given)


def test_satellites_behind_the_earth_have_no_links() -> None:
    pair = leo.walker_delta(2, 1, 0, altitude_km=500, inclination_deg=53, equipment=leo.Equipment(TEMPLATE))
    assert pair.network(pair.epoch).links == ()
