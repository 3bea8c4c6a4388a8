"""Values of element sets: numbers of the catalogue, keys that change what numbers mean, epochs."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sgp4 import omm
from sgp4.api import Satrec

from orbitsplit import leo
from tests.support.element_sets import CASES, FIRST, KVN, MESSAGE, NOON, SECOND, XML, load_message, refusal


def with_checksum(line: str) -> str:
    return line[:68] + str(sum(int(c) if c in "0123456789" else c == "-" for c in line[:68]) % 10)


# Row 2: catalogue numbers.


def test_a_number_of_nine_digits_is_kept() -> None:
    fleet = leo.load(CASES / "omm_nine_digit_number.json")
    assert fleet.satellites[0].catalogue_number == 799501234
    assert np.isfinite(fleet.positions(NOON)).all()


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (1, 1),
        (339999, 339999),
        (340000, 340000),
        (999999, 999999),
        (100000000, 100000000),
        (999999999, 999999999),
        ("270288", 270288),
        ("000025544", 25544),
        (" 799501234 ", 799501234),
        ("", None),
    ],
)
def test_numbers_of_every_width(given: Any, number: int | None, tmp_path: Path) -> None:
    fleet = load_message(tmp_path, {"NORAD_CAT_ID": given})
    assert fleet.satellites[0].catalogue_number == number
    assert np.array_equal(fleet.positions(NOON), load_message(tmp_path, {}).positions(NOON))


@pytest.mark.parametrize("given", ["A0001", -5, 1.5, 10**9, "1e5", True, [1], float("nan")])
def test_what_is_no_number_of_the_catalogue_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NORAD_CAT_ID is "):
        load_message(tmp_path, {"NORAD_CAT_ID": given})


# Row 3: keys that change what the numbers mean.


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("omm_nan_inclination.json", "INCLINATION is 'nan'"),
        ("omm_theory_sgp4_xp.json", "MEAN_ELEMENT_THEORY is 'SGP4-XP'"),
        ("omm_time_system_tai.json", "TIME_SYSTEM is 'TAI'"),
    ],
)
def test_numbers_of_another_meaning_are_refused(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        leo.load(CASES / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("EPHEMERIS_TYPE", 4),
        ("EPHEMERIS_TYPE", "2"),
        ("MEAN_ELEMENT_THEORY", "DSST"),
        ("TIME_SYSTEM", "GPS"),
        ("CENTER_NAME", "MOON"),
        ("REF_FRAME", "EME2000"),
        ("REF_FRAME_EPOCH", "2000-01-01T12:00:00"),
        ("BTERM", 0.02),
        ("CCSDS_OMM_VERS", "9.0"),
        ("MEAN_MOTION", math.inf),
        ("MEAN_MOTION", 1e308),
        ("ECCENTRICITY", math.nan),
        ("ECCENTRICITY", 1.0),
        ("INCLINATION", 180.5),
        ("RA_OF_ASC_NODE", -math.inf),
        ("ARG_OF_PERICENTER", "NaN"),
        ("MEAN_ANOMALY", "1_0"),
        ("BSTAR", 1e300),
        ("MEAN_MOTION_DOT", 10**400),
        ("MEAN_MOTION_DDOT", "inf"),
        ("MEAN_MOTION", True),
        ("OBJECT_NAME", ["a"]),
    ],
)
def test_a_value_that_sgp4_would_take_for_another_is_named(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: message 1 has a wrong value: {key} is "):
        load_message(tmp_path, {key: value})


def test_a_message_that_says_what_sgp4_needs_is_read(tmp_path: Path) -> None:
    said = {"CENTER_NAME": "Earth", "REF_FRAME": "TEME", "TIME_SYSTEM": "UTC", "MEAN_ELEMENT_THEORY": "SGP/SGP4"}
    expected = load_message(tmp_path, {}).positions(NOON)
    assert np.array_equal(load_message(tmp_path, {**said, "CCSDS_OMM_VERS": "2.0"}).positions(NOON), expected)
    optional = ("EPHEMERIS_TYPE", "CLASSIFICATION_TYPE", "ELEMENT_SET_NO", "REV_AT_EPOCH", "OBJECT_ID")
    assert np.array_equal(load_message(tmp_path, dict.fromkeys(optional)).positions(NOON), expected)


@pytest.mark.parametrize("unit", ["[rad]", "[rev/s]", "[]"])
def test_another_unit_is_refused(unit: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.kvn", KVN.replace("INCLINATION = 51.64", f"INCLINATION = 51.64 {unit}"))
    assert f"INCLINATION is in '{unit[1:-1]}', must be in deg" in message
    xml = XML.replace("<INCLINATION>", f'<INCLINATION units="{unit[1:-1]}">')
    assert "INCLINATION is in" in refusal(tmp_path, "a.xml", xml)


@pytest.mark.parametrize(
    ("line", "column", "text", "message"),
    [
        (2, 8, "     nan", "line 2: the inclination, in columns 9 to 16"),
        (2, 8, "     inf", "line 2: the inclination"),
        (2, 26, "  abc  ", "line 2: the eccentricity"),
        (2, 52, "        nan", "line 2: the mean motion"),
        (2, 52, "           ", "line 2: the mean motion"),
        (1, 18, "19343.nanana  ", "line 1: the epoch"),
        (1, 62, "4", "line 1: the ephemeris type, in column 63, is '4'"),
    ],
)
def test_columns_of_a_tle_that_are_no_numbers(line: int, column: int, text: str, message: str) -> None:
    """Each has a right checksum; sgp4 reads nan as a number."""
    lines = [FIRST, SECOND]
    lines[line - 1] = with_checksum(lines[line - 1][:column] + text + lines[line - 1][column + len(text) :])
    with pytest.raises(ValueError, match=message):
        leo.from_tle("\n".join(lines))


def test_records_are_those_of_sgp4s_own_reader(tmp_path: Path) -> None:
    message = {**MESSAGE, "MEAN_MOTION_DDOT": 1e-5, "MEAN_MOTION_DOT": -2e-4}
    judge = Satrec()
    omm.initialize(judge, message)
    record = load_message(tmp_path, message).satellites[0].record
    for name in ("ndot", "nddot", "bstar", "ecco", "argpo", "inclo", "mo", "no_kozai", "nodeo", "jdsatepochF"):
        assert getattr(record, name) == pytest.approx(getattr(judge, name), rel=1e-14)


# Row 4: epochs.


def test_the_epochs_of_ccsds_are_read() -> None:
    epochs = [satellite.epoch for satellite in leo.load(CASES / "omm_epochs.json").satellites]
    assert epochs[:4] == [NOON] * 4
    assert abs(epochs[4] - NOON - timedelta(microseconds=123457)) <= timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01 12:00:00", (2026, 1, 1, 12)),
        ("2026-01-01T12:00:00.", (2026, 1, 1, 12)),
        ("2026-01-01T12:00:00.5Z", (2026, 1, 1, 12, 0, 0, 500000)),
        ("2024-060T00:00:00", (2024, 2, 29)),
        ("2023-060T00:00:00", (2023, 3, 1)),
        ("2024-366T23:59:59.999999Z", (2024, 12, 31, 23, 59, 59, 999999)),
        ("2026-032 06:30:15.25", (2026, 2, 1, 6, 30, 15, 250000)),
        ("2026-01-01T12:00:00.000000000000000", (2026, 1, 1, 12)),
        ("2016-12-31T23:59:60", (2017, 1, 1)),
        ("1999-12-31T23:59:59.1234567", (1999, 12, 31, 23, 59, 59, 123457)),
        ("  2026-01-01T12:00:00Z  ", (2026, 1, 1, 12)),
    ],
)
def test_an_epoch_is_the_moment_it_says(text: str, moment: tuple[int, ...], tmp_path: Path) -> None:
    expected = datetime(*moment, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]
    assert abs(load_message(tmp_path, {"EPOCH": text}).epoch - expected) <= timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text",
    [
        "2026-13-01T00:00:00",
        "2023-366T00:00:00",
        "2026-000T00:00:00",
        "2026-02-29T00:00:00",
        "2026-01-01T24:00:00",
        "2026-01-01T12:00:60",
        "2026-01-01",
        "2026-01-01T12:00:00+01:00",
        "26001.5",
        "0000-01-01T00:00:00",
        "٢٠٢٦-01-01T00:00:00",
    ],
)
def test_what_is_no_epoch_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="message 1 has a wrong value: EPOCH is "):
        load_message(tmp_path, {"EPOCH": text})
