"""Any bytes give an array or `CorruptFrameError`, at once where a frame asks for too much.

    ORBITSPLIT_MUTANTS=1000000 pytest tests/python/codec/test_hostile_frames.py     a million mutated frames

tests/fuzz does the same for the C++ core with libFuzzer, under sanitizers.
"""

from __future__ import annotations

import os
import time
import tracemalloc

import numpy as np
import pytest

from orbitsplit import CalibratedCodec, CorruptFrameError, Decoder
from orbitsplit._backend import load_backend, use_backend
from orbitsplit._codec.calibrated import prepared
from orbitsplit._codec.codecs import compress, decompress
from tests.support.mutants import CALIBRATED, CODECS, large_frames, mutants, patched, sealed, valid_frames

BACKENDS = ("native", "numba")
MAX_BYTES = 1 << 21
MUTANTS = int(os.environ.get("ORBITSPLIT_MUTANTS", "30000"))
# Numba's decoder takes a hundred times as long for such small frames.
NUMBA_MUTANTS = min(MUTANTS, 6000)


def outcome(module, frame):
    """What decoding gives: dtype, shape and bytes, or the message of the refusal."""
    is_calibrated = len(frame) > 5 and frame[5] == 6
    core = prepared(CALIBRATED, module) if is_calibrated else module
    try:
        dtype, shape, data = core.decode(frame, MAX_BYTES)
    except CorruptFrameError as error:
        return str(error)
    assert data.nbytes <= MAX_BYTES
    return dtype, shape, data.tobytes()


@pytest.mark.timeout(3600)
def test_mutated_frames_give_arrays_or_corrupt_frame_error():
    """Every one is decoded by the extension; of the first ones Numba must say the same, word for word."""
    native, numba = map(load_backend, BACKENDS)
    arrays = 0
    for number, frame in enumerate(mutants(MUTANTS)):
        result = outcome(native, frame)
        arrays += not isinstance(result, str)
        if number < NUMBA_MUTANTS:
            expected = outcome(numba, frame)
            # Several streams may be damaged, and each backend has its own order of looking at them.
            is_refused_twice = frame[5:6] == b"\6" and isinstance(result, str) and isinstance(expected, str)
            assert is_refused_twice or result == expected, f"mutant {number}"
    assert 0.1 * MUTANTS < arrays < 0.9 * MUTANTS


def test_mutated_frames_do_no_harm_to_a_decoder():
    """Its memory is for one dtype and shape: other frames are refused, and later ones are decoded as ever."""
    decoder = Decoder((3, 130), "float32")
    arrays, others = 0, set()
    for frame in mutants(10_000, seed=21):
        try:
            decoded = decoder.decode(frame)
        except CorruptFrameError:
            continue
        except ValueError as error:
            others.add(str(error))
            continue
        arrays += 1
        np.testing.assert_array_equal(decoded, decompress(frame))
    assert arrays > 50
    assert len(others) > 5
    assert all(message.endswith("not float32 [3, 130]") for message in others)


def test_unchanged_frames_are_arrays():
    """Otherwise the test above would be content with a reader that refuses all."""
    for frame in valid_frames() + large_frames():
        assert sealed(frame) == frame
        assert not isinstance(outcome(load_backend("native"), frame), str)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("name", "limit_s"), [("native", 0.001), ("numba", 0.005)])
def test_a_frame_that_claims_2_to_the_60_elements_is_refused_in_microseconds(codec, name, limit_s):
    with use_backend(name):
        frame = compress(np.ones((2, 16), np.float32), codec)
        huge = patched(patched(frame, 40, "<Q", 1 << 30), 48, "<Q", 1 << 30)
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            with pytest.raises(
                CorruptFrameError, match=r"declares an array of 4611686018427387904 bytes, the limit is 1[678]"
            ):
                decompress(huge)
            seconds.append(time.perf_counter() - start)
        # The quickest of many: a busy machine delays some, work or memory for 2^60 elements would delay all.
        assert min(seconds) < limit_s


def expansion_frames():
    """Frames of each codec that stand for the largest arrays: one value of each row, or zeros, in long rows."""
    x = np.zeros((64, 4096), np.float32)
    x[:, 0] = 1
    table = np.zeros((1, 256), np.uint8)
    table[0, 0] = 255
    codec = CalibratedCodec(codebook=1, step=np.ones(4096, np.float32), tables=table)
    frames = {
        name: compress(x, name) for name in ("raw", "bf16", "int8:65536", "int4:65536", "lossless_bf16", "topk:1e-9")
    }
    return x, frames | {"calibrated": compress(np.zeros_like(x), codec)}, codec


def test_no_codec_but_topk_expands_beyond_the_default_limit(backend):
    x, frames, codec = expansion_frames()
    expansions = {name: x.nbytes / len(frame) for name, frame in frames.items()}
    assert all(expansion < 8192 for expansion in expansions.values()), expansions
    for name in ("raw", "bf16", "int8:65536", "int4:65536", "lossless_bf16"):
        assert expansions[name] <= 8
    # No limit of the codec's: 3 bytes for each row, of whatever length.
    assert len(frames["topk:1e-9"]) == 40 + 16 + 64 * 3
    for frame in frames.values():
        assert decompress(frame, codec).shape == x.shape


@pytest.mark.parametrize("length", [1 << 28, (1 << 22) + (1 << 18), 1 << 32])
def test_a_small_frame_does_not_make_a_large_array(length, backend):
    """Regression: a valid frame of 59 bytes made an array of 1 GiB, for seconds."""
    x = np.zeros((1, 4096), np.float32)
    x[0, 0] = 1
    small = compress(x, "topk:0.0002")
    frame = patched(small, 48, "<Q", length)
    assert len(frame) == 59
    limit = (16 << 20) + 8192 * 59
    tracemalloc.start()
    try:
        with pytest.raises(
            CorruptFrameError, match=rf"declares an array of {4 * length} bytes, the limit is {limit} for a"
        ):
            decompress(frame)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    within = patched(small, 48, "<Q", 1 << 22)
    assert decompress(within).shape == (1, 1 << 22)
    if length < 1 << 24:  # whoever knows the sender can have more
        assert decompress(frame, max_bytes=4 * length).shape == (1, length)


def test_the_default_limit_is_at_most_1_gib(backend):
    x = np.ones(1 << 20, np.float32)
    frame = patched(compress(x, "raw"), 40, "<Q", (1 << 28) + 1)
    with pytest.raises(CorruptFrameError, match="bytes, the limit is 1073741824 for a frame of 4194352 unless"):
        decompress(frame)
