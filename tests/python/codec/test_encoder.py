"""Encoder and Decoder: the frames of compress, in memory that is reused."""

from __future__ import annotations

import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from orbitsplit import Codec, CorruptFrameError, Decoder, Encoder, compress, decompress, frame_bytes
from orbitsplit._backend import load_backend

CODECS = ["raw", "bf16", "int8", "int8:32", "int4", "topk:0.02", "topk:0.9"]
only_native = pytest.mark.parametrize("backend", ["native"], indirect=True)


pytestmark = pytest.mark.usefixtures("backend")


def tensors(count, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for _ in range(count)]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 640), (2, 3, 65)])
def test_frames_and_arrays_are_those_of_compress(shape, dtype, codec):
    encoder = Encoder(codec, shape, dtype)
    decoder = Decoder(shape, dtype, framework="torch")
    for x in tensors(3, shape, dtype):
        frame = encoder.encode(x)
        assert frame == compress(x, codec)
        decoded = decoder.decode(frame)
        assert (decoded.dtype, decoded.shape) == (x.dtype, x.shape)
        torch.testing.assert_close(decoded, decompress(frame, framework="torch"), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_are_taken_and_given(dtype):
    encoder, decoder = Encoder(Codec("int8"), [4, 70], dtype), Decoder([4, 70], dtype)
    x = np.random.default_rng(0).standard_normal((4, 70)).astype(dtype)
    decoded = decoder.decode(encoder.encode(x))
    assert isinstance(decoded, np.ndarray)
    np.testing.assert_array_equal(decoded, decompress(compress(x)))
    assert encoder.encode(torch.from_numpy(x)) == compress(x)


def test_a_frame_is_overwritten_by_the_next_one():
    encoder = Encoder("int8", (1, 64), "float32")
    x = np.arange(64, dtype=np.float32).reshape(1, 64)
    first = encoder.encode(x)
    kept = bytes(first)
    second = encoder.encode(-x)
    assert first == second == compress(-x)
    assert kept == compress(x)
    second.release()  # a view of its own: the others and the encoder go on
    assert encoder.encode(x) == first == kept


def test_a_shorter_frame_leaves_a_longer_one_in_shape():
    encoder = Encoder("topk:0.01", (2, 3000), "float32")
    near, far = np.zeros((2, 2, 3000), np.float32)
    near[:, :30] = far[:, ::100] = 1
    # Gaps of more than 254 take more bytes.
    far[:, :1000] = 0
    far[:, 2990:] = 1
    for x in (far, near, far):
        assert encoder.encode(x) == compress(x, "topk:0.01")
    assert len(compress(far, "topk:0.01")) != len(compress(near, "topk:0.01"))


def test_a_result_is_overwritten_by_the_next_one():
    decoder = Decoder((2, 3), np.float32)
    first = decoder.decode(compress(np.full((2, 3), 1, np.float32), "raw"))
    second = decoder.decode(compress(np.full((2, 3), 2, np.float32), "bf16"))
    assert first is second
    assert first.tolist() == [[2, 2, 2], [2, 2, 2]]


def test_memory_outlives_its_objects():
    x = np.ones((1, 640), np.float32)
    frame = Encoder("int8", x.shape, x.dtype).encode(x)
    assert frame == compress(x)
    np.testing.assert_array_equal(Decoder(x.shape, x.dtype).decode(frame), decompress(frame))


@pytest.mark.parametrize(
    ("dtype", "framework", "kind"),
    [
        ("float32", None, np.ndarray),
        (np.float16, None, np.ndarray),
        ("float32", "torch", torch.Tensor),
        (torch.float32, None, torch.Tensor),
        (torch.float32, "numpy", np.ndarray),
        ("bfloat16", None, torch.Tensor),
    ],
)
def test_the_framework_follows_from_the_dtype(dtype, framework, kind):
    frame = Encoder("raw", (2,), dtype).encode(torch.ones(2, dtype=getattr(torch, np_name(dtype))))
    assert isinstance(Decoder((2,), dtype, framework=framework).decode(frame), kind)


def np_name(dtype):
    return str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else np.dtype(dtype).name


def test_other_arrays_are_refused():
    encoder = Encoder("int8", (4, 6), "float32")
    for x, found in (
        (np.ones((6, 4), np.float32), r"float32 \[6, 4\]"),
        (np.ones(24, np.float32), r"float32 \[24\]"),
        (np.ones((4, 6), np.float16), r"float16 \[4, 6\]"),
        (torch.ones(4, 6, dtype=torch.bfloat16), r"bfloat16 \[4, 6\]"),
        (torch.ones(1, 4, 6), r"float32 \[1, 4, 6\]"),
    ):
        with pytest.raises(ValueError, match=rf"x is {found}, not float32 \[4, 6\]"):
            encoder.encode(x)
    with pytest.raises(ValueError, match="not C-contiguous"):
        encoder.encode(np.ones((6, 4), np.float32).T)
    with pytest.raises(ValueError, match="the tensor is not contiguous"):
        encoder.encode(torch.ones(6, 4).T)
    with pytest.raises(TypeError, match="cannot compress byte-swapped float32"):
        encoder.encode(np.ones((4, 6), ">f4"))
    with pytest.raises(TypeError, match="cannot compress int32"):
        encoder.encode(torch.ones(4, 6, dtype=torch.int32))
    with pytest.raises(TypeError, match="the tensor is on meta"):
        encoder.encode(torch.ones(4, 6, device="meta"))
    with pytest.raises(TypeError, match="a tensor of layout torch"):
        encoder.encode(torch.ones(4, 6).to_sparse())
    for x in (None, [1.0], b"....", np.float32):
        with pytest.raises(TypeError, match="cannot compress"):
            encoder.encode(x)
    x = np.ones((4, 6), np.float32)
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match="element 8 is nan, int8 takes finite values only"):
        encoder.encode(x)
    assert encoder.encode(np.ones((4, 6), np.float32)) == compress(np.ones((4, 6), np.float32))


