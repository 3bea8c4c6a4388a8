"""Findings: what geometry does not allow is said with the numbers and a fix, and the fix fixes it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from orbitsplit import Node, leo

NODE = Node("any", 8_000_000_000, slowdown=1.0)


def walker(total: int, planes: int, phasing: int, altitude_km: float = 500.0) -> leo.Constellation:
    equipment = leo.Equipment(NODE, downlink=leo.FixedRate("0.2 Gbit/s"))
    return leo.walker_delta(total, planes, phasing, altitude_km=altitude_km, inclination_deg=53, equipment=equipment)


def test_a_chain_that_holds_has_no_findings() -> None:
    assert leo.lint(walker(12, 1, 0), chains=[[f"sat-{k}" for k in range(5)]]) == ()


def test_a_chain_that_geometry_cannot_hold() -> None:
    six = walker(6, 1, 0)
    (finding, *others) = leo.lint_chain(six, ["sat-0", "sat-1", "sat-2"])
    assert len(others) == 1
    assert finding.is_error
    assert "'sat-0' and 'sat-1' never see each other: they are up to 6,8" in finding.message
    assert "ends at 4,7" in finding.message
    # Both fixes hold what they promise.
    altitude = float(re.search(r"an altitude of ([\d,]+) km", finding.message)[1].replace(",", ""))  # type: ignore[index]
    count = int(re.search(r"(\d+) or more satellites", finding.message)[1])  # type: ignore[index]
    assert leo.lint_chain(walker(6, 1, 0, altitude), ["sat-0", "sat-1", "sat-2"]) == []
    assert leo.lint_chain(walker(6, 1, 0, altitude - 30), ["sat-0", "sat-1"]) != []
    assert leo.lint_chain(walker(count, 1, 0), ["sat-0", "sat-1"]) == []
    assert leo.lint_chain(walker(count - 1, 1, 0), ["sat-0", "sat-1"]) != []


def test_a_link_that_is_there_part_of_the_time_is_a_warning() -> None:
    shell = walker(12, 3, 1)
    found = [f for name in shell.names[1:] for f in leo.lint_chain(shell, ["sat-0-0", name])]
    part = [finding for finding in found if not finding.is_error]
    assert part
    assert re.search(r"see each other \d+% of the time", part[0].message)
    assert str(part[0]).startswith("warning: ")


def closest_slowly(constellation: leo.Constellation) -> np.ndarray:
    """Return the least distance of each pair over one revolution, at every half second."""
    end = constellation.epoch + timedelta(seconds=constellation.satellites[0].period_s)
    positions = constellation.positions(leo.Times.span(constellation.epoch, end, 0.5))
    return np.array([np.linalg.norm(positions - one[None], axis=-1).min(axis=1) for one in positions])


@pytest.mark.parametrize(
    ("numbers", "count"), [((12, 2, 0), 6), ((12, 4, 1), 6), ((12, 6, 4), 6), ((12, 3, 1), 0), ((12, 12, 11), 6)]
)
def test_collisions_are_those_a_scan_finds(numbers: tuple[int, int, int], count: int) -> None:
    shell = walker(*numbers)
    least = closest_slowly(shell)
    expected = {(a, b) for a in range(12) for b in range(a) if least[a, b] < 20}
    unclear = {(a, b) for a in range(12) for b in range(a) if abs(least[a, b] - 20) < 3}
    found = {
        tuple(sorted((shell.index(name) for name in re.findall(r"'([^']+)'", f.message)), reverse=True))
        for f in leo.lint_collisions(shell)
    }
    assert found - unclear == expected - unclear
    assert len(found) == count


def test_a_collision_is_named_and_the_fix_parts_them() -> None:
    shell = walker(12, 2, 0)
    findings = leo.lint_collisions(shell)
    assert findings
    assert findings[0].is_error
    assert "come within 14.4 km" in findings[0].message
    assert "the limit is 20 km; another phasing than 0 (of 1)" in findings[0].message
    assert leo.lint_collisions(walker(12, 2, 1)) == []


def test_two_satellites_in_the_same_place() -> None:
    twins = leo.single("a", altitude_km=500, inclination_deg=53) + leo.single("b", altitude_km=501, inclination_deg=53)
    (finding,) = leo.lint_collisions(twins)
    assert "'a' and 'b' come within 1.0 km of each other" in finding.message
    assert leo.lint_collisions(twins, collision_km=0.5) == []


def test_a_station_at_the_pole_is_never_in_view_and_an_inclination_would_do() -> None:
    fleet = walker(12, 1, 0).served_by(leo.Station("pole", 90.0, 0.0))
    (finding,) = leo.lint(fleet)
    assert finding.kind == "station"
    assert "station 'pole' at latitude 90 deg sees no satellite in 24 h" in finding.message
    assert "they serve latitudes up to 67.0 deg" in finding.message
    inclination = float(re.search(r"an inclination of (\d+) deg", finding.message)[1])  # type: ignore[index]
    for degrees, is_seen in ((inclination, True), (inclination - 2, False)):
        polar = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=degrees)
        assert (leo.lint(polar.served_by(leo.Station("pole", 90.0, 0.0))) == ()) is is_seen


def test_a_mask_too_high_is_named() -> None:
    fleet = leo.single("a", altitude_km=500, inclination_deg=53).served_by(leo.Station("m", 48.0, 11.0, mask_deg=89))
    (finding,) = leo.lint(fleet, hours=6)
    mask = float(re.search(r"a mask of (\d+) deg", finding.message)[1])  # type: ignore[index]
    assert leo.lint(fleet.served_by(leo.Station("m", 48.0, 11.0, mask_deg=mask)), hours=6) == ()


def test_a_transfer_longer_than_a_contact() -> None:
    fleet = walker(12, 1, 0).served_by(leo.Station("munich", 48.15, 11.57))
    (finding,) = leo.lint(fleet, transfer_bytes=20e9)
    assert finding.kind == "contact"
    assert "20 GB do not fit into a contact of station 'munich'" in finding.message
    # 460 s at 0.2 Gbit/s.
    available = float(re.search(r"transmits ([\d.]+) GB", finding.message)[1])  # type: ignore[index]
    assert available == pytest.approx(460 * 25e6 / 1e9, abs=0.1)
    rate = float(re.search(r"([\d.]+) Mbit/s", finding.message)[1])  # type: ignore[index]
    faster = leo.Equipment(NODE, downlink=leo.FixedRate((rate + 1) * 1e6 / 8))
    assert leo.lint(fleet.equipped(faster), transfer_bytes=20e9) == ()
    assert leo.lint(fleet, transfer_bytes=available * 0.99e9) == ()


def test_arguments_that_make_no_sense_are_refused() -> None:
    shell = walker(12, 1, 0)
    with pytest.raises(ValueError, match="no satellite 'x'"):
        leo.lint(shell, chains=[["sat-0", "x"]])
    with pytest.raises(ValueError, match="names a satellite twice"):
        leo.lint(shell, chains=[["sat-0", "sat-1", "sat-0"]])
    with pytest.raises(ValueError, match="hours is 0"):
        leo.lint(shell, hours=0)
    with pytest.raises(ValueError, match="collision_km is -1"):
        leo.lint(shell, collision_km=-1)
    with pytest.raises(ValueError, match="transfer_bytes is -1, must be finite and at least 0"):
        leo.lint(shell, transfer_bytes=-1)
    with pytest.raises(ValueError, match="a chain is empty"):
        leo.lint(shell, chains=[[]])
    with pytest.raises(ValueError, match="start is 2026-01-01T00:00:00, which has no time zone"):
        leo.lint(shell, start=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chains": ["sat-0"]}, r"a chain is the string 'sat-0', must be a sequence of names: \['sat-0'\]"),
        ({"chains": "sat-0"}, r"chains is the string 'sat-0', must be a sequence of chains: \[\['sat-0'\]\]"),
        ({"chains": [[0, 1]]}, "a name in a chain is 0, must be a string"),
        ({"chains": [3]}, "a chain is 3, must be a sequence of names"),
        ({"hours": "24"}, "hours is '24', must be a number"),
        ({"transfer_bytes": "1 GB"}, "transfer_bytes is '1 GB', must be a number"),
        ({"collision_km": True}, "collision_km is True, must be a number"),
        ({"start": 2461041.5}, "start is 2461041.5, must be a datetime with a time zone"),
    ],
)
def test_arguments_of_other_types_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        leo.lint(walker(12, 1, 0), **changes)


@pytest.mark.parametrize(("count", "shown"), [(5e10, "50 GB"), (5e13, "50 TB"), (5e16, "5e+04 TB")])
def test_large_transfers_are_written_out(count: float, shown: str) -> None:
    served = walker(12, 1, 0).served_by(leo.Station("here", 40.0, 0.0))
    (finding,) = leo.lint(served, transfer_bytes=count)
    assert finding.message.startswith(f"{shown} do not fit into a contact of station 'here'")
