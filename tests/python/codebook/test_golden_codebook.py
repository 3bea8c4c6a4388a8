"""The codebook files and the frames that readers in other languages are compared with."""

from __future__ import annotations

import numpy as np
import pytest

import orbitsplit as osp
from tests.golden.make_codebook import FOLDER, NAMES, WIDTH, book

FILES = {name: FOLDER / f"{name}.safetensors" for name in NAMES}


def lines() -> list[list[str]]:
    """Return the fields of each line: name of the file, cut, level, rows, array, frame and decoded array."""
    texts = {name: (FOLDER / f"{name}.txt").read_text(encoding="ascii") for name in NAMES}
    return [[name, *line.split()] for name, text in texts.items() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "version", "identity"),
    [("small", 1, "7656129a5cb57922"), ("half", 2, "731c5f2a6829895d"), ("follows", 3, "8a173f579734f918")],
)
def test_the_file_is_the_codebook_that_the_script_makes(name: str, version: int, identity: str) -> None:
    loaded = osp.Codebook.load(FILES[name])
    assert loaded.hex_id == book(name).hex_id == identity
    assert loaded.to_dict()["version"] == version


@pytest.mark.parametrize("fields", lines(), ids=lambda fields: "-".join(fields[:4]))
def test_frames_of_the_codebook(fields: list[str]) -> None:
    made = osp.Codebook.load(FILES[fields[0]])
    cut, level, rows = (int(number) for number in fields[1:4])
    x, frame, decoded = (bytes.fromhex(text) for text in fields[4:])
    array = np.frombuffer(x, np.float32).reshape(rows, WIDTH)
    assert bytes(osp.compress(array, codec=made[cut, level])) == frame
    assert osp.decompress(frame, made).tobytes() == decoded
