"""Frames that failed once; tests/data/cases/README.md says what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from orbitsplit import CorruptFrameError, decompress

CASES = Path(__file__).parents[2] / "data" / "cases"


def test_a_frame_of_59_bytes_makes_no_array_of_1_gib(backend: str) -> None:
    frame = (CASES / "topk_59_bytes.frame").read_bytes()
    with pytest.raises(
        CorruptFrameError, match="an array of 1073741824 bytes, the limit is 17260544 for a frame of 59"
    ):
        decompress(frame)
