"""What the codecs do to numbers: bytes as the judge builds them, errors within the documented bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from orbitsplit._backend import load_backend
from orbitsplit._codec.codecs import Codec, compress, decompress, frame_bytes
from tests.judges import codec as judge

NATIVE = load_backend("native")
NUMBA = load_backend("numba")
CODECS = ("raw", "bf16", "int8", "int4", "topk", "topk:0.02", "int8:8", "int4:128", "topk:1", "lossless_bf16")
LOSSY = tuple(codec for codec in CODECS if codec not in ("raw", "bf16", "lossless_bf16"))
FLOAT_MAX = float(np.finfo(np.float32).max)


def bits_of(values, dtype):
    """The elements of an array as unsigned integers, float32 values first rounded to the dtype."""
    values = np.asarray(values, np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(np.float16).view(np.uint16)
    return values.view(np.uint32) if dtype == "float32" else (values.view(np.uint32) >> 16).astype(np.uint16)


def arguments(codec):
    parsed = Codec.parse(codec)
    return judge.CODECS[parsed.name], parsed.group or 64, parsed.keep or 0.25


def every_backend():
    """The Numba backend, then the native one on each instruction set."""
    yield NUMBA
    chosen = NATIVE.isa()
    try:
        for name in NATIVE.isas():
            NATIVE.set_isa(name)
            yield NATIVE
    finally:
        NATIVE.set_isa(chosen)


def encode_everywhere(bits, dtype, codec):
    """The frame, or the message of the refusal, which all backends must give."""
    outcomes = set()
    for backend in every_backend():
        try:
            outcomes.add(backend.encode(bits, judge.DTYPES.index(dtype), bits.shape, *arguments(codec)))
        except ValueError as error:
            outcomes.add(str(error))
    assert len(outcomes) == 1
    return outcomes.pop()


def decode_everywhere(frame):
    """Dtype, shape and the bytes of the array, which all backends must give."""
    decoded = {
        (dtype, shape, data.tobytes()) for dtype, shape, data in (b.decode(frame, 1 << 30) for b in every_backend())
    }
    assert len(decoded) == 1
    return decoded.pop()


def adversarial_values():
    """Inputs of many lengths around the group sizes, with every kind of finite float32 in them."""
    rng = np.random.default_rng(5)
    tiny = np.float32(2.0**-149)
    for length in (0, 1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 600):
        yield np.zeros(length)
        yield np.full(length, -0.0)
        yield rng.standard_normal(length)
        yield rng.standard_normal(length) * 1e-38
        yield rng.integers(-20, 20, length) * tiny
        yield rng.integers(-3, 4, length)
        yield np.where(rng.random(length) < 0.1, FLOAT_MAX, rng.standard_normal(length))
        yield rng.choice([FLOAT_MAX, -FLOAT_MAX, tiny, 0.0, 1.0, 3.3961775e38, 2.0**-126], length)
        yield np.ldexp(rng.standard_normal(length), rng.integers(-149, 120, length))


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_frames_are_those_of_the_judge(codec, dtype):
    parsed = Codec.parse(codec)
    for values in adversarial_values():
        if dtype == "float16":
            values = np.clip(values, -65504, 65504)
        bits = bits_of(values, dtype)
        expected = judge.encode(bits, dtype, parsed.name, group=parsed.group or 64, keep=parsed.keep or 0.25)
        assert encode_everywhere(bits, dtype, codec) == expected


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_backends_agree_on_any_bits(codec, dtype):
    """Frames, refusals and decoded bytes, with NaN and infinity at random places."""
    rng = np.random.default_rng(9)
    width = np.uint32 if dtype == "float32" else np.uint16
    frames = 0
    for shape in [(), (1,), (65,), (3, 130), (2, 3, 33), (0,), (4, 0), (2, 640)] * 8:
        bits = rng.integers(0, 1 << 32, shape, np.uint32) >> (32 - 8 * width().itemsize)
        if rng.random() < 0.7:  # every exponent but the highest: finite
            bits &= ~np.uint32({"float32": 0x00800000, "float16": 0x0400, "bfloat16": 0x0080}[dtype])
        frame = encode_everywhere(np.ascontiguousarray(bits.astype(width)).reshape(shape), dtype, codec)
        if isinstance(frame, str):
            assert frame.startswith("element ")
            continue
        frames += 1
        assert decode_everywhere(frame)[:2] == (judge.DTYPES.index(dtype), shape)
    assert frames > 20


finite_rows = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=70),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def scales_of(frame, rows, length, group):
    groups = -(-length // group)
    bits = np.frombuffer(frame, "<u2", rows * groups, 40 + 8 * frame[7]).astype(np.uint32) << 16
    return np.repeat(bits.view(np.float32).reshape(rows, groups), group, axis=1)[:, :length].astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(x=finite_rows, codec=st.sampled_from(["int8", "int4", "int8:8", "int4:16"]))
@example(x=np.full((1, 3), FLOAT_MAX, np.float32), codec="int8")
@example(x=np.full((2, 9), -FLOAT_MAX, np.float32), codec="int4:16")
@example(x=np.full((1, 70), 1e-45, np.float32), codec="int8")
def test_group_error_is_within_half_a_scale(x, codec, backend):
    parsed = Codec.parse(codec)
    frame = compress(x, codec)
    error = np.abs(x.astype(np.float64) - decompress(frame)).reshape(-1, x.shape[-1])
    scale = scales_of(frame, *error.shape, parsed.group)
    assert np.all(error <= scale * (0.5 + 2.0**-15))
    # The scale itself: the largest magnitude over 127 (7), rounded up to a bfloat16.
    top = 127 if parsed.name == "int8" else 7
    padded = np.zeros((error.shape[0], -(-error.shape[1] // parsed.group) * parsed.group))
    padded[:, : error.shape[1]] = np.abs(x.reshape(error.shape))
    largest = np.repeat(padded.reshape(error.shape[0], -1, parsed.group).max(axis=2), parsed.group, axis=1)
    bound = np.maximum(largest[:, : error.shape[1]] / top * (1 + 2.0**-7), 2.0**-126)
    assert np.all(scale <= bound)


@settings(max_examples=60, deadline=None)
@given(x=finite_rows)
def test_bf16_error_is_within_half_a_unit(x, backend):
    x = np.clip(x, -3.38e38, 3.38e38)
    error = np.abs(x.astype(np.float64) - decompress(compress(x, "bf16")))
    assert np.all(error <= 2.0**-8 * np.abs(x.astype(np.float64)) + 2.0**-134)


@settings(max_examples=60, deadline=None)
@given(x=finite_rows, keep=st.sampled_from([0.01, 0.25, 0.5, 1.0]))
def test_topk_keeps_the_largest(x, keep, backend):
    y = decompress(compress(x, Codec("topk", keep=keep))).reshape(-1, x.shape[-1])
    kept = max(1, round(keep * x.shape[-1]))
    for row, decoded in zip(x.reshape(y.shape), y, strict=True):
        chosen = np.lexsort((np.arange(len(row)), -np.abs(row)))[:kept]
        expected = np.zeros_like(row)
        expected[chosen] = np.clip(row[chosen], -3.3895314e38, 3.3895314e38)
        error = np.abs(expected.astype(np.float64) - decoded)
        assert np.all(error <= 2.0**-8 * np.abs(expected.astype(np.float64)) + 2.0**-134)


@pytest.mark.parametrize("codec", ["int8", "int4", "bf16", "topk:1"])
def test_every_float16_stays_finite_and_near(codec, backend):
    """65504 rounds up to 65536 in bfloat16, which float16 does not have: the decoder must not make it infinite."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = np.sort(halves[np.isfinite(halves)])[: 63 * 1000].reshape(1000, 63)
    y = decompress(compress(x, codec))
    assert y.dtype == np.float16
    assert np.all(np.isfinite(y))
    wide = x.astype(np.float64)
    step = {"int8": 1 / 127, "int4": 1 / 7, "bf16": 0.0, "topk:1": 0.0}[codec]
    bound = np.abs(wide).max(axis=1, keepdims=True) * step * 0.51
    bound = bound + {"bf16": 2.0**-8, "topk:1": 0.0}.get(codec, 2.0**-11) * np.abs(wide) + 2.0**-25
    assert np.all(np.abs(wide - y) <= bound)