def test_bfloat16_takes_no_integers():
    with pytest.raises(TypeError, match="cannot compress int16"):
        Encoder("raw", (3,), "bfloat16").encode(np.ones(3, np.int16))


def test_tensors_of_every_kind_are_read_as_they_are():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    encoder = Encoder("raw", (4, 6), torch.float32)
    wide = torch.zeros(5, 6)
    wide[1:] = x
    for same in (x.clone().requires_grad_(), torch.nn.Parameter(x), wide[1:], x.T.contiguous().T.contiguous()):
        assert encoder.encode(same) == compress(x, "raw")
    # Its memory holds the values with the other sign.
    with pytest.raises(ValueError, match=r"negative bit set; x.resolve_neg\(\) makes a copy"):
        encoder.encode(torch._neg_view(x))
    # Strides of axes with one element mean nothing.
    column = torch.randn(6, 2)[:, :1].T
    assert Encoder("raw", (1, 3), "float32").encode(column[:, ::2].contiguous()) == compress(
        column[:, ::2].contiguous(), "raw"
    )
    thin = torch.as_strided(torch.arange(6.0), (1, 6), (100, 1))
    assert Encoder("raw", (1, 6), "float32").encode(thin) == compress(thin, "raw")


def test_other_frames_are_refused():
    decoder = Decoder((4, 6), "float32")
    for x, found in (
        (np.ones((6, 4), np.float32), r"float32 \[6, 4\]"),
        (np.ones((4, 6, 1), np.float32), r"float32 \[4, 6, 1\]"),
        (np.ones((4, 6), np.float16), r"float16 \[4, 6\]"),
    ):
        with pytest.raises(ValueError, match=rf"the frame holds {found}, not float32 \[4, 6\]"):
            decoder.decode(compress(x))
    frame = compress(np.ones((4, 6), np.float32))
    with pytest.raises(CorruptFrameError, match="frame is damaged"):
        decoder.decode(frame[:-1] + b"?")
    with pytest.raises(CorruptFrameError, match="frame has 0 bytes"):
        decoder.decode(b"")
    with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
        decoder.decode("frame")
    with pytest.raises(ValueError, match="frame is not contiguous in memory"):
        decoder.decode(memoryview(b"".join(bytes([byte, 0]) for byte in frame))[::2])
    np.testing.assert_array_equal(decoder.decode(bytearray(frame)), decompress(frame))


