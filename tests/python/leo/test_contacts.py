"""Contact windows: Skyfield's passes, a scan in seconds as the slow judge, pass lengths at 500 km and 53 deg."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from skyfield.api import EarthSatellite, load, wgs84

from orbitsplit import leo
from tests.support.paths import DATA

LEO = DATA / "leo"
ISS = (LEO / "iss.tle").read_text()
MUNICH = leo.Station("munich", 48.15, 11.57, 0.5)
SYDNEY = leo.Station("sydney", -33.87, 151.2, mask_deg=25)
EQUATOR = leo.Station("equator", 0.0, 0.0, mask_deg=0)
Pass = tuple[datetime, datetime, float]


def skyfield_passes(tle: str, station: leo.Station, start: datetime, stop: datetime) -> list[Pass]:
    """Return the whole passes that Skyfield finds: rise, set and largest elevation."""
    scale = load.timescale(builtin=True)
    satellite = EarthSatellite(*tle.splitlines()[-2:], "", scale)
    place = wgs84.latlon(station.latitude_deg, station.longitude_deg, station.altitude_km * 1000)
    times, events = satellite.find_events(
        place, scale.from_datetime(start), scale.from_datetime(stop), altitude_degrees=station.mask_deg
    )
    found: list[Pass] = []
    rise, top = None, -90.0
    for time, event in zip(times, events, strict=True):
        if event == 0:
            rise, top = time.utc_datetime(), -90.0
        elif event == 1:
            top = max(top, (satellite - place).at(time).altaz()[0].degrees)
        elif rise is not None:
            found.append((rise, time.utc_datetime(), top))
            rise = None
    return found


def agree(contacts: Sequence[leo.Contact], passes: Sequence[Pass]) -> None:
    assert len(contacts) == len(passes)
    for contact, (rise, fall, top) in zip(contacts, passes, strict=True):
        assert abs((contact.start - rise).total_seconds()) < 5
        assert abs((contact.stop - fall).total_seconds()) < 5
        assert contact.max_elevation_deg == pytest.approx(top, abs=0.05)
        assert contact.start < contact.highest < contact.stop


@pytest.mark.parametrize("station", [MUNICH, SYDNEY, EQUATOR], ids=lambda station: station.name)
def test_passes_are_those_of_skyfield(station: leo.Station) -> None:
    satellite = leo.from_tle(ISS).served_by(station)
    start = satellite.epoch + timedelta(hours=2)
    stop = start + timedelta(days=3)
    passes = skyfield_passes(ISS, station, start, stop)
    assert len(passes) > 3
    agree([c for c in satellite.contacts(start, stop) if c.start > start and c.stop < stop], passes)


def test_passes_are_those_of_the_golden_file() -> None:
    """What Skyfield 1.55 found, so that a change of either shows; running this file as a program writes it."""
    golden = json.loads((LEO / "passes.json").read_text())
    satellite = leo.from_tle(ISS).served_by(MUNICH)
    start, stop = (datetime.fromisoformat(golden[key]) for key in ("start", "stop"))
    passes = [(datetime.fromisoformat(a), datetime.fromisoformat(b), top) for a, b, top in golden["passes"]]
    agree(satellite.contacts(start, stop), passes)


def scanned(constellation: leo.Constellation, start: datetime, seconds: int) -> dict[tuple[str, str], np.ndarray]:
    """Return for every station and satellite whether it is in view at each second."""
    times = leo.Times.span(start, start + timedelta(seconds=seconds), 1.0)
    elevation = constellation.elevation_deg(times)
    return {
        (station.name, name): elevation[s, n] >= station.mask_deg
        for s, station in enumerate(constellation.stations)
        for n, name in enumerate(constellation.names)
    }


SCANNED_S = 3 * 3600


@pytest.fixture(scope="module")
def shell() -> leo.Constellation:
    """Return satellites and stations with masks from the horizon to nearly the zenith."""
    stations = [leo.Station(f"mask {m}", 40.0 + m / 10, 2.0 * m, mask_deg=m) for m in (0, 5, 30, 60, 80)]
    stations.append(leo.Station("pole", 90.0, 0.0, mask_deg=3))
    return leo.walker_delta(12, 3, 1, altitude_km=550, inclination_deg=87).served_by(*stations)


@pytest.fixture(scope="module")
def views(shell: leo.Constellation) -> dict[tuple[str, str], np.ndarray]:
    return scanned(shell, shell.epoch, SCANNED_S)


@pytest.mark.parametrize("step_s", [10.0, 30.0, 47.0, 60.0])
def test_windows_are_what_a_scan_in_seconds_finds(
    step_s: float, shell: leo.Constellation, views: dict[tuple[str, str], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in chunks of a few samples, with edges in every place."""
    monkeypatch.setattr("orbitsplit.leo._orbits.constellation._CHUNK", 12 * 17)
    found = {key: np.zeros(SCANNED_S + 1, dtype=bool) for key in views}
    stop = shell.epoch + timedelta(seconds=SCANNED_S)
    contacts = shell.contacts(shell.epoch, stop, step_s=step_s)
    for contact in contacts:
        assert shell.epoch <= contact.start <= contact.highest <= contact.stop <= stop
        a, b = ((when - shell.epoch).total_seconds() for when in (contact.start, contact.stop))
        found[contact.station, contact.satellite][int(np.ceil(a)) : int(np.floor(b)) + 1] = True
    assert sum(int(view.sum()) for view in views.values()) > 5000
    for key, view in views.items():
        assert np.array_equal(view, found[key]), key


