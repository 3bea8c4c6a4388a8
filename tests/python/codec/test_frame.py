"""The bytes of frames: golden ones, damaged ones, and those that ask for too much."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orbitsplit import CorruptFrameError
from orbitsplit._backend import load_backend
from orbitsplit._codec.codecs import Codec, compress, decompress
from tests.judges import codec as judge
from tests.support.mutants import patched
from tests.support.paths import DATA

GOLDEN = json.loads((DATA / "frames" / "frames.json").read_text())
BACKENDS = ("native", "numba")


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_golden_frames_stay_readable_and_are_written_again(golden, backend):
    frame, data = bytes.fromhex(golden["frame"]), bytes.fromhex(golden["input"])
    module = load_backend(backend)
    dtype, shape, decoded = module.decode(frame, 1 << 30)
    assert judge.DTYPES[dtype] == golden["dtype"]
    assert list(shape) == golden["shape"]
    assert decoded.tobytes().hex() == golden["output"]
    codec = Codec.parse(golden["codec"])
    numbers = judge.CODECS[codec.name], codec.group or 64, codec.keep or 0.25
    assert module.encode(data, dtype, shape, *numbers) == frame


@pytest.mark.parametrize("name", BACKENDS)
def test_checksum_is_crc32c(name):
    crc32c = load_backend(name).crc32c
    assert crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    for size in [*range(20), 1535, 1536, 1537, 5000]:
        for start in (0, 1, 5):
            assert crc32c(data[start:size]) == judge.crc32c(data[start:size])


def test_every_flipped_bit_is_found(backend):
    frame = compress(np.arange(10, dtype=np.float32), "int4:8")
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFrameError):
            decompress(damaged)


def test_a_flipped_codebook_is_damage(backend):
    """It was reported as a codebook that is missing."""
    damaged = bytearray(compress(np.arange(10, dtype=np.float32)))
    damaged[16] ^= 1
    with pytest.raises(CorruptFrameError, match="frame is damaged"):
        decompress(damaged)


def test_every_truncation_is_found(backend):
    frame = compress(np.arange(10, dtype=np.float32), "topk")
    for size in range(len(frame)):
        with pytest.raises(CorruptFrameError):
            decompress(frame[:size])
    with pytest.raises(CorruptFrameError, match=f"it has {len(frame) - 48 + 1}"):
        decompress(frame + b"\0")


def test_damage_is_named(backend):
    frame = compress(np.arange(10, dtype=np.float32))
    with pytest.raises(CorruptFrameError, match=r"frame is damaged: it carries checksum \d+, its bytes give \d+"):
        decompress(frame[:-1] + bytes([frame[-1] ^ 1]))
    with pytest.raises(CorruptFrameError, match="frame does not begin with OSPF"):
        decompress(bytes(100))


def test_shapes_no_array_can_have(backend):
    frame = compress(np.ones((2, 16), np.float32), "raw")
    for axes in [(1 << 62, 2), (-1, 16), (0, 1 << 62), (1 << 32, 1 << 32)]:
        bad = patched(patched(frame, 40, "<q", axes[0]), 48, "<q", axes[1])
        with pytest.raises(CorruptFrameError, match=r"frame declares a shape of 2\^63 bytes or more"):
            decompress(bad)


def test_the_limit_is_that_of_the_caller(backend):
    frame = compress(np.ones(100, np.float32))
    assert decompress(frame, max_bytes=400).shape == (100,)
    with pytest.raises(CorruptFrameError, match="frame declares an array of 400 bytes, the limit is 399"):
        decompress(frame, max_bytes=399)


def test_frames_that_leave_topk_positions_open(backend):
    x = np.zeros((2, 3000), np.float32)
    x[:, [5, 700, 2999]] = 1
    frame = compress(x, "topk:0.001")
    gaps_at = 56 + 2 * 3 * 2
    assert frame[8] == 1
    assert frame[gaps_at:].hex() == "05" + "ffffb8" + "ff" * 9 + "03" + "05" + "ffffb8" + "ff" * 9 + "03"
    for at, value in [(gaps_at, 255), (len(frame) - 1, 4), (len(frame) - 1, 255)]:
        with pytest.raises(CorruptFrameError, match="frame does not place exactly 3 values in each row of 3000"):
            decompress(patched(frame, at, "<B", value))


def test_topk_frames_too_short_for_their_values(backend):
    frame = compress(np.ones((2, 3000), np.float32), "topk:0.001")
    short = frame[: 56 + 11]
    with pytest.raises(CorruptFrameError, match="frame has a payload of 11 bytes, its values need 12"):
        decompress(patched(short, 24, "<Q", 11))