def test_what_cannot_be_made_says_why():
    with pytest.raises(ValueError, match="is unknown; valid are raw"):
        Encoder("int9", (1,), "float32")
    with pytest.raises(TypeError, match="cannot compress float64: supported are float32"):
        Encoder("int8", (1,), np.float64)
    for make in (lambda shape: Encoder("raw", shape, "float32"), lambda shape: Decoder(shape, "float32")):
        with pytest.raises(ValueError, match="shape has rank 9, the limit is 8"):
            make((1,) * 9)
        with pytest.raises(ValueError, match="shape has a negative extent"):
            make((2, -1))
    with pytest.raises(TypeError, match="NumPy has no bfloat16"):
        Decoder((1,), torch.bfloat16, framework="numpy")
    with pytest.raises(ValueError, match='framework is "jax"'):
        Decoder((1,), "float32", framework="jax")


@only_native
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nothing_of_the_size_of_an_array_is_allocated(dtype):
    x = tensors(1, (64, 2048), dtype)[0]
    encoder, decoder = Encoder("int8", x.shape, x.dtype), Decoder(x.shape, x.dtype)
    decoder.decode(encoder.encode(x))
    tracemalloc.start()
    try:
        for _ in range(3):
            decoder.decode(encoder.encode(x))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000


@only_native
def test_tensors_and_arrays_are_read_in_place():
    """Where the memory is not read directly, a view is made in Python: slower by microseconds."""
    core = load_backend("native").Encoder(2, (2, 3), 0, 64, 0.25, 1)
    assert core.encode(torch.ones(2, 3, dtype=torch.bfloat16)) is not None
    assert core.encode(torch.ones(3, 2, dtype=torch.bfloat16)) is None
    core = load_backend("native").Encoder(0, (2, 3), 0, 64, 0.25, 1)
    for x in (torch.ones(2, 3), np.ones((2, 3), np.float32), torch.nn.Parameter(torch.ones(2, 3))):
        assert core.encode(x) is not None
    for x in (torch._neg_view(torch.ones(2, 3)), np.ones((2, 3), ">f4"), np.ones((2, 3), np.int32), None):
        assert core.encode(x) is None


@only_native
def test_only_large_arrays_leave_python_to_other_threads():
    small, large = np.ones((1, 640), np.float32), np.ones((2000, 2000), np.float32)
    gate, ran = threading.Lock(), threading.Event()
    gate.acquire()
    thread = threading.Thread(target=lambda: (gate.acquire(), ran.set()))
    interval = sys.getswitchinterval()
    try:
        thread.start()
        sys.setswitchinterval(1000)  # Python changes hands only where it is given up
        gate.release()
        for x, is_given_up in ((small, False), (large, True)):
            encoder = Encoder("int8", x.shape, x.dtype)
            for _ in range(100):
                encoder.encode(x)
            assert ran.is_set() == is_given_up
    finally:
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.parametrize("codec", CODECS)
def test_frames_do_not_depend_on_threads(codec):
    x = np.random.default_rng(2).standard_normal((700, 1000)).astype(np.float32)
    encoder, decoder = Encoder(codec, x.shape, x.dtype, threads=3), Decoder(x.shape, x.dtype, threads=2)
    frame = encoder.encode(x)
    assert frame == compress(x, codec)
    np.testing.assert_array_equal(decoder.decode(frame), decompress(frame))


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_have_limits(threads):
    for make in (
        lambda: Encoder("raw", (1,), "float32", threads=threads),
        lambda: Decoder((1,), "float32", threads=threads),
    ):
        with pytest.raises(ValueError, match=f"threads is {threads}, it must be from 1 to 256"):
            make()


def test_frame_bytes_bounds_every_frame():
    x = np.random.default_rng(1).standard_normal((3, 700)).astype(np.float32)
    for codec in CODECS:
        assert len(Encoder(codec, x.shape, x.dtype).encode(x)) <= frame_bytes(x.shape, x.dtype, codec)


@pytest.mark.parametrize("codec", ["int8", "lossless_bf16", "topk:0.1"])
@pytest.mark.parametrize("rows", [1, 128])  # with Python's lock, and without it
def test_threads_that_share_an_encoder_get_their_own_frames(codec, rows):
    """Regression: a thread's frame was overwritten by another's before it was read, or while it was written."""
    arrays = [np.random.default_rng(k).standard_normal((rows, 640)).astype(np.float32) for k in range(4)]
    expected = [compress(x, codec) for x in arrays]
    encoder, start = Encoder(codec, arrays[0].shape, "float32"), threading.Barrier(len(arrays))
    wrong = []

    def work(k):
        start.wait()
        for _ in range(20):
            frame = encoder.encode(arrays[k])
            start.wait()  # every thread has encoded before any reads
            if frame != expected[k]:
                wrong.append(k)
            start.wait()

    run_threads(work, len(arrays))
    assert wrong == []


