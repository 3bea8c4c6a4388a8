"""The bytes of frames: golden ones, damaged ones, and those that ask for too much."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import judge_codec as judge
import numpy as np
import pytest

from orbitsplit import CorruptFrameError, _compress
from orbitsplit._backend import load_backend
from orbitsplit._compress import Codec, compress, decompress

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "frames" / "frames.json").read_text())
BACKENDS = ("native", "numba")


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request):
    module = load_backend(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compress, "backend", lambda: module)
        yield module


def sealed(frame: bytes) -> bytes:
    """The frame with a checksum that is right, so that a reader gets past it."""
    if len(frame) < 40:
        return frame
    blank = frame[:36] + bytes(4) + frame[40:]
    return frame[:36] + struct.pack("<I", load_backend("native").crc32c(blank)) + frame[40:]


def patched(frame: bytes, at: int, form: str, value: int) -> bytes:
    piece = struct.pack(form, value)
    return sealed(frame[:at] + piece + frame[at + len(piece) :])


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_golden_frames_stay_readable_and_are_written_again(golden, backend):
    frame, data = bytes.fromhex(golden["frame"]), bytes.fromhex(golden["input"])
    dtype, shape, decoded = backend.decode(frame, 1 << 30)
    assert judge.DTYPES[dtype] == golden["dtype"]
    assert list(shape) == golden["shape"]
    assert decoded.tobytes().hex() == golden["output"]
    codec = Codec.parse(golden["codec"])
    numbers = judge.CODECS.index(codec.name), codec.group or 64, codec.keep or 0.25
    assert backend.encode(data, dtype, shape, *numbers) == frame


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


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk"])
def test_a_frame_that_claims_2_to_the_60_elements_is_refused_at_once(codec, backend):
    frame = compress(np.ones((2, 16), np.float32), codec)
    backend.decode(frame, 1 << 30)  # compiled by now
    huge = patched(patched(frame, 40, "<Q", 1 << 30), 48, "<Q", 1 << 30)
    start = time.perf_counter()
    with pytest.raises(CorruptFrameError, match="declares an array of 4611686018427387904 bytes, the limit is 10737"):
        decompress(huge)
    assert time.perf_counter() - start < 0.05


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


def mutants(count: int):
    """Frames of every codec with a few bytes changed, cut or added; most of them with a checksum that fits again."""
    rng = np.random.default_rng(20)
    seeds = []
    for codec in ("raw", "bf16", "int8", "int4", "topk", "topk:0.02"):
        for dtype in (np.float32, np.float16):
            for shape in ((3, 130), (2, 2, 65), (0, 4), ()):
                seeds.append(compress(rng.standard_normal(shape).astype(dtype).reshape(shape), codec))
    for _ in range(count):
        frame = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 4)):
            end = min(40 + 8 * frame[7], len(frame)) if rng.random() < 0.6 else len(frame)
            frame[rng.integers(end)] = rng.choice([0, 1, 2, 255, rng.integers(256)])
            if len(frame) < 8:
                break
        if rng.random() < 0.2:
            frame = (frame + bytes(9))[: rng.integers(len(frame) + 9)]
        yield sealed(bytes(frame)) if rng.random() < 0.9 else bytes(frame)


def test_mutated_frames_give_arrays_or_corrupt_frame_error():
    """20,000 of them, and both backends give the same array or the same message."""
    modules = [load_backend(name) for name in BACKENDS]
    arrays = 0
    for frame in mutants(20_000):
        outcomes = []
        for module in modules:
            try:
                dtype, shape, data = module.decode(frame, 1 << 20)
                assert data.nbytes <= 1 << 20
                outcomes.append((dtype, shape, data.tobytes()))
            except CorruptFrameError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], frame.hex()
        arrays += not isinstance(outcomes[0], str)
    assert 1_000 < arrays < 19_000