def test_the_largest_elevation_is_the_scans() -> None:
    ring = leo.walker_delta(4, 1, 0, altitude_km=550, inclination_deg=53).served_by(MUNICH)
    contacts = ring.contacts(ring.epoch, ring.epoch + timedelta(hours=12))
    assert len(contacts) > 5
    for contact in contacts:
        times = leo.Times.span(contact.start, contact.stop, 0.5)
        elevation = ring.elevation_deg(times)[0, ring.index(contact.satellite)]
        assert contact.max_elevation_deg == pytest.approx(elevation.max(), abs=1e-3)


def test_passes_shorter_than_a_step_are_found() -> None:
    ring = leo.walker_delta(6, 1, 0, altitude_km=500, inclination_deg=53).served_by(
        leo.Station("a", 30, 20, mask_deg=75)
    )
    contacts = ring.contacts(ring.epoch, ring.epoch + timedelta(days=3), step_s=60)
    short = [contact for contact in contacts if contact.duration_s < 30]
    assert short
    for contact in short:
        middle = contact.start + (contact.stop - contact.start) / 2
        assert ring.elevation_deg(middle)[0, ring.index(contact.satellite), 0] >= 75


def test_a_satellite_always_in_view_is_one_contact() -> None:
    high = leo.single("geo", altitude_km=35786, inclination_deg=0.05, raan_deg=100)
    position = high.positions(high.epoch, frame="earth_fixed")[0, 0]
    longitude = float(np.degrees(np.arctan2(position[1], position[0])))
    seen = high.served_by(leo.Station("under it", 5.0, longitude), leo.Station("behind", 0.0, longitude - 180))
    stop = seen.epoch + timedelta(hours=30)
    (contact,) = seen.contacts(seen.epoch, stop)
    assert (contact.station, contact.start, contact.stop) == ("under it", seen.epoch, stop)
    assert contact.max_elevation_deg > 80


def test_a_contact_is_cut_at_the_ends_of_the_span() -> None:
    satellite = leo.from_tle(ISS).served_by(MUNICH)
    whole = max(satellite.contacts(satellite.epoch, satellite.epoch + timedelta(days=1)), key=lambda c: c.duration_s)
    third = (whole.stop - whole.start) / 3
    (part,) = satellite.contacts(whole.start + third, whole.stop - third)
    assert (part.start, part.stop) == (whole.start + third, whole.stop - third)
    assert part.max_elevation_deg == pytest.approx(whole.max_elevation_deg, abs=1e-6)
    (late,) = satellite.contacts(whole.highest + third / 2, whole.stop + third)
    assert late.highest == late.start
    assert late.max_elevation_deg == pytest.approx(satellite.elevation_deg(late.start)[0, 0, 0], abs=1e-6)
    assert late.max_elevation_deg < whole.max_elevation_deg
    assert abs(late.stop - whole.stop) < timedelta(milliseconds=20)


