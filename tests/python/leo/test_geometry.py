"""Lines of sight, the sun and the shadow, and rates by range, each against a slow or published judge."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from orbitsplit import leo
from orbitsplit.leo._orbits.earth import geodetic_km, sun_km, sunlit
from orbitsplit.leo._orbits.link_budget import free_space_loss_db


def test_maximal_range() -> None:
    assert leo.maximal_range_km(500) == pytest.approx(4733, abs=1)
    assert leo.maximal_range_km(500, 1200) == pytest.approx(
        (leo.maximal_range_km(500) + leo.maximal_range_km(1200)) / 2
    )
    with pytest.raises(ValueError, match="altitude of 60 km is below the atmosphere margin of 80 km"):
        leo.maximal_range_km(60)
    with pytest.raises(ValueError, match="altitude is -1 km"):
        leo.period_s(-1)


def test_line_of_sight_ends_at_the_maximal_range() -> None:
    limit = leo.maximal_range_km(500)
    for distance, is_seen in ((limit - 1, True), (limit + 1, False)):
        half = np.arcsin(distance / 2 / 6878.137)
        a, b = (6878.137 * np.array([np.cos(x), np.sin(x), 0]) for x in (-half, half))
        assert leo.range_km(a, b) == pytest.approx(distance)
        assert bool(leo.line_of_sight(a, b)) is is_seen


def test_line_of_sight_is_what_walking_along_the_beam_finds() -> None:
    r = np.random.default_rng(3)
    a, b = (r.normal(size=(400, 3)) for _ in range(2))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) * r.uniform(6600, 12000, (400, 1)) for x in (a, b))
    steps = np.linspace(0, 1, 2001)[:, None, None]
    lowest = np.linalg.norm(a + steps * (b - a), axis=-1).min(axis=0)
    clear = np.abs(lowest - 6458.137) > 1
    assert np.array_equal(leo.line_of_sight(a, b)[clear], (lowest > 6458.137)[clear])
    assert leo.line_of_sight(a, a).all()


def test_geodetic_positions_are_those_of_wgs84() -> None:
    assert geodetic_km(0, 0, 0) == pytest.approx([6378.137, 0, 0])
    assert geodetic_km(90, 77, 1) == pytest.approx([0, 0, 6356.752314 + 1])
    # Vallado, example 3-2: Mount Evans, 39.586667 N, 105.64 W, 4347.667 m; his Earth is 0.7 m smaller.
    position = geodetic_km(39.586667, -105.64, 4.347667)
    assert np.hypot(position[0], position[1]) == pytest.approx(4925.4298026, abs=1e-3)
    assert position[2] == pytest.approx(4045.4937426, abs=1e-3)


def test_delay_is_the_time_of_light() -> None:
    assert leo.delay_s(np.array(299792.458)) == pytest.approx(1.0)


def test_sun_is_that_of_the_almanac() -> None:
    # Vallado, example 5-1: 2006-04-02 0:00, (146,186,212, 28,788,976, 12,481,064) km; low precision is 0.01 deg.
    sun = sun_km(leo.Times.of(datetime(2006, 4, 2, tzinfo=timezone.utc)))[0]
    expected = np.array([146186212.0, 28788976.0, 12481064.0])
    assert np.linalg.norm(sun - expected) / np.linalg.norm(expected) < np.radians(0.01)


def test_shadow_is_what_walking_towards_the_sun_finds() -> None:
    r = np.random.default_rng(4)
    sun = np.array([[1.4e8, 3e7, 2e7]])
    positions = r.normal(size=(300, 1, 3))
    positions *= r.uniform(6600, 9000, (300, 1, 1)) / np.linalg.norm(positions, axis=-1, keepdims=True)
    along = np.linspace(0, 20000, 8001)[:, None, None, None]
    towards = (sun - positions) / np.linalg.norm(sun - positions, axis=-1, keepdims=True)
    lowest = np.linalg.norm(positions + along * towards, axis=-1).min(axis=0)
    clear = np.abs(lowest - 6378.137) > 2
    assert 0.2 < (lowest > 6378.137).mean() < 0.95
    assert np.array_equal(sunlit(positions, sun)[clear], (lowest > 6378.137)[clear])


def test_eclipse_lasts_as_long_as_the_geometry_says() -> None:
    """With the sun in the orbit's plane the shadow is 2 asin(R / r) wide; an orbit that faces the sun has none."""
    equinox = datetime(2026, 3, 20, 14, 46, tzinfo=timezone.utc)
    times = leo.Times.span(equinox, equinox + timedelta(seconds=10 * leo.period_s(500)), 5)
    through = leo.single("a", altitude_km=500, inclination_deg=0, epoch=equinox)
    dark = 1 - through.sunlit(times).mean()
    assert dark == pytest.approx(2 * np.arcsin(6378.137 / 6878.137) / (2 * np.pi), abs=0.003)
    facing = leo.single("b", altitude_km=1500, inclination_deg=90, raan_deg=90, epoch=equinox)
    assert facing.sunlit(times).all()


