"""One frame for an array and one array for a frame: on every instruction set, and in Numba.

tests/cpp/test_parity.cpp judges the same by digests, also on processors that these tests do not run on.
"""

from __future__ import annotations

import numpy as np
import pytest

from orbitsplit._backend import load_backend
from orbitsplit._codec.codecs import Codec
from tests.judges import codec as judge

NATIVE, NUMBA = load_backend("native"), load_backend("numba")
CODECS = (
    "raw",
    "bf16",
    "int8",
    "int8:8",
    "int8:128",
    "int4",
    "int4:16",
    "topk",
    "topk:0.02",
    "topk:1",
    "lossless_bf16",
)
RANDOM_ARRAYS = 10_000
SHARES = 20
# Groups, vectors, words of a bitmap and blocks of rows begin and end around these.
EDGES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)


@pytest.fixture(autouse=True)
def _restore_isa():
    chosen = NATIVE.isa()
    yield
    NATIVE.set_isa(chosen)


def outcomes(x, dtype, codec):
    """Yield (name, frame, array) of every implementation; a frame or array that is refused is the message."""
    numbers = judge.CODECS[codec.name], codec.group or 64, codec.keep or 0.25
    sets = [(name, NATIVE) for name in NATIVE.isas()]
    for name, module in [*sets, ("numba", NUMBA)]:
        module.set_isa(name)
        try:
            frame = module.encode(x, dtype, x.shape, *numbers)
        except ValueError as error:
            yield name, str(error), None
            continue
        yield name, frame, module.decode(frame, 1 << 30)[2].tobytes()


def assert_parity(x, dtype, codec):
    (_, frame, array), *others = outcomes(x, dtype, codec)
    for name, other_frame, other_array in others:
        assert other_frame == frame, f"{name} encodes {codec} of {judge.DTYPES[dtype]} {x.shape} differently"
        assert other_array == array, f"{name} decodes {codec} of {judge.DTYPES[dtype]} {x.shape} differently"
    return not isinstance(frame, str)


def random_shape(rng):
    length = int(rng.choice(EDGES)) if rng.random() < 0.6 else int(rng.integers(0, 700))
    rows = int(rng.choice([0, 1, 1, 1, 2, 3, 63, 64, 65])) if rng.random() < 0.3 else int(rng.integers(1, 5))
    return (rows, length) if rng.random() < 0.8 else (length,)


def random_singles(rng, shape):
    """Float32 values of one of the kinds that kernels have gone wrong on."""
    kind = rng.integers(8)
    x = rng.standard_normal(shape, np.float32)
    if kind == 1:  # every finite exponent
        return np.ldexp(x, rng.integers(-148, 126, shape)).astype(np.float32)
    if kind == 2:  # denormals
        return (rng.integers(-200, 200, shape) * np.float32(2.0**-149)).astype(np.float32)
    if kind == 3:  # ties
        return rng.integers(-4, 5, shape).astype(np.float32)
    if kind == 4:  # zeros of both signs
        return np.copysign(np.float32(0), x)
    if kind == 5:  # massive channels
        return x * np.where(np.arange(shape[-1]) % 61 == 3, np.float32(1000), np.float32(1))
    if kind == 6:  # around the end of float16 and of float32
        return x * np.where(rng.random(shape) < 0.5, np.float32(65504), np.float32(3e37))
    if kind == 7 and x.size:  # NaN or infinity in one place, in any block
        x.flat[rng.integers(x.size)] = rng.choice([np.nan, -np.nan, np.inf, -np.inf])
    return x


def random_array(rng, dtype):
    """An array of the dtype (bfloat16 as bits) that begins at any byte."""
    x = random_singles(rng, random_shape(rng))
    with np.errstate(over="ignore", invalid="ignore"):
        short = x.astype(np.float16) if dtype == 1 else (x.view(np.uint32) >> 16).astype(np.uint16)
    values = x if dtype == 0 else short
    offset = int(rng.integers(0, 4))
    memory = np.empty(values.nbytes + offset, np.uint8)
    moved = np.ndarray(values.shape, values.dtype, memory, offset)
    moved[...] = values
    return moved


@pytest.mark.parametrize("share", range(SHARES))
def test_random_arrays(share):
    rng = np.random.default_rng([26, share])
    frames = 0
    for number in range(RANDOM_ARRAYS // SHARES):
        codec = Codec.parse(CODECS[number % len(CODECS)])
        dtype = number // len(CODECS) % 3
        frames += assert_parity(random_array(rng, dtype), dtype, codec)
    assert frames > 0.8 * RANDOM_ARRAYS / SHARES


@pytest.mark.parametrize("dtype", range(3), ids=judge.DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_a_value_that_is_not_finite_in_any_place(codec, dtype):
    """Vector loops have seen NaN in the first block only, or only in the last."""
    length = 200
    for place in range(length):
        for value in (np.nan, -np.inf):
            x = np.ones((1, length), np.float32)
            x[0, place] = value
            short = x.astype(np.float16) if dtype == 1 else (x.view(np.uint32) >> 16).astype(np.uint16)
            kept = assert_parity(x if dtype == 0 else short, dtype, Codec.parse(codec))
            assert kept == (codec in ("raw", "bf16", "lossless_bf16"))


@pytest.mark.parametrize("dtype", range(3), ids=judge.DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_arrays_of_megabytes(codec, dtype):
    """Checksums and row blocks take other paths where frames are large."""
    x = np.random.default_rng(8).standard_normal((700, 640), np.float32)
    short = x.astype(np.float16) if dtype == 1 else (x.view(np.uint32) >> 16).astype(np.uint16)
    assert assert_parity(x if dtype == 0 else short, dtype, Codec.parse(codec))
