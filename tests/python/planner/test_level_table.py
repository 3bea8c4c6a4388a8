"""Tables of levels: JSON round trip, and data that is no table refused."""

from __future__ import annotations

import json
import math
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
        ({"format": "something"}, "expected format 'orbitsplit-levels' version 3, got 'something'"),
        ({"levels": [{"name": "raw"}]}, r'levels\[0\] has no key "ratio"'),
        ({"loss": [[0.0, float("nan")]]}, r"loss\[0\]\[1\] is nan"),
        ({"loss": [[0.0, -0.1]]}, r"loss\[0\]\[1\] is -0\.1, must be from 0 to 1e\+100, or infinite"),
        ({"loss": [[0.0, 1.1e100]]}, r"loss\[0\]\[1\] is 1\.1e\+100, must be from 0 to 1e\+100, or infinite"),
        ({"version": 4}, "expected format 'orbitsplit-levels' version 3, got 'orbitsplit-levels' version 4"),
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


@pytest.mark.parametrize("absent", [None, math.inf])
def test_a_level_that_a_cut_does_not_have_is_null_in_a_file(absent: float | None, tmp_path: Path) -> None:
    table = LevelTable(levels=(RAW, INT8), loss=((0.0, absent), (0.0, 1e99)))  # type: ignore[arg-type]
    assert table.loss == ((0.0, math.inf), (0.0, 1e99))
    table.save(tmp_path / "levels.json")
    assert json.loads((tmp_path / "levels.json").read_text())["loss"] == [[0.0, None], [0.0, 1e99]]
    assert LevelTable.load(tmp_path / "levels.json") == table


@pytest.mark.parametrize(("version", "absent", "present"), [(1, 1e6, 9e5), (2, 1e100, 1e99), (3, None, 1e100)])
def test_levels_that_a_cut_does_not_have_are_read_from_every_version(
    version: int, absent: float | None, present: float
) -> None:
    table = LevelTable.from_dict({**TABLE.to_dict(), "version": version, "loss": [[0.0, absent], [0.0, present]]})
    assert table.loss == ((0.0, math.inf), (0.0, present))
    assert LevelTable.from_dict(table.to_dict()) == table


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_table_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "levels.json").write_text(text)
    with pytest.raises(ValueError, match=r"levels\.json(: the orbitsplit-levels is list| is not JSON)"):
        LevelTable.load(tmp_path / "levels.json")
