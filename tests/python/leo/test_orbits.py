"""Orbits: SGP4's verification cases, Skyfield as the judge, files of elements, and every mistake in them named."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skyfield.api import EarthSatellite, load, wgs84
from skyfield.framelib import itrs

from orbitsplit import leo
from tests.support.paths import DATA

LEO = DATA / "leo"
ISS = (LEO / "iss.tle").read_text()
ISS_EPOCH = datetime(2019, 12, 9, 16, 38, 29, 363424, tzinfo=timezone.utc)
FIRST, SECOND = ISS.splitlines()[1:]


def test_verification_cases_of_sgp4() -> None:
    for case in json.loads((LEO / "verification.json").read_text())["satellites"]:
        satellite = leo.from_tle("\n".join(case["tle"]))
        minutes, expected = np.array(case["states"])[:, 0], np.array(case["states"])[:, 1:]
        epoch = leo.Times.of(satellite.satellites[0].record.jdsatepoch)
        times = epoch.shifted(minutes * 60 + satellite.satellites[0].record.jdsatepochF * 86400)
        positions, velocities = satellite.states(times)
        assert np.abs(positions[0] - expected[:, :3]).max() < 1e-5  # km: a centimetre
        assert np.abs(velocities[0] - expected[:, 3:]).max() < 1e-7


@pytest.mark.parametrize("place", [(48.1, 11.6, 0.5), (-33.9, 18.4, 0.0), (90.0, 0.0, 0.0), (0.0, -180.0, 2.0)])
def test_positions_and_elevations_are_those_of_skyfield(place: tuple[float, float, float]) -> None:
    satellite = leo.from_tle(ISS).served_by(leo.Station("here", *place))
    times = [ISS_EPOCH + timedelta(minutes=7 * k) for k in range(300)]
    scale = load.timescale(builtin=True)
    judge, when = EarthSatellite(FIRST, SECOND, "ISS", scale), scale.from_datetimes(times)
    fixed = judge.at(when).frame_xyz(itrs).km.T
    # UT1 in place of UTC, and polar motion: 0.2 s of the Earth's turn, 100 m.
    assert np.linalg.norm(satellite.positions(times, frame="earth_fixed")[0] - fixed, axis=1).max() < 0.2
    station = wgs84.latlon(place[0], place[1], place[2] * 1000)
    elevation = (judge - station).at(when).altaz()[0].degrees
    assert np.abs(satellite.elevation_deg(times)[0, 0] - elevation).max() < 0.05


@pytest.mark.parametrize("kind", ["csv", "json", "xml"])
def test_omm_says_what_the_tle_says(kind: str) -> None:
    tle, omm = leo.load(LEO / "iss.tle"), leo.load(LEO / f"iss.{kind}")
    assert omm.names == tle.names == ["ISS (ZARYA)"]
    assert abs(omm.epoch - ISS_EPOCH) < timedelta(milliseconds=1)
    times = [ISS_EPOCH + timedelta(hours=k) for k in range(24)]
    assert np.abs(omm.positions(times) - tle.positions(times)).max() < 1e-3


def test_an_orbit_has_the_requested_altitude() -> None:
    for inclination in (0.0, 53.0, 97.4):
        orbit = leo.single("a", altitude_km=500, inclination_deg=inclination)
        assert orbit.satellites[0].altitude_km == pytest.approx(500, abs=1e-6)
        radius = np.linalg.norm(
            orbit.positions(leo.Times.span(orbit.epoch, orbit.epoch + timedelta(hours=3), 60)), axis=-1
        )
        assert abs(radius.mean() - 6878.137) < 10  # the Earth's flattening moves it by several km


def test_period_is_that_of_kepler_and_of_the_propagated_orbit() -> None:
    assert leo.period_s(500) == pytest.approx(5677.0, abs=0.1)
    orbit = leo.single("a", altitude_km=500, inclination_deg=53)
    times = leo.Times.span(orbit.epoch, orbit.epoch + timedelta(hours=30), 10)
    z = orbit.positions(times)[0, :, 2]
    rises = np.flatnonzero((z[:-1] < 0) & (z[1:] >= 0))
    crossings = 10 * (rises + z[rises] / (z[rises] - z[rises + 1]))
    assert np.diff(crossings).mean() == pytest.approx(leo.period_s(500), rel=1e-3)  # J2 changes it by a part in 1,000


def test_times_in_every_form_are_the_same_instant() -> None:
    when = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=timezone.utc)
    east = when.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert leo.Times.of(east).datetimes() == leo.Times.of(when).datetimes() == [when]
    julian = float(leo.Times.of(when).julian()[0])
    assert abs(leo.Times.of(julian).datetimes()[0] - when) < timedelta(microseconds=100)
    assert leo.Times.of(2451545.0).datetimes() == [datetime(2000, 1, 1, 12, tzinfo=timezone.utc)]
    span = leo.Times.span(when, when + timedelta(days=2), 3600.0)
    assert span.datetimes() == [when + timedelta(hours=k) for k in range(49)]


def test_sidereal_time_is_the_almanacs() -> None:
    # Vallado, example 3-5: 1992-08-20 12:14 UT1 is 152.578787886 deg.
    when = datetime(1992, 8, 20, 12, 14, tzinfo=timezone.utc)
    assert np.degrees(leo.Times.of(when).sidereal_rad()[0]) == pytest.approx(152.578787886, abs=1e-6)


def test_chunks_are_the_whole_and_overlap_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orbitsplit.leo._orbits.constellation._CHUNK", 24)
    ring = leo.walker_delta(4, 2, 1, altitude_km=700, inclination_deg=60)
    for count in (1, 2, 3, 8, 9, 50):
        times = leo.Times.span(ring.epoch, ring.epoch + timedelta(seconds=10 * (count - 1)), 10)
        for overlap in (0, 2):
            parts = list(ring.chunks(times, overlap=overlap))
            joined = np.concatenate([parts[0][1], *(part[1][:, overlap:] for part in parts[1:])], axis=1)
            assert np.array_equal(joined, ring.positions(times))
            assert all(part[1].shape[1] <= 24 for part in parts)


def test_constellations_add_up() -> None:
    both = leo.from_tle(ISS) + leo.single("free flyer", altitude_km=420, inclination_deg=51.6, epoch=ISS_EPOCH)
    assert both.names == ["ISS (ZARYA)", "free flyer"]
    assert both.positions(ISS_EPOCH).shape == (2, 1, 3)
    with pytest.raises(ValueError, match=r"called 'ISS \(ZARYA\)', names must differ"):
        _ = both + leo.from_tle(ISS)


def _with(line: str, column: int, text: str) -> str:
    return line[:column] + text + line[column + len(text) :]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{_with(FIRST, 68, '4')}\n{SECOND}", "line 1 ends with the checksum 4, its other characters give 1"),
        (f"ISS\n{FIRST}\n{_with(SECOND, 12, '9')}", r"line 3 ends with the checksum 2.*damaged or edited"),
        (f"{FIRST[:-3]}\n{SECOND}", "line 1 has 66 characters, a line of a two-line element set has 69"),
        (f"{FIRST}\n{SECOND}0", "line 2 has 70 characters"),
        (FIRST, "line 1 is the last, the other line of its element set is missing"),
        (f"{FIRST}\n{FIRST}", "line 2 should start with '2 '"),
        (f"{SECOND}\n{FIRST}", "line 1 should start with '1 '"),
        ("ISS\nISS\n", "line 2 should start with '1 '"),
        (f"{FIRST}\n{SECOND}\nISS", "line 3 is the name 'ISS', and no elements follow it"),
        (f"{FIRST}\n2 25545" + SECOND[7:68] + "3", "lines 1 and 2 belong to satellites 25544 and 25545"),
        ("\n\n", "holds no element sets"),
    ],
)
def test_a_damaged_tle_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^stations.tle:? .*{message}|^stations.tle: {message}"):
        leo.from_tle(text, source="stations.tle")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not OMM in json"),
        ("a.json", "3", "is not OMM in json"),
        ("a.json", '[{"OBJECT_NAME": "a"}]', "message 1 lacks EPOCH"),
        ("a.json", (LEO / "iss.json").read_text().replace("15.50103472", '"fast"'), "message 1 has a wrong value"),
        ("a.json", (LEO / "iss.json").read_text().replace("15.50103472", "0"), "mean motion is 0 revolutions"),
        ("a.json", (LEO / "iss.json").read_text().replace("2019-12-09T", "yesterday "), "has a wrong value"),
        ("a.xml", "<omm>", "is not OMM in xml"),
        ("a.xml", "<omm/>", "holds no messages"),
        ("a.xml", "<omm><segment/></omm>", "is not OMM in xml"),
        ("a.csv", "", "holds no messages"),
        ("a.csv", "OBJECT_NAME\nISS\n", "message 1 lacks EPOCH"),
    ],
)
def test_a_damaged_omm_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        leo.load(tmp_path / name)


def test_times_far_from_the_elements_are_refused() -> None:
    station = leo.from_tle(ISS)
    with pytest.raises(
        ValueError, match=r"'ISS \(ZARYA\)' are of 2019-12-09, 2049-12-09 is 10,958 days away and the limit is 30"
    ):
        station.positions(datetime(2049, 12, 9, 17, tzinfo=timezone.utc))
    station.positions(ISS_EPOCH + timedelta(days=29))
    leo.from_tle(ISS, max_age_days=60).positions(ISS_EPOCH - timedelta(days=50))
    ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    with pytest.raises(
        ValueError, match="'sat-0' are of 2026-01-01, 2126-01-01 is 36,524 days away and the limit is 3,653"
    ):
        ring.positions(datetime(2126, 1, 1, tzinfo=timezone.utc))


def test_a_satellite_that_has_decayed_is_named() -> None:
    case = json.loads((LEO / "decayed.json").read_text())
    falling = leo.from_tle("\n".join(["MINOTAUR R/B", *case["tle"]]))
    with pytest.raises(
        ValueError, match=r"'MINOTAUR R/B' has decayed at 2005-11-29 .* days from its epoch: mrt is less"
    ):
        falling.positions([falling.epoch, falling.epoch + timedelta(minutes=60)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"altitude_km": -10.0}, r"altitude_km of satellite 'a' is -10.0, must be at least 100"),
        ({"altitude_km": 99.0}, r"altitude_km of satellite 'a' is 99.0, must be at least 100"),
        ({"eccentricity": 0.2}, r"perigee of satellite 'a' is -876 km"),
        ({"eccentricity": 1.0}, r"eccentricity of satellite 'a' is 1.0"),
        ({"inclination_deg": 181.0}, r"inclination of satellite 'a' is 181.0 deg"),
        ({"raan_deg": float("nan")}, r"raan_deg of satellite 'a' is nan, an element must be finite"),
        ({"epoch": datetime(2026, 1, 1)}, r"2026-01-01T00:00:00, which has no time zone"),
        ({"epoch": 2026.0}, r"Julian date is 2026.0, must be from"),
        ({"name": ""}, r"the name of a satellite is empty"),
    ],
)
def test_elements_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leo.single(**{"name": "a", "altitude_km": 500.0, "inclination_deg": 53.0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "2026-01-01"}, r"the time is '2026-01-01', must be a datetime or a Julian date"),
        ({"altitude_km": "500"}, r"altitude_km of satellite 'a' is '500', must be a number"),
        ({"inclination_deg": None}, r"inclination_deg.* is None, must be a number"),
        ({"max_age_days": "30"}, r"max_age_days of satellite 'a' is '30', must be a number"),
        ({"name": 5}, r"the name of a satellite is 5, must be a string"),
    ],
)
def test_elements_of_another_type_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"name": "a", "altitude_km": 500.0, "inclination_deg": 53.0, **change}
    with pytest.raises(TypeError, match=message):
        leo.single(**arguments)
    if "max_age_days" not in change and "name" not in change:
        del arguments["name"]
        with pytest.raises(TypeError, match=message.replace("'a'", "'sat-0'")):
            leo.walker_delta(1, 1, 0, **arguments)


def test_the_lowest_altitude_is_allowed() -> None:
    assert leo.single("a", altitude_km=100, inclination_deg=53).satellites[0].altitude_km == pytest.approx(100)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((12, 5, 0), "12 satellites do not divide into 5 planes: 10 would"),
        ((12, 4, 4), "the phasing is 4, with 4 planes it must be from 0 to 3"),
        ((0, 1, 0), "needs at least 1 of both"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leo.walker_delta(*numbers, altitude_km=500, inclination_deg=53)


def test_walker_patterns_are_laid_out_as_walker_says() -> None:
    """Judged by the elements themselves: nodes 360/p apart, slots 360/s, planes out of phase by f * 360/t."""
    for build, spread in ((leo.walker_delta, 360), (leo.walker_star, 180)):
        shell = build(24, 4, 3, altitude_km=800, inclination_deg=60, raan_deg=10)
        for k, satellite in enumerate(shell.satellites):
            plane, slot = divmod(k, 6)
            assert satellite.name == f"sat-{plane}-{slot}"
            assert np.degrees(satellite.record.nodeo) == pytest.approx((10 + spread / 4 * plane) % 360)
            assert np.degrees(satellite.record.mo) == pytest.approx((60 * slot + 3 * 360 / 24 * plane) % 360)


def test_a_span_that_makes_no_sense_is_refused() -> None:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for stop, step, message in (
        (start - timedelta(hours=1), 10.0, "stops 3600 s before it starts"),
        (start + timedelta(hours=1), 0.0, "step_s is 0.0, must be finite and > 0"),
        (start + timedelta(days=3650), 1.0, "more than 40,000,000 instants"),
    ):
        with pytest.raises(ValueError, match=message):
            leo.Times.span(start, stop, step)
    with pytest.raises(ValueError, match="no times were given"):
        leo.Times.of([])


def test_without_sgp4_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['sgp4'] = None\ntry: import orbitsplit.leo\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 'pip install "orbitsplit[leo]"' in run.stdout


def test_patterns_of_other_types_are_refused() -> None:
    """Strings and floats failed in the arithmetic, or made satellites that could not be indexed."""
    for numbers, message in (
        ((12.0, 1, 0, 53.0), "total of a pattern is 12.0, must be an integer"),
        ((12, "3", 0, 53.0), "planes of a pattern is '3', must be an integer"),
        ((12, 3, True, 53.0), "phasing of a pattern is True, must be an integer"),
        ((12, 3, 0, "53"), "inclination_deg of a pattern is '53', must be a number"),
    ):
        with pytest.raises(TypeError, match=message):
            leo.Pattern(*numbers)  # type: ignore[arg-type]