@pytest.mark.parametrize("rows", [1, 128])
def test_threads_that_share_a_decoder_get_their_own_arrays(rows):
    arrays = [np.random.default_rng(k).standard_normal((rows, 640)).astype(np.float32) for k in range(4)]
    frames = [compress(x, "int8") for x in arrays]
    decoder, start = Decoder(arrays[0].shape, "float32"), threading.Barrier(len(arrays))
    wrong, results = [], [None] * len(arrays)

    def work(k):
        start.wait()
        for _ in range(20):
            results[k] = decoder.decode(frames[k])
            start.wait()
            if not np.array_equal(results[k], decompress(frames[k])):
                wrong.append(k)
            start.wait()

    run_threads(work, len(arrays))
    assert wrong == []
    assert len({id(result) for result in results}) == len(arrays)


def test_an_encoder_can_be_made_in_one_thread_and_used_in_another():
    x = np.ones((2, 64), np.float32)
    encoder, decoder, decoded = Encoder("int8", x.shape, x.dtype), Decoder(x.shape, x.dtype), []
    run_threads(lambda _: decoded.append(decoder.decode(encoder.encode(x)).copy()), 1)
    np.testing.assert_array_equal(decoded[0], decompress(compress(x)))


def run_threads(work, count):
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("codec", "shape", "size"),
    [
        ("int8", (2**31, 2**20), 2322168557862968),
        ("raw", (2**50,), 4503599627370544),
        ("topk:1.0", (2**28, 2**31), None),
    ],
)
def test_what_does_not_fit_into_memory_says_so(codec, shape, size, capfd):
    """Regression: a RuntimeError, and a SystemError on stderr."""
    size = size or frame_bytes(shape, "float32", codec)
    what = ", ".join(map(str, shape))
    with pytest.raises(MemoryError, match=rf"^cannot allocate {size} bytes for a frame of float32 \[{what}\]$"):
        Encoder(codec, shape, "float32")
    with pytest.raises(MemoryError, match="Unable to allocate"):
        Decoder(shape, "float32")
    assert capfd.readouterr().err == ""


def test_frames_that_are_no_bytes_are_refused_by_name():
    decoder, frame = Decoder((4, 64), "float32"), compress(np.ones((4, 64), np.float32))
    as_array = np.frombuffer(frame, np.uint8)
    for decode in (decoder.decode, decompress):
        for wrong in ("frame", None, 5, [1]):
            kind = type(wrong).__name__
            with pytest.raises(TypeError, match=f"^frame: a bytes-like object is required, not '{kind}'$"):
                decode(wrong)
        with pytest.raises(TypeError, match=r"^frame: a bytes-like .* not 'Tensor', such as frame.numpy\(\)$"):
            decode(torch.frombuffer(bytearray(frame), dtype=torch.uint8))
        with pytest.raises(TypeError, match=r"^frame is masked, and a frame has no mask"):
            decode(np.ma.masked_array(as_array, mask=False))
        with pytest.raises(TypeError, match=r"^frame holds Python objects, it must hold bytes$"):
            decode(np.array([None] * 50))
        with pytest.raises(ValueError, match=r"^frame is not contiguous in memory"):
            decode(np.repeat(as_array, 2)[::2])
        for right in (as_array, bytearray(frame), memoryview(frame), torch.from_numpy(as_array.copy()).numpy()):
            np.testing.assert_array_equal(decode(right), decompress(frame))


def test_an_encoder_does_not_encode_its_own_frame():
    """Regression: it wrote over what it still had to read."""
    encoder, x = Encoder("raw", (4, 64), "float32"), np.ones((4, 64), np.float32)
    frame = encoder.encode(x)
    own = np.frombuffer(frame, np.float32, 256, offset=56).reshape(4, 64)
    with pytest.raises(ValueError, match=r"^the array and the buffer of its frame overlap in memory$"):
        encoder.encode(own)
    assert encoder.encode(own.copy()) == compress(x, "raw")


def test_a_decoder_does_not_decode_its_own_array():
    decoder, x = Decoder((4, 64), "float32"), np.ones((4, 64), np.float32)
    frame = compress(x)
    own = memoryview(decoder.decode(frame)).cast("B")
    own[: len(frame)] = frame
    with pytest.raises(ValueError, match=r"^the frame and the buffer of its array overlap in memory$"):
        decoder.decode(own[: len(frame)])
