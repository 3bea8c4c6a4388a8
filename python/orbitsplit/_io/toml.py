"""TOML files: parsed, their tables checked, values written; every error names the place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from .units import parse_quantity
from .validation import quoted


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the tables of TOML text.

    Raises:
        ValueError: It is not TOML; the message names `source` and the line.
        ImportError: On Python 3.10, tomli is not installed.
    """
    tomllib = _tomllib()
    try:
        data: dict[str, Any] = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source} is not TOML: {error}") from None
    return data


def tables_of(data: Mapping[str, Any], key: str, source: str) -> Sequence[Mapping[str, Any]]:
    """Return the array of tables under a key, empty where it is absent. Raises `ValueError` for anything else."""
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(f"{source}: {key} must be an array of tables, written [[{key}]]")
    return value


def quantity_of(value: object, kind: str, where: str) -> float:
    """Return a value of a file as `parse_quantity` does. Raises `ValueError` for a wrong type, too."""
    try:
        return parse_quantity(value, kind, where)
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_table_keys(table: Mapping[str, Any], *, required: Sequence[str], optional: Sequence[str], where: str) -> None:
    """Raise `ValueError` for a key that is missing or unknown."""
    # Both in one message, since it may be the missing one that is misspelt.
    lacks = [f"lacks {quoted(key)}" for key in required if key not in table][:1]
    known = (*required, *optional)
    unknown = [f"has the unknown key {quoted(key)}; known: {', '.join(known)}" for key in table if key not in known][:1]
    if lacks or unknown:
        raise ValueError(f"{where} {' and '.join(lacks + unknown)}")


def format_value(value: Any) -> str:
    """Return a string, boolean, number or list of them as TOML text; `parse_toml` reads back an equal value."""
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, str):
        # TOML's basic strings have all escapes of JSON's, and in them DEL must be escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    # NumPy's numbers, as links of constellations may have, are shown with their type by repr.
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def _tomllib() -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli
        except ModuleNotFoundError:
            raise ImportError('reading TOML on Python 3.10 needs tomli: pip install "orbitsplit[cli]"') from None
        return tomli
    return tomllib
