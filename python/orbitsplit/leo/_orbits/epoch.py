"""Epochs of orbit mean-elements messages: the two ASCII time codes of CCSDS 301.0, as CCSDS 502.0 allows them."""

from __future__ import annotations

import re
from datetime import date

_ORDINAL_TO_JULIAN = 1721424.5
# YYYY-MM-DD or YYYY-DDD, `T` (files also have a space), a fraction of any length or none, `Z` or none.
_EPOCH = re.compile(
    r"(?P<year>\d{4})-(?:(?P<month>\d\d)-(?P<day>\d\d)|(?P<day_of_year>\d{3}))"
    r"[T ](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?P<fraction>\.\d*)?Z?",
    re.ASCII,
)


def parse_epoch(text: str) -> tuple[float, float]:
    """Return an epoch as the Julian date of its midnight and the seconds since then; a leap second is the next day's 0.

    Raises:
        ValueError: It is no such time code, or there is no such day or time of day.
    """
    found = _EPOCH.fullmatch(text.strip())
    if found is None:
        raise ValueError("expected one like 2026-01-01T12:00:00.123 or 2026-001T12:00:00.123, with or without Z")
    ordinal = _ordinal(found)
    hour, minute, second = (int(found[part]) for part in ("hour", "minute", "second"))
    is_leap = (hour, minute, second) == (23, 59, 60)
    if hour > 23 or minute > 59 or (second > 59 and not is_leap):
        raise ValueError("there is no such time of day")
    fraction = float(f"0{found['fraction']}0") if found["fraction"] else 0.0
    return ordinal + _ORDINAL_TO_JULIAN, hour * 3600 + minute * 60 + second + fraction


def _ordinal(found: re.Match[str]) -> int:
    year = int(found["year"])
    try:
        first = date(year, 1, 1)
        if found["day_of_year"] is None:
            return date(year, int(found["month"]), int(found["day"])).toordinal()
        ordinal = first.toordinal() + int(found["day_of_year"]) - 1
        if date.fromordinal(ordinal).year != year:
            raise ValueError
    except ValueError:
        raise ValueError("there is no such day") from None
    return ordinal
