"""The codebook file and the frames that readers in other languages are compared with."""

from __future__ import annotations

import numpy as np
import pytest

import orbitsplit as osp
from tests.golden.make_codebook import BOOK, FRAMES, WIDTH, book


def lines() -> list[list[str]]:
    """Return the fields of each line: cut, level, rows, array, frame and decoded array."""
    return [line.split() for line in FRAMES.read_text(encoding="ascii").splitlines()]


def test_the_file_is_the_codebook_that_the_script_makes() -> None:
    assert osp.Codebook.load(BOOK).hex_id == book().hex_id == "7656129a5cb57922"


@pytest.mark.parametrize("fields", lines(), ids=lambda fields: "-".join(fields[:3]))
def test_frames_of_the_codebook(fields: list[str]) -> None:
    made = osp.Codebook.load(BOOK)
    cut, level, rows = (int(number) for number in fields[:3])
    x, frame, decoded = (bytes.fromhex(text) for text in fields[3:])
    array = np.frombuffer(x, np.float32).reshape(rows, WIDTH)
    assert bytes(osp.compress(array, codec=made[cut, level])) == frame
    assert osp.decompress(frame, made).tobytes() == decoded
