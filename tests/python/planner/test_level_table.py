"""Tables of levels: JSON round trip, and data that is no table refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orbitsplit import Level, LevelTable

RAW = Level(name="raw", ratio=1.0, encode_s_per_byte=0.0, decode_s_per_byte=0.0)
INT8 = Level(name="int8", ratio=3.9, encode_s_per_byte=1e-9, decode_s_per_byte=2e-9)
TABLE = LevelTable(levels=(RAW, INT8), loss=((0.0, 0.01), (0.0, 0.5)), provenance={"model": "tiny"})


def test_round_trip(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "levels.json")
    assert LevelTable.load(tmp_path / "levels.json") == TABLE
    assert LevelTable.from_dict(TABLE.to_dict()) == TABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected format 'orbitsplit-levels' version 2, got 'something'"),
        ({"levels": [{"name": "raw"}]}, r'levels\[0\] has no key "ratio"'),
        ({"loss": [[0.0, float("nan")]]}, r"loss\[0\]\[1\] is nan"),
        ({"loss": [[0.0, -0.1]]}, r"loss\[0\]\[1\] is -0\.1"),
        ({"loss": [[0.0]]}, r"loss\[0\] has 1 numbers, must be 2"),
    ],
)
def test_data_that_is_no_table_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LevelTable.from_dict({**TABLE.to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"levels": 3}, "levels is int"), ({"loss": [[0.0, "x"]]}, r"loss\[0\]\[1\] is 'x'")],
)
def test_data_of_a_wrong_type_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LevelTable.from_dict({**TABLE.to_dict(), **change})


def test_levels_that_a_cut_does_not_have_are_read_from_version_1() -> None:
    old = {**TABLE.to_dict(), "version": 1, "loss": [[0.0, 1e6], [0.0, 0.5]]}
    table = LevelTable.from_dict(old)
    assert table.loss == ((0.0, 1e100), (0.0, 0.5))
    assert LevelTable.from_dict(table.to_dict()) == table
    assert LevelTable.from_dict({**old, "version": 2}).loss == ((0.0, 1e6), (0.0, 0.5))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_table_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "levels.json").write_text(text)
    with pytest.raises(ValueError, match=r"levels\.json(: the orbitsplit-levels is list| is not JSON)"):
        LevelTable.load(tmp_path / "levels.json")
