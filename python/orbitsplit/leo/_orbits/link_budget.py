"""Rates of links: fixed, or by range from a link budget (free-space loss, stated losses and margin, Shannon)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from orbitsplit._io.units import parse_quantity
from orbitsplit._io.validation import check_number

from .earth import LIGHT_KM_PER_S, Array

_BOLTZMANN_DBW = -228.6


class LinkRate(Protocol):
    """A rate by range: any object with this method."""

    def bytes_per_s(self, range_km: Array) -> Array:
        """Return bytes per second at ranges [...] in km, all > 0; 0 is no link."""
        ...


@dataclass(frozen=True, slots=True)
class FixedRate:
    """The same rate at any range: `rate` is in bytes per second, or a string with a unit.

    Example:
        >>> float(FixedRate("0.5 Gbit/s").bytes_per_s(1000.0))
        62500000.0

    Raises:
        TypeError: Neither a number nor a string.
        ValueError: Not a rate, or 0.
    """

    rate: float | str

    def __post_init__(self) -> None:
        rate = parse_quantity(self.rate, "bytes_per_s", "the rate of a link")
        if rate == 0:
            raise ValueError("the rate of a link is 0, must be > 0; None is no link")
        object.__setattr__(self, "rate", rate)

    def bytes_per_s(self, range_km: Array) -> Array:
        """Return the rate for each range. Raises ValueError for a range that is not > 0."""
        _check_range(range_km)
        return np.full(np.shape(range_km), float(self.rate))


@dataclass(frozen=True, slots=True)
class KaBand:
    """A Ka-band radio link: bandwidth * log2(1 + SNR), at most `bandwidth_hz * most_bits_per_s_per_hz`.

    Each default and its source:

    - `frequency_hz`, `bandwidth_hz`: downlink at 20 GHz, 400 MHz [3GPP TR 38.821, table 6.1.3.2-1, Ka band].
    - `eirp_dbw`: 4 dBW/MHz of a satellite at 600 km [TR 38.821, table 6.1.1.1-1, set 1, Ka band], times 400 MHz.
    - `gain_over_temperature_db`: a dish of 60 cm: 39.7 dBi, noise figure 1.2 dB, antenna at 150 K [TR 38.821, table
      6.1.1.1-3, VSAT], which makes 15.9 dB/K.
    - `losses_db`: 1 for air and scintillation above 10 deg in clear sky [assumed]; rain costs more.
    - `margin_db`: 3, for losses outside of Shannon's formula: codes, filters, pointing [assumed].
    - `most_bits_per_s_per_hz`: 5.9, 256APSK 3/4 of DVB-S2X [ETSI EN 302 307-2].
    """

    frequency_hz: float = 20e9
    bandwidth_hz: float = 400e6
    eirp_dbw: float = 30.0
    gain_over_temperature_db: float = 15.9
    losses_db: float = 1.0
    margin_db: float = 3.0
    most_bits_per_s_per_hz: float = 5.9

    def __post_init__(self) -> None:
        _check(self, positive=("frequency_hz", "bandwidth_hz", "most_bits_per_s_per_hz"))

    def snr_db(self, range_km: Array) -> Array:
        """Return the ratio of signal to noise at ranges [...], with losses and margin subtracted."""
        return (
            self.eirp_dbw
            + self.gain_over_temperature_db
            - free_space_loss_db(range_km, self.frequency_hz)
            - self.losses_db
            - self.margin_db
            - _BOLTZMANN_DBW
            - 10 * math.log10(self.bandwidth_hz)
        )

    def bytes_per_s(self, range_km: Array) -> Array:
        """Return bytes per second at ranges [...] in km. Raises ValueError for a range that is not > 0."""
        return _shannon(self.snr_db(range_km), self.bandwidth_hz, self.most_bits_per_s_per_hz)


@dataclass(frozen=True, slots=True)
class Optical:
    """A laser link between two equal telescopes: bandwidth * log2(1 + power / sensitivity), at most 1 bit/s/Hz.

    The sensitivity is the power at which the receiver reaches its full rate, so that below it the rate falls as
    Shannon's formula does, above it the modem is the limit. Each default and its source:

    - `sensitivity_dbm`, `bandwidth_hz`: -35.5 dBm for 10 Gbit/s on-off keying at an error rate of 1e-12;
      `wavelength_m`: 1550 nm;
      `optics_efficiency`: 0.8 of each telescope; `pointing_error_rad`: 1 urad of each; `power_dbm`: 17.5
      [Liang, Chaudhry, Erdogan, Yanikomeroglu, WoWMoM 2022, arXiv 2204.13177, as MathWorks' satellite example "Optical
      Satellite Communication Link Budget Analysis" uses it].
    - `aperture_m`: 0.07 [the same example].
    - `margin_db`: 3 [assumed].
    """

    wavelength_m: float = 1550e-9
    bandwidth_hz: float = 10e9
    power_dbm: float = 17.5
    aperture_m: float = 0.07
    optics_efficiency: float = 0.8
    pointing_error_rad: float = 1e-6
    sensitivity_dbm: float = -35.5
    margin_db: float = 3.0

    def __post_init__(self) -> None:
        _check(self, positive=("wavelength_m", "bandwidth_hz", "aperture_m", "optics_efficiency"))
        if self.optics_efficiency > 1 or self.pointing_error_rad < 0:
            raise ValueError(
                f"optics_efficiency is {self.optics_efficiency}, must be at most 1;"
                f" pointing_error_rad is {self.pointing_error_rad}, must be at least 0"
            )

    def received_dbm(self, range_km: Array) -> Array:
        """Return the received power in dBm at ranges [...], before the margin."""
        gain = (math.pi * self.aperture_m / self.wavelength_m) ** 2
        pointing_db = 10 * math.log10(math.e) * gain * self.pointing_error_rad**2
        telescope_db = 10 * math.log10(gain * self.optics_efficiency) - pointing_db
        frequency_hz = LIGHT_KM_PER_S * 1e3 / self.wavelength_m
        return self.power_dbm + 2 * telescope_db - free_space_loss_db(range_km, frequency_hz)

    def bytes_per_s(self, range_km: Array) -> Array:
        """Return bytes per second at ranges [...] in km. Raises ValueError for a range that is not > 0."""
        return _shannon(self.received_dbm(range_km) - self.margin_db - self.sensitivity_dbm, self.bandwidth_hz, 1.0)


def free_space_loss_db(range_km: Array, frequency_hz: float) -> Array:
    """Return 20 log10(4 pi range / wavelength). Raises ValueError for a range that is not > 0."""
    _check_range(range_km)
    wavelength_km = LIGHT_KM_PER_S / frequency_hz
    loss: Array = 20 * np.log10(4 * math.pi * np.asarray(range_km, dtype=np.float64) / wavelength_km)
    return loss


def _check_range(range_km: Array) -> None:
    ranges = np.asarray(range_km, dtype=np.float64)
    is_wrong = ~(ranges > 0)  # which includes NaN
    if is_wrong.any():
        raise ValueError(f"the range of a link is {float(ranges[is_wrong].flat[0]):g} km, must be > 0")


def _shannon(snr_db: Array, bandwidth_hz: float, most_bits_per_s_per_hz: float) -> Array:
    bits = np.minimum(np.log2(1 + 10 ** (snr_db / 10)), most_bits_per_s_per_hz)
    rate: Array = bandwidth_hz * bits / 8
    return rate


def _check(budget: KaBand | Optical, positive: tuple[str, ...]) -> None:
    for entry in fields(budget):
        value = getattr(budget, entry.name)
        check_number(f"{entry.name} of a link budget", value)
        if not math.isfinite(value):
            raise ValueError(f"{entry.name} of a link budget is {value}, must be finite")
        if entry.name in positive and value <= 0:
            raise ValueError(f"{entry.name} of a link budget is {value}, must be > 0")