@pytest.mark.parametrize("codec", ["raw", "bf16", "lossless_bf16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_codecs_keep_what_is_not_finite(codec, dtype, backend):
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0], dtype)
    y = decompress(compress(x, codec))
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(x[1:]), np.signbit(y[1:]))


def test_signalling_nan_stays_nan(backend):
    x = np.array([0x7F800001, 0xFF80FFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    y = decompress(compress(x, "bf16"))
    assert y.view(np.uint32).tolist() == [0x7FC00000, 0xFFC00000, 0x7FFF0000]


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 63, 64, 199, 383])
def test_other_codecs_refuse_what_is_not_finite(codec, bad, position, backend):
    x = np.ones((2, 192), np.float32)
    x.flat[position] = bad
    name = Codec.parse(codec).name
    message = f"element {position} is {bad}, {name} takes finite values only \\(raw, bf16 and lossless_bf16 keep"
    with pytest.raises(ValueError, match=message):
        compress(x, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_frame_bytes_is_an_upper_bound(codec, dtype, backend):
    rng = np.random.default_rng(2)
    for shape in [(), (1,), (0,), (3, 0), (5, 64), (1, 1, 640), (7, 129), (2, 3000)]:
        bits = bits_of(rng.standard_normal(shape), dtype).reshape(shape)
        size = len(encode_everywhere(bits, dtype, codec))
        bound = frame_bytes(shape, dtype, codec)
        assert size <= bound
        if not codec.startswith(("topk", "lossless")):
            assert size == bound


def test_ratios_of_the_default_groups(backend):
    shape = (512, 640)
    ratio = {codec: 4 * 512 * 640 / frame_bytes(shape, "float32", codec) for codec in ("bf16", "int8", "int4")}
    assert ratio == pytest.approx({"bf16": 2.0, "int8": 256 / 66, "int4": 256 / 34}, rel=1e-3)


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "topk"])
def test_encoding_again_stays_close(codec, backend):
    """A relay that decodes and encodes must not lose more each time; group scales are rounded up and may."""
    x = np.random.default_rng(3).standard_normal((8, 200)).astype(np.float32)
    once = decompress(compress(x, codec))
    twice = decompress(compress(once, codec))
    if codec in ("bf16", "topk"):
        np.testing.assert_array_equal(once, twice)
    else:
        assert np.abs(once - twice).max() <= np.abs(x).max() / (127 if codec == "int8" else 7)
