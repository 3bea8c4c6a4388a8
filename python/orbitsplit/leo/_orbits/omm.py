"""Orbit mean-elements messages (CCSDS 502.0) made satellites; keys that change what the numbers mean are checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from orbitsplit._io.validation import quoted

from .epoch import parse_epoch
from .names import check_length
from .omm_formats import KINDS, messages_of
from .recognition import appearance
from .satellites import MEASURED_AGE_DAYS, Satellite, check_record, record_of_mean_elements

# What SGP4 takes its elements to be; a message that does not say is of this kind.
_MEANINGS = {
    "CENTER_NAME": ("EARTH",),
    "REF_FRAME": ("TEME", "TEMEOFDATE", "TEME OF DATE"),
    "TIME_SYSTEM": ("UTC",),
    "MEAN_ELEMENT_THEORY": ("SGP4", "SGP/SGP4"),
    "EPHEMERIS_TYPE": ("0",),
}
# Keys of other theories and frames: their numbers would be left out silently.
_FOREIGN = ("REF_FRAME_EPOCH", "BTERM", "AGOM")
_VERSION = re.compile(r"[123](\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([EeDd][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"\d{1,9}(\.0*)?", re.ASCII)
_RANGES = {
    "ECCENTRICITY": (0.0, math.nextafter(1.0, 0.0)),
    "INCLINATION": (0.0, 180.0),
    "RA_OF_ASC_NODE": (-360.0, 360.0),
    "ARG_OF_PERICENTER": (-360.0, 360.0),
    "MEAN_ANOMALY": (-360.0, 360.0),
    # 17 revolutions a day are those of an orbit at the ground.
    "MEAN_MOTION": (-math.inf, 20.0),
    "BSTAR": (-1e3, 1e3),
    "MEAN_MOTION_DOT": (-1e3, 1e3),
    "MEAN_MOTION_DDOT": (-1e3, 1e3),
}


def from_omm(
    text: str | bytes, kind: str, *, source: str = "OMM", max_age_days: float = MEASURED_AGE_DAYS
) -> tuple[Satellite, ...]:
    """Return the satellites of orbit mean-elements messages; `kind` is `"csv"`, `"json"`, `"kvn"` or `"xml"`.

    Raises:
        ValueError: The text is not of that kind, or a message lacks a key or has a wrong value; the message names it.
    """
    if kind not in KINDS:
        raise ValueError(f"OMM comes as {', '.join(KINDS)}, not as {quoted(kind)}")
    beginning = text if isinstance(text, str) else text[:4000].decode("utf-8", "replace")
    try:
        messages = messages_of(text, kind)
    except ValueError as error:
        raise ValueError(f"{source} is not OMM in {kind}: {error}; {appearance(beginning, kind.upper())}") from None
    if not messages:
        raise ValueError(f"{source} holds no messages; {appearance(beginning, kind.upper())}")
    found = []
    for k, message in enumerate(messages, 1):
        try:
            found.append(_satellite(message, f"{source}: message {k}", max_age_days))
        except KeyError as error:
            hint = f"; {appearance(beginning, kind.upper())}" if k == 1 else ""
            raise ValueError(f"{source}: message {k} lacks {error.args[0]}{hint}") from None
    return tuple(found)


def _satellite(message: Mapping[str, Any], where: str, max_age_days: float) -> Satellite:
    try:
        _check_meaning(message)
        epoch = _epoch(message)
        values = {key: _number(key, _required(message, key)) for key in _RANGES}
        catalogue_number = _catalogue_number(message)
        name = _text(message, "OBJECT_NAME") or str(catalogue_number or _required(message, "OBJECT_NAME"))
        check_length(name)
    except ValueError as error:
        raise ValueError(f"{where} has a wrong value: {error}") from None
    record = record_of_mean_elements(epoch, values, catalogue_number or 0)
    check_record(record, where)
    return Satellite(name, record, max_age_days, catalogue_number)


def _check_meaning(message: Mapping[str, Any]) -> None:
    for key, accepted in _MEANINGS.items():
        value = _text(message, key)
        if value and value.upper() not in accepted:
            raise ValueError(f"{key} is {quoted(value)}, SGP4 needs {accepted[0]}")
    for key in _FOREIGN:
        if _text(message, key):
            raise ValueError(f"{key} is {quoted(_text(message, key))}, which SGP4 does not use: it has another theory")
    version = _text(message, "CCSDS_OMM_VERS")
    if version and not _VERSION.fullmatch(version):
        raise ValueError(f"CCSDS_OMM_VERS is {quoted(version)}, known are 1, 2 and 3")


def _epoch(message: Mapping[str, Any]) -> tuple[float, float]:
    text = _required(message, "EPOCH")
    try:
        return parse_epoch(text)
    except ValueError as error:
        raise ValueError(f"EPOCH is {quoted(text)}: {error}") from None


def _catalogue_number(message: Mapping[str, Any]) -> int | None:
    text = _text(message, "NORAD_CAT_ID")
    if not text:
        return None
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"NORAD_CAT_ID is {quoted(text)}, must be an integer of at most nine digits")
    return int(text.partition(".")[0])


def _number(key: str, text: str) -> float:
    value = float(text.upper().replace("D", "E")) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} is {quoted(text)}, must be a finite number")
    low, high = _RANGES[key]
    if not low <= value <= high:
        raise ValueError(f"{key} is {quoted(text)}, must be from {low:g} to {high:g}")
    return value


def _required(message: Mapping[str, Any], key: str) -> str:
    text = _text(message, key)
    if not text:
        raise KeyError(key)
    return text


def _text(message: Mapping[str, Any], key: str) -> str:
    """Return a value as text, of which numbers of JSON are made too; empty where it is absent."""
    value = message.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{key} is {quoted(value)}, must be a number or a string")
    try:
        return str(value).strip()
    except ValueError:  # an integer of more digits than Python prints
        raise ValueError(f"{key} has too many digits") from None