def test_pass_lengths_at_500_km_and_53_deg() -> None:
    """Above 10 deg: mean 363 s and maximum 461 s, of 12 satellites in a plane at 25 N over thirty days.

    The maximum is much the same everywhere (460 to 465 s). The mean is that of chords of a circle, pi / 4 of the
    maximum, where tracks cross evenly, as they do at latitudes up to 28 deg; near 50 deg, where they turn, it is 413 s.
    """
    ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    start = ring.epoch + timedelta(hours=1)
    stop = start + timedelta(days=30)
    for latitude, mean, most in ((25.0, 363, 461), (50.0, 413, 465)):
        contacts = ring.served_by(leo.Station("a", latitude, 0.0)).contacts(start, stop)
        lengths = [c.duration_s for c in contacts if c.start > start and c.stop < stop]
        assert len(lengths) > 1000
        assert np.mean(lengths) == pytest.approx(mean, abs=2)
        assert np.max(lengths) == pytest.approx(most, abs=1)


def test_spans_and_steps_that_make_no_sense_are_refused() -> None:
    satellite = leo.from_tle(ISS)
    with pytest.raises(ValueError, match="has no stations to be seen from"):
        satellite.contacts(satellite.epoch, satellite.epoch + timedelta(hours=1))
    served = satellite.served_by(MUNICH)
    with pytest.raises(ValueError, match=r"step_s is 300\.0, must be from 1 to 60"):
        served.contacts(served.epoch, served.epoch + timedelta(hours=1), step_s=300.0)
    with pytest.raises(ValueError, match="stops 60 s before it starts"):
        served.contacts(served.epoch, served.epoch - timedelta(minutes=1))
    with pytest.raises(ValueError, match=r"the span is empty: it starts and stops at 2019-12-09T16:38:29"):
        served.contacts(served.epoch, served.epoch)
    with pytest.raises(TypeError, match="step_s is '30', must be a number"):
        served.contacts(served.epoch, served.epoch + timedelta(hours=1), step_s="30")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the time is 2026-01-01T00:00:00, which has no time zone"):
        served.contacts(datetime(2026, 1, 1), served.epoch)
    with pytest.raises(TypeError, match="the time is 'now', must be a datetime or a Julian date"):
        served.contacts("now", served.epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latitude_deg": "48"}, "latitude of station 'munich' is '48', must be a number"),
        ({"mask_deg": None}, "elevation mask of station 'munich' is None, must be a number"),
        ({"antennas": 1.5}, "antennas of station 'munich' is 1.5, must be an integer"),
        ({"node": "jetson"}, "the node of station 'munich' is 'jetson', must be a Node"),
        ({"name": 7}, "the name of a station is 7, must be a string"),
    ],
)
def test_a_station_of_other_types_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        replace(MUNICH, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the name of a station is empty"):
        replace(MUNICH, name="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", 91.0, 0.0), "latitude of station 'x' is 91.0, must be from -90 to 90"),
        (("x", 0.0, float("nan")), "longitude of station 'x' is nan"),
        (("x", 0.0, 0.0, 400.0), "altitude in km of station 'x' is 400.0"),
        (("x", 0.0, 0.0, 0.0, 90.0), "elevation mask of station 'x' is 90.0, must be from 0 to 89"),
        (("x", 0.0, 0.0, 0.0, 10.0, None, 0), "antennas of station 'x' is 0, must be at least 1"),
    ],
)
def test_stations_that_make_no_sense_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leo.Station(*arguments)  # type: ignore[arg-type]


def write_golden() -> None:
    """Write what Skyfield finds at Munich in two days."""
    start = leo.from_tle(ISS).epoch.replace(minute=0, second=0, microsecond=0) + timedelta(hours=6)
    stop = start + timedelta(days=2)
    passes = [(a.isoformat(), b.isoformat(), round(top, 4)) for a, b, top in skyfield_passes(ISS, MUNICH, start, stop)]
    document = {"start": start.isoformat(), "stop": stop.isoformat(), "passes": passes}
    (LEO / "passes.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
