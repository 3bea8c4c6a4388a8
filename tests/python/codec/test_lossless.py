"""lossless_bf16: bytes as the judge builds them where streams, samples and lanes matter, and nothing is ever lost."""

from __future__ import annotations

import numpy as np
import pytest

from orbitsplit._backend import load_backend
from orbitsplit._codec.codecs import compress, decompress, frame_bytes
from orbitsplit._errors import CorruptFrameError
from tests.judges import codec as judge
from tests.judges import stream as judge_stream

NATIVE, NUMBA = load_backend("native"), load_backend("numba")
CODEC = judge.CODECS["lossless_bf16"]
BFLOAT16 = judge.DTYPES.index("bfloat16")


@pytest.fixture(autouse=True)
def _restore_isa():
    chosen = NATIVE.isa()
    yield
    NATIVE.set_isa(chosen)


def implementations():
    for name in NATIVE.isas():
        NATIVE.set_isa(name)
        yield NATIVE
    yield NUMBA


def bf16_bits(count, seed=0, spread=1.0):
    """The bits of `count` bfloat16 values, some channels much larger than others."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count, np.float32) * np.exp2(spread * rng.standard_normal(count)).astype(np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def round_trip(bits):
    """The frame, which all implementations encode alike and decode to the same bits."""
    frames = set()
    for module in implementations():
        frame = module.encode(bits, BFLOAT16, bits.shape, CODEC, 64, 0.25)
        assert module.decode(frame, 1 << 30)[2].tobytes() == bits.tobytes()
        frames.add(frame)
    assert len(frames) == 1
    return frames.pop()


# Lanes change at 256, 512 ... 8192 values, samples begin above 32768, streams end after 65536.
@pytest.mark.parametrize("count", [1, 63, 255, 256, 640, 4095, 8192, 8193, 32768, 32832, 65536, 65537, 70000, 200001])
def test_frames_are_those_of_the_judge(count):
    bits = bf16_bits(count, seed=count)
    frame = round_trip(bits)
    assert frame[48:] == judge_stream.encode_lossless(bits.tolist())
    assert judge_stream.decode_lossless(frame[48:], count) == bits.tolist()


@pytest.mark.parametrize(
    "bits",
    [
        np.arange(1 << 16, dtype=np.uint16),
        np.zeros(70000, np.uint16),
        np.full(300, 0x7FC1, np.uint16),
        np.random.default_rng(1).integers(0, 1 << 16, 140000).astype(np.uint16),
        # A sample sees nothing of what the last stream holds.
        np.concatenate((np.full(400000, 0x3F80, np.uint16), np.arange(1 << 16, dtype=np.uint16)[::-1])),
    ],
    ids=["every value", "zeros", "a NaN", "random", "surprise"],
)
def test_all_bits_come_back_and_frames_stay_small(bits):
    frame = round_trip(bits)
    assert len(frame) <= 48 + 1 + 2 * bits.size == frame_bytes(bits.shape, "bfloat16", "lossless_bf16")


def test_normal_values_take_the_entropy_of_their_exponents():
    bits = bf16_bits(1 << 20, spread=0.0)
    share = np.bincount(bits >> 7 & 0xFF, minlength=256) / bits.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    assert len(round_trip(bits)) < bits.size * (8 + 1.015 * entropy) / 8


def test_float32_that_holds_bfloat16_comes_back_exactly():
    x = (bf16_bits(5000).astype(np.uint32) << 16).view(np.float32).reshape(50, 100)
    np.testing.assert_array_equal(decompress(compress(x, "lossless_bf16")), x)


def test_decoded_float32_and_float16_are_those_of_bf16():
    x = np.random.default_rng(2).standard_normal((20, 700)).astype(np.float32)
    for values in (x, x.astype(np.float16)):
        expected = decompress(compress(values, "bf16"))
        np.testing.assert_array_equal(decompress(compress(values, "lossless_bf16")), expected)


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 6, 7, 9])
def test_streams_side_by_side_are_those_one_by_one(streams):
    """Some full streams and a short one, of every dtype: the numbers of streams that kernels take at once."""
    count = streams * 65536 + 1000 * streams
    single = (bf16_bits(count, seed=streams).astype(np.uint32) << 16).view(np.float32)
    short = (single.view(np.uint32) >> 16).astype(np.uint16)
    for dtype, x in enumerate((single, single.astype(np.float16), short)):
        frames = set()
        for module in implementations():
            frame = module.encode(x, dtype, x.shape, CODEC, 64, 0.25)
            frames.add(frame)
            decoded = module.decode(frame, 1 << 30)[2].view(x.dtype)
            # float16 has more bits than bfloat16, and float32 here has no more.
            np.testing.assert_allclose(decoded, x, rtol=2.0**-8 if x.dtype == np.float16 else 0, atol=2.0**-24)
        assert len(frames) == 1


def damaged(frame, at, new):
    """The frame with other bytes in its payload and a checksum that fits."""
    changed = bytearray(frame)
    changed[48 + at : 48 + at + len(new)] = new
    changed[36:40] = bytes(4)
    changed[36:40] = NATIVE.crc32c(bytes(changed)).to_bytes(4, "little")
    return bytes(changed)


def test_damage_that_the_checksum_does_not_see_is_refused():
    bits = bf16_bits(200000)
    frame = round_trip(bits)
    first, last = frame[49], frame[50]
    directory = 1 + 3 + last - first + 1 + bits.size
    states = directory + 4 * 4 + 1
    cases = [
        (0, b"\2", "values in form 2, this reader knows 0 and 1"),
        (0, b"\0", "bytes of stored values, they need 400001"),
        (1, bytes([last + 1]), "table of symbols that is cut off or has no symbol"),
        (3, b"\0", "frequencies do not add up to 256"),
        (directory, b"\xff\xff\xff\xff", "a stream of 4294967295 bytes where"),
        (directory, b"\0\0\0\0", "a stream of [0-9]+ bytes where"),
        (directory + 12, b"\1\0\0\0", "a stream of 1 bytes where"),
        (states - 1, b"\xff" * 9, "stream without a count of escaped symbols"),
        (states, bytes([frame[48 + states] ^ 1]), "that its symbols do not end with"),
    ]
    for module in implementations():
        for at, new, message in cases:
            with pytest.raises(CorruptFrameError, match=message):
                module.decode(damaged(frame, at, new), 1 << 30)
