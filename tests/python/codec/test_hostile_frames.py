"""Any bytes give an array or `CorruptFrameError`, at once where a frame asks for too much.

    ORBITSPLIT_MUTANTS=1000000 pytest tests/python/codec/test_hostile_frames.py     a million mutated frames

tests/fuzz does the same for the C++ core with libFuzzer, under sanitizers.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from orbitsplit import CorruptFrameError, Decoder
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
                CorruptFrameError, match="declares an array of 4611686018427387904 bytes, the limit is 1"
            ):
                decompress(huge)
            seconds.append(time.perf_counter() - start)
        # The quickest of many: a busy machine delays some, work or memory for 2^60 elements would delay all.
        assert min(seconds) < limit_s
