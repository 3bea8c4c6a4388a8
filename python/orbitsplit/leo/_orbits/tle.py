"""Two-line element sets (TLE) made satellites: every column checked that holds a number."""

from __future__ import annotations

import re

from orbitsplit._io.validation import check_string, quoted

from .names import check_length
from .recognition import appearance, looks_like
from .satellites import MEASURED_AGE_DAYS, Satellite, check_record, record_of_tle

# How the lines of an element set start, and no name does: number, satellite, and on line 1 its classification.
_ELEMENTS = re.compile(r"1 [ 0-9A-Z][ 0-9]{4}[UCS ] |2 [ 0-9A-Z][ 0-9]{4} ")
_POWER = re.compile(r"[ +-]?[ 0-9]*[ 0-9]([ +-][0-9])?| *")
_ANGLE = re.compile(r" *[0-9]*\.[0-9]+ *")
# First and last column, counted from 1, and what stands there.
_FIELDS = {
    "1": (
        ("epoch", 19, 32, re.compile(r"[ 0-9][0-9][ 0-9]{2}[0-9]\.[0-9]* *")),
        ("first derivative of the mean motion", 34, 43, re.compile(r" *[+-]?[ 0-9]*\.[ 0-9]*")),
        ("second derivative of the mean motion", 45, 52, _POWER),
        ("drag term", 54, 61, _POWER),
    ),
    "2": (
        ("inclination", 9, 16, _ANGLE),
        ("right ascension of the node", 18, 25, _ANGLE),
        ("eccentricity", 27, 33, re.compile(r"[ 0-9]{6}[0-9]")),
        ("argument of perigee", 35, 42, _ANGLE),
        ("mean anomaly", 44, 51, _ANGLE),
        ("mean motion", 53, 63, _ANGLE),
    ),
}
_EPHEMERIS_TYPE = 62
_LONGEST_NAME = 24


def from_tle(text: str, *, source: str = "TLE", max_age_days: float = MEASURED_AGE_DAYS) -> tuple[Satellite, ...]:
    """Return the satellites of two-line element sets, each optionally after a line with its name.

    Lines may be indented; empty lines and those that start with `#` are skipped.

    Raises:
        ValueError: A line has the wrong length, number or checksum, or lines do not belong together; the message
            names `source` and the line.
    """
    check_string("text", text)
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    has_elements = any(line[:2] in ("1 ", "2 ") for _, line in lines)
    # Short lines alone may be names, of which the loop below says more.
    if not has_elements and (not lines or looks_like(text) or any(len(line) > _LONGEST_NAME for _, line in lines)):
        raise ValueError(f"{source} holds no element sets; {appearance(text)}")
    found: list[Satellite] = []
    name, k = "", 0
    while k < len(lines):
        number, line = lines[k]
        if not _ELEMENTS.match(line):
            name, k = _name(lines, k, source), k + 1
            continue
        if k + 1 == len(lines):
            raise ValueError(f"{source}: line {number} is the last, the other line of its element set is missing")
        found.append(_satellite(lines[k], lines[k + 1], name, source, max_age_days))
        name, k = "", k + 2
    return tuple(found)


def _name(lines: list[tuple[int, str]], k: int, source: str) -> str:
    number, line = lines[k]
    name = line.removeprefix("0 ").strip()
    if k + 1 == len(lines):
        raise ValueError(f"{source}: line {number} is the name {quoted(name)}, and no elements follow it")
    place, following = lines[k + 1]
    if not following.startswith("1 "):
        raise ValueError(f"{source}: line {place} should start with '1 ', it is {quoted(following)}")
    try:
        check_length(name)
    except ValueError as error:
        raise ValueError(f"{source}: line {number}: {error}") from None
    return name


def _satellite(
    first: tuple[int, str], second: tuple[int, str], name: str, source: str, max_age_days: float
) -> Satellite:
    for expected, (place, content) in zip("12", (first, second), strict=True):
        _check_line(content, expected, f"{source}: line {place}")
    numbers = [line[2:7] for _, line in (first, second)]
    if numbers[0] != numbers[1]:
        raise ValueError(
            f"{source}: lines {first[0]} and {second[0]} belong to satellites {numbers[0].strip()} and"
            f" {numbers[1].strip()}"
        )
    try:
        record = record_of_tle(first[1], second[1])
    except ValueError as error:
        reason = quoted(str(error), 100)[1:-1]
        raise ValueError(f"{source}: lines {first[0]} and on are no element set: {reason}") from None
    check_record(record, f"{source}: line {first[0]}")
    return Satellite(name or numbers[0].strip(), record, max_age_days, int(record.satnum) or None)


def _check_line(line: str, number: str, where: str) -> None:
    if not line.startswith(f"{number} "):
        raise ValueError(f"{where} should start with '{number} ', it is {quoted(line)}")
    if len(line) != 69:
        raise ValueError(f"{where} has {len(line)} characters, a line of a two-line element set has 69: {quoted(line)}")
    total = sum(int(c) if c.isdecimal() else c == "-" for c in line[:68]) % 10
    if line[68] != str(total):
        raise ValueError(
            f"{where} ends with the checksum {line[68]}, its other characters give {total}: it was damaged or edited"
        )
    for what, start, stop, pattern in _FIELDS[number]:
        value = line[start - 1 : stop]
        if not pattern.fullmatch(value):
            raise ValueError(
                f"{where}: the {what}, in columns {start} to {stop}, is {quoted(value)}, which is no number"
            )
    if number == "1" and line[_EPHEMERIS_TYPE] not in " 0":
        raise ValueError(f"{where}: the ephemeris type, in column 63, is {quoted(line[_EPHEMERIS_TYPE])}, SGP4 needs 0")
