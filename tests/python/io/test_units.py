"""Quantities with units, as in network files."""

from __future__ import annotations

import re

import pytest

from orbitsplit._io.units import format_bytes, format_seconds, parse_quantity


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("8 GB", "bytes", 8e9),
        ("8 GiB", "bytes", 8 * 2**30),
        ("655 MiB", "bytes", 655 * 2**20),
        (12, "bytes", 12),
        ("0.5 Gbit/s", "bytes_per_s", 62.5e6),
        ("10Mbit/s", "bytes_per_s", 1.25e6),
        ("48 GB/s", "bytes_per_s", 48e9),
        ("5 ms", "seconds", 0.005),
        ("1.5e2 us", "seconds", 150e-6),
        ("6 min", "seconds", 360),
        ("20 GFLOP/s", "flop_per_s", 20e9),
    ],
)
def test_parse(value: object, kind: str, expected: float) -> None:
    assert parse_quantity(value, kind, "x") == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("value", ["", "fast", "8", "8 gb", "8 Gbit", "nan GB", "1 GB/s", float("nan"), -1])
def test_nonsense_names_the_place_and_the_value(value: object) -> None:
    with pytest.raises(ValueError, match="x is "):
        parse_quantity(value, "bytes", "x")


@pytest.mark.parametrize("value", [True, None, [1], b"1 GB"])
def test_what_is_neither_a_number_nor_a_string_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=re.escape(f"x is {value!r}, expected a number with one of B, kB")):
        parse_quantity(value, "bytes", "x")


def test_format() -> None:
    assert [format_bytes(b) for b in (12, 2560, 1.31e6, 9.1e9)] == ["12 B", "2.56 kB", "1.31 MB", "9.1 GB"]
    assert [format_seconds(s) for s in (2.5, 0.0123, 45e-6)] == ["2.5 s", "12.3 ms", "45 us"]
