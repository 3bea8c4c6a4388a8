"""The tables of a scenario file: every number has an origin, every key is known, every error names the place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orbitsplit._io.toml import check_table_keys, format_value, quantity_of, tables_of
from orbitsplit._io.validation import quoted

from .provenance import ORIGINS, Sourced

_ALLOWED = ("value", "origin", "source")


@dataclass(frozen=True)
class Section:
    """One table of a scenario; `where` starts its errors, `numbers` collects what was read from it."""

    where: str
    table: Mapping[str, Any]
    numbers: dict[str, Sourced] = field(default_factory=dict)

    def check_keys(self, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        """Raise ValueError for a key that is missing or unknown."""
        check_table_keys(self.table, required=required, optional=optional, where=self.where)

    def section(self, key: str) -> Section:
        """Return the table under a key."""
        table = self.table[key]
        if not isinstance(table, dict):
            raise ValueError(f"{self.where}: {key} must be a table, written [{key}]")
        return Section(f"{self.where}: {key}", table, self.numbers)

    def sections(self, key: str) -> list[Section]:
        """Return the tables under a key, [] where it is absent."""
        tables = tables_of(self.table, key, self.where)
        return [Section(f"{self.where}: {key}[{k}]", table, self.numbers) for k, table in enumerate(tables)]

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.table[key]
        if not isinstance(value, str) or not value:
            raise ValueError(f"{self.where}.{key} is {quoted(value)}, must be a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return one or more strings."""
        values = self.table[key]
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
            raise ValueError(f"{self.where}.{key} is {quoted(values)}, must be one or more strings in brackets")
        return tuple(values)

    def number(self, key: str, default: float | None = None, *, kind: str | None = None) -> float:
        """Return a number in SI units; `kind` is a key of the units it may have."""
        if key not in self.table and default is not None:
            return default
        value = self._tagged(key)
        if kind is not None:
            number = quantity_of(value, kind, f"{self.where}.{key}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{self.where}.{key} is {quoted(value)}, must be a finite number")
        else:
            number = float(value)
        self._keep(key, number)
        return number

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        number = self.number(key, default)
        if number != int(number):
            raise ValueError(f"{self.where}.{key} is {number:g}, must be a whole number")
        return int(number)

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """Return the value if it is one of `choices`, words allowed in place of a number; else None."""
        entry = self.table.get(key)
        value = entry.get("value") if isinstance(entry, dict) else None
        if value not in choices:
            return None
        self._tagged(key)
        return str(value)

    def _tagged(self, key: str) -> object:
        """Return the value of a number after checking that its origin is stated."""
        entry, where = self.table[key], f"{self.where}.{key}"
        form = f'{{ value = ..., origin = "{"|".join(ORIGINS)}" }}'
        if not isinstance(entry, dict):
            is_value = isinstance(entry, (str, int, float)) and not isinstance(entry, bool)
            shown = format_value(entry) if is_value else "..."
            raise ValueError(
                f"{where} is {quoted(entry)} without an origin; write {key} = {form.replace('...', shown, 1)}"
            )
        for name in entry:
            if name not in _ALLOWED:
                raise ValueError(f"{where} has the unknown key {quoted(name)}; known: {', '.join(_ALLOWED)}")
        for name in ("value", "origin"):
            if name not in entry:
                raise ValueError(f"{where} has no {name}; write {key} = {form}")
        if entry["origin"] not in ORIGINS:
            raise ValueError(f"{where}: the origin is {quoted(entry['origin'])}, must be one of {', '.join(ORIGINS)}")
        if not isinstance(entry.get("source", ""), str):
            raise ValueError(f"{where}: the source is {quoted(entry['source'])}, must be a string")
        return entry["value"]

    def _keep(self, key: str, number: float) -> None:
        entry = self.table[key]
        place = self.where.split(": ", 1)[-1]
        self.numbers[f"{place}.{key}"] = Sourced(number, entry["origin"], entry.get("source", ""))
