"""Orbit mean-elements messages in their four encodings (CSV, JSON, KVN, XML), as keys and values."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from orbitsplit._io.validation import quoted, unique_keys

KINDS = ("csv", "json", "kvn", "xml")

_UNITS = {
    "MEAN_MOTION": "REV/DAY",
    "INCLINATION": "DEG",
    "RA_OF_ASC_NODE": "DEG",
    "ARG_OF_PERICENTER": "DEG",
    "MEAN_ANOMALY": "DEG",
    "BSTAR": "1/ER",
    "MEAN_MOTION_DOT": "REV/DAY**2",
    "MEAN_MOTION_DDOT": "REV/DAY**3",
}
_UNIT = re.compile(r"(?P<value>.*?)\s*\[(?P<unit>[^\[\]]*)\]")


def messages_of(text: str | bytes, kind: str) -> list[Mapping[str, Any]]:
    """Return the keys and values of each message; only XML may be bytes, which say their encoding themselves.

    Raises:
        ValueError: The text is not of that kind; the message has the place.
    """
    if kind == "xml":
        return list(_xml(text))
    assert isinstance(text, str)
    text = text.removeprefix("\ufeff")
    return {"csv": _csv, "json": _json, "kvn": _kvn}[kind](text)


def _csv(text: str) -> list[Mapping[str, Any]]:
    rows = csv.DictReader(StringIO(text), skipinitialspace=True)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        unique_keys([(name, None) for name in names])
        found = list(rows)
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None
    for k, row in enumerate(found, 1):
        if None in row:
            raise ValueError(f"row {k} has {len(names) + len(row[None])} values, the header names {len(names)}")
    return [{key: value.strip() for key, value in row.items() if value is not None} for row in found]


def _json(text: str) -> list[Mapping[str, Any]]:
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    messages = [data] if isinstance(data, dict) else data
    if not isinstance(messages, list):
        raise ValueError(f"it is {quoted(data)}, must be a list of objects with keys")
    for k, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise ValueError(f"message {k} is {quoted(message)}, must be an object with keys")
    return messages


def _kvn(text: str) -> list[Mapping[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content == "COMMENT" or content.startswith("COMMENT "):
            continue
        key, sign, value = (part.strip() for part in content.partition("="))
        if not sign or not key:
            raise ValueError(f"line {number} is {quoted(content)}, expected KEY = value")
        starts = key == "CCSDS_OMM_VERS" or (key == "OBJECT_NAME" and messages and key in messages[-1])
        if not messages or (starts and messages[-1]):
            messages.append({})
        if key in messages[-1]:
            raise ValueError(f"line {number}: the key {quoted(key)} appears twice in a message")
        has_unit = _UNIT.fullmatch(value) if key in _UNITS else None
        messages[-1][key] = value if has_unit is None else _in_unit(key, has_unit["value"], has_unit["unit"])
    return list(messages)


def _xml(text: str | bytes) -> Iterator[Mapping[str, Any]]:
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(quoted(str(error), 100)[1:-1]) from None
    version = None
    for element in root.iter():
        if _local(element) == "omm":
            version = element.get("version")
        if _local(element) == "segment":
            yield {**({} if version is None else {"CCSDS_OMM_VERS": version}), **_segment(element)}


def _segment(segment: ElementTree.Element) -> dict[str, Any]:
    parts = {_local(part): part for part in segment.iter()}
    values: dict[str, Any] = {}
    for name in ("metadata", "meanElements", "tleParameters"):
        if name not in parts:
            if name == "tleParameters":
                continue
            raise ValueError(f"a segment has no {name}")
        for element in parts[name]:
            key, value = _local(element), element.text or ""
            if key == "COMMENT":
                continue
            if key in values:
                raise ValueError(f"the key {quoted(key)} appears twice in a message")
            unit = element.get("units")
            values[key] = value.strip() if unit is None or key not in _UNITS else _in_unit(key, value.strip(), unit)
    return values


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _in_unit(key: str, value: str, unit: str) -> str:
    """Return the value. Raises `ValueError` for a unit in which it would mean another number."""
    if unit.strip().upper() != _UNITS[key]:
        raise ValueError(f"{key} is in {quoted(unit)}, must be in {_UNITS[key].lower()}")
    return value
