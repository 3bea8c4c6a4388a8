"""Instants in UTC as Julian dates in two parts: precise to a microsecond, where one float is precise to fifty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitsplit._io.validation import quoted

from .validation import check_moment, check_positive

DAY_S = 86400.0
J2000 = 2451545.0
_ORDINAL_TO_JULIAN = 1721424.5
# More than a year at one-second steps: an argument in the wrong unit.
_MAX_INSTANTS = 40_000_000


@dataclass(frozen=True, eq=False)
class Times:
    """Instants [T] in UTC: Julian date = `day` (of a midnight) + `fraction`. No leap seconds, as in `datetime`.

    Example:
        >>> start = datetime(2026, 1, 1, tzinfo=timezone.utc)
        >>> len(Times.span(start, start + timedelta(minutes=1), step_s=20))
        4
    """

    day: npt.NDArray[np.float64]
    fraction: npt.NDArray[np.float64]

    @classmethod
    def of(cls, times: TimesLike) -> Times:
        """Return the instants of a datetime with a time zone, a Julian date (UTC), or a sequence of either.

        Raises:
            ValueError: A datetime has no time zone, a Julian date is not between 1957 and 3000, or the
                sequence is empty.
            TypeError: A time is neither a datetime nor a number.
        """
        if isinstance(times, Times):
            return times
        if isinstance(times, datetime):
            return cls.of([times])
        values: list[Any] = np.atleast_1d(np.asarray(times, dtype=object)).tolist()
        if not values:
            raise ValueError("no times were given, at least one is needed")
        parts = [_of_datetime(value) if isinstance(value, datetime) else _of_julian(value) for value in values]
        return cls(np.array([part[0] for part in parts]), np.array([part[1] for part in parts]))

    @classmethod
    def span(cls, start: datetime | float, stop: datetime | float, step_s: float) -> Times:
        """Return the instants start, start + step_s, ... up to and, where a step falls on it, including stop.

        Raises:
            ValueError: The step is not positive, stop is before start, or there would be over 40 million instants.
        """
        first, last = cls.of(start), cls.of(stop)
        length_s = last.seconds_since(first)[0]
        check_positive("step_s", step_s)
        if length_s < 0:
            raise ValueError(f"the span stops {-length_s:g} s before it starts")
        if length_s / step_s > _MAX_INSTANTS:
            raise ValueError(
                f"{length_s:g} s in steps of {step_s:g} s are more than {_MAX_INSTANTS:,} instants: use a longer step"
            )
        # Datetimes have microseconds: a step that ends half of one before `stop` is meant to reach it.
        count = math.floor((length_s + 1e-6) / step_s) + 1
        return first.shifted(step_s * np.arange(count))

    def __len__(self) -> int:
        return len(self.day)

    def __getitem__(self, item: slice) -> Times:
        return Times(self.day[item], self.fraction[item])

    def shifted(self, seconds: float | npt.NDArray[np.float64]) -> Times:
        """Return the instants moved by `seconds`, broadcast."""
        fraction = self.fraction + np.asarray(seconds) / DAY_S
        whole = np.floor(fraction)
        return Times(self.day + whole, fraction - whole)

    def seconds_since(self, origin: Times) -> npt.NDArray[np.float64]:
        """Return seconds [T] since the first instant of `origin`."""
        seconds: npt.NDArray[np.float64] = ((self.day - origin.day[0]) + (self.fraction - origin.fraction[0])) * DAY_S
        return seconds

    def julian(self) -> npt.NDArray[np.float64]:
        """Return Julian dates [T] as single floats, precise to 50 us."""
        julian: npt.NDArray[np.float64] = self.day + self.fraction
        return julian

    def datetimes(self) -> list[datetime]:
        """Return the instants as datetimes in UTC, to the microsecond."""
        return [
            _datetime(day, fraction) for day, fraction in zip(self.day.tolist(), self.fraction.tolist(), strict=True)
        ]

    def sidereal_rad(self) -> npt.NDArray[np.float64]:
        """Return Greenwich mean sidereal time [T] in radians: the IAU 1982 formula, with UTC in place of UT1.

        UT1 and UTC differ by less than 0.9 s, in which a point on the equator moves 0.42 km.
        """
        centuries = ((self.day - J2000) + self.fraction) / 36525.0
        seconds = 67310.54841 + centuries * (
            876600.0 * 3600.0 + 8640184.812866 + centuries * (0.093104 - 6.2e-6 * centuries)
        )
        angle: npt.NDArray[np.float64] = np.remainder(seconds, DAY_S) * (2 * math.pi / DAY_S)
        return angle


TimesLike: TypeAlias = "Times | datetime | float | Sequence[datetime] | Sequence[float] | npt.NDArray[np.float64]"


def _of_datetime(value: datetime) -> tuple[float, float]:
    check_moment("the time", value)
    utc = value.astimezone(timezone.utc)
    midnight = utc.replace(hour=0, minute=0, second=0, microsecond=0)
    return utc.toordinal() + _ORDINAL_TO_JULIAN, (utc - midnight).total_seconds() / DAY_S


def _of_julian(value: Any) -> tuple[float, float]:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"the time is {quoted(value)}, must be a datetime or a Julian date")
    at = float(value)
    # Sputnik flew in 1957, which is also the first year a two-line element set can name.
    if not (math.isfinite(at) and 2435839.5 <= at <= 2816787.5):
        raise ValueError(f"the Julian date is {value}, must be from 2435839.5 (1957) to 2816787.5 (3000)")
    day = math.floor(at - 0.5) + 0.5
    return day, at - day


def _datetime(day: float, fraction: float) -> datetime:
    midnight = datetime.fromordinal(round(day - _ORDINAL_TO_JULIAN)).replace(tzinfo=timezone.utc)
    return midnight + timedelta(microseconds=round(fraction * DAY_S * 1e6))