def test_fixed_rate_takes_units() -> None:
    assert leo.FixedRate("0.5 Gbit/s").bytes_per_s(np.array([1.0, 5000.0])).tolist() == [62.5e6, 62.5e6]
    assert leo.FixedRate(3.0) == leo.FixedRate("24 bit/s")
    for rate in ("fast", 0, -1.0):
        with pytest.raises(ValueError, match="the rate of a link is"):
            leo.FixedRate(rate)


def test_ka_band_budget_by_hand() -> None:
    """1,000 km at 20 GHz: 92.45 + 20 log10(20) + 20 log10(1000) = 178.47 dB."""
    assert free_space_loss_db(np.array(1000.0), 20e9) == pytest.approx(178.47, abs=0.01)
    # 30 + 15.9 - 178.47 - 1 - 3 + 228.6 - 86.02 = 6.01 dB, a factor of 3.99: 400 MHz * log2(4.99) = 928 Mbit/s.
    assert leo.KaBand().bytes_per_s(np.array(1000.0)) * 8 == pytest.approx(928e6, rel=0.01)
    assert leo.KaBand().bytes_per_s(np.array(1.0)) * 8 == pytest.approx(5.9 * 400e6)


def test_optical_budget_by_hand() -> None:
    """2,000 km: telescopes of (pi 0.07 / 1550e-9)^2 = 103.04 dB, 0.97 dB of optics and 0.09 dB of pointing each, and
    20 log10(4 pi 2e6 / 1550e-9) = 264.20 dB of distance: 17.5 + 2 * (103.04 - 0.97 - 0.09) - 264.20 = -42.74 dBm."""
    optical = leo.Optical()
    assert optical.received_dbm(np.array(2000.0)) == pytest.approx(-42.74, abs=0.05)
    # 10.24 dB under the sensitivity with the margin, a factor of 0.0946: 10 GHz * log2(1.0946) = 1.304 Gbit/s.
    assert optical.bytes_per_s(np.array(2000.0)) * 8 == pytest.approx(1.304e9, rel=0.02)
    assert optical.bytes_per_s(np.array(50.0)) * 8 == pytest.approx(10e9)


@pytest.mark.parametrize("budget", [leo.KaBand(), leo.Optical()])
def test_further_is_never_faster(budget: leo.LinkRate) -> None:
    rates = budget.bytes_per_s(np.linspace(1, 6000, 500))
    assert (np.diff(rates) <= 0).all()
    assert rates[-1] > 0
    assert rates[0] > rates[-1]


def test_budgets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth_hz of a link budget is 0"):
        leo.KaBand(bandwidth_hz=0)
    with pytest.raises(TypeError, match="frequency_hz of a link budget is '20e9', must be a number"):
        leo.KaBand(frequency_hz="20e9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin_db of a link budget is nan"):
        leo.KaBand(margin_db=float("nan"))
    with pytest.raises(ValueError, match=r"optics_efficiency is 1.5, must be at most 1"):
        leo.Optical(optics_efficiency=1.5)


@pytest.mark.parametrize("rate", [leo.FixedRate(5.0), leo.KaBand(), leo.Optical()])
@pytest.mark.parametrize("km", [0.0, -1.0, float("nan")])
def test_a_link_has_a_range(rate: leo.LinkRate, km: float) -> None:
    for ranges in (km, [1000.0, km]):
        with pytest.raises(ValueError, match=rf"the range of a link is {km:g} km, must be > 0"):
            rate.bytes_per_s(np.array(ranges))
    assert rate.bytes_per_s(np.array([])).shape == (0,)
