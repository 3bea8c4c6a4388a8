"""compress and decompress as users meet them: arrays, tensors, errors, and no copies."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from orbitsplit import CalibratedCodec, CorruptFrameError, Decoder, Encoder
from orbitsplit._codec import arrays
from orbitsplit._codec.codecs import Codec, compress, decompress, frame_bytes

pytestmark = pytest.mark.usefixtures("backend")


# The fallback computes by whole arrays; what it allocates is no promise.
only_native = pytest.mark.parametrize("backend", ["native"], indirect=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 65)])
@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk:1"])
def test_arrays_come_back_with_dtype_and_shape(shape, dtype, codec):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if shape == ():
        x = np.array(x)
    y = decompress(compress(x, codec))
    assert isinstance(y, np.ndarray)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    np.testing.assert_allclose(y, x, atol=0.4 if codec == "int4" else 0.02)
    t = decompress(compress(x, codec), framework="torch")
    assert isinstance(t, torch.Tensor)
    np.testing.assert_array_equal(t.numpy(), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 65)])
@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk:1"])
def test_tensors_come_back_with_dtype_and_shape(shape, dtype, codec):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = decompress(compress(x, codec), framework="torch")
    assert isinstance(y, torch.Tensor)
    assert (y.dtype, y.shape, y.device.type) == (x.dtype, x.shape, "cpu")
    torch.testing.assert_close(y, x, atol=0.4 if codec == "int4" else 0.02, rtol=0.01)


def test_a_tensor_and_its_array_give_the_same_frame():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    assert compress(x) == compress(x.numpy())
    assert compress(x.clone().requires_grad_()) == compress(x)
    assert compress(torch.nn.Parameter(x)) == compress(x)


def test_bf16_rounds_like_torch():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32))
    x = x[~torch.isnan(x)]
    torch.testing.assert_close(decompress(compress(x, "bf16"), framework="torch"), x.bfloat16().float(), rtol=0, atol=0)


def test_bfloat16_frames_are_tensors():
    frame = compress(torch.ones(3, dtype=torch.bfloat16))
    assert decompress(frame).dtype == torch.bfloat16
    with pytest.raises(TypeError, match='NumPy has no bfloat16: decode this frame with framework="torch"'):
        decompress(frame, framework="numpy")


def test_a_missing_torch_is_named(monkeypatch):
    frame = compress(torch.ones(3, dtype=torch.bfloat16))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'needs torch: pip install "orbitsplit\[models\]"'):
        decompress(frame)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda frame: np.frombuffer(frame, np.uint8)])
def test_frames_are_any_bytes(kind):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(decompress(kind(compress(x, "raw"))), x)


def test_frames_need_not_be_aligned():
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    for codec in ("raw", "bf16", "int8", "int4", "topk"):
        frame = compress(x, codec)
        shifted = memoryview(b"." + frame)[1:]
        np.testing.assert_array_equal(decompress(shifted), decompress(frame))
        unaligned = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)
        assert compress(unaligned, codec) == frame


def test_what_is_not_bytes_is_a_type_error():
    with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
        decompress("frame")
    frame = np.frombuffer(compress(np.ones(4, np.float32)), np.uint8)
    with pytest.raises(ValueError, match="frame is not contiguous in memory"):
        decompress(np.repeat(frame, 2)[::2])
    with pytest.raises(CorruptFrameError, match="frame has 0 bytes, a header needs at least 40"):
        decompress(b"")
    with pytest.raises(ValueError, match='framework is "jax"; valid are numpy and torch'):
        decompress(frame, framework="jax")


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk:0.02", "topk:0.9"])
def test_frames_are_written_into_memory_of_the_caller(codec):
    x = np.random.default_rng(0).standard_normal((3, 700)).astype(np.float32)
    bound = frame_bytes(x.shape, x.dtype, codec)
    for out in (bytearray(bound + 3), np.zeros((2, bound), np.uint16)):
        view = compress(x, codec, out=out)
        assert isinstance(view, memoryview)
        assert view == compress(x, codec)
        view[0] = 1
        assert memoryview(out).cast("B")[0] == 1
        rest = memoryview(out).cast("B")[bound:]
        assert bytes(rest) == bytes(len(rest))


def test_memory_that_cannot_take_a_frame_is_refused():
    x = np.ones((4, 64), np.float32)
    with pytest.raises(ValueError, match="the buffer has 319 bytes, the frame may need 320"):
        compress(x, out=bytearray(319))
    with pytest.raises(ValueError, match="the buffer has 0 bytes, the frame may need 320"):
        compress(x, out=np.empty((3, 0)))
    with pytest.raises(ValueError, match="out is read-only"):
        compress(x, out=bytes(320))
    with pytest.raises(ValueError, match="out is not contiguous in memory"):
        compress(x, out=np.empty(640, np.uint8)[::2])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 65)])
def test_arrays_and_tensors_are_decoded_in_place(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    frame = compress(x, "int8")
    expected = decompress(frame, framework="torch")
    outs = [torch.full_like(x, 7)] + ([] if dtype == "bfloat16" else [np.full(shape, 7, dtype)])
    for out in outs:
        assert decompress(frame, out=out) is out
        torch.testing.assert_close(torch.as_tensor(out), expected, rtol=0, atol=0)


def test_arrays_that_cannot_take_a_frame_are_refused():
    frame = compress(np.ones((4, 6), np.float32))
    for out, found in ((np.ones((6, 4), np.float32), r"\[6, 4\]"), (np.ones(24, np.float32), r"\[24\]")):
        with pytest.raises(ValueError, match=rf"the frame holds float32 \[4, 6\], not float32 {found}"):
            decompress(frame, out=out)
    with pytest.raises(ValueError, match=r"the frame holds float32 \[4, 6\], not bfloat16 \[4, 6\]"):
        decompress(frame, out=torch.ones(4, 6, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="not C-contiguous"):
        decompress(frame, out=np.ones((6, 4), np.float32).T)
    with pytest.raises(ValueError, match="out requires grad"):
        decompress(frame, out=torch.ones(4, 6).requires_grad_())
    out = np.ones((4, 6), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        decompress(frame, out=out)
    with pytest.raises(CorruptFrameError, match="frame is damaged"):
        decompress(frame[:-1] + b"?", out=np.ones((4, 6), np.float32))


def test_what_cannot_be_compressed_says_why():
    x = np.ones((4, 6), np.float32)
    with pytest.raises(ValueError, match=r"not C-contiguous; np.ascontiguousarray\(x\) makes a contiguous copy"):
        compress(x.T)
    with pytest.raises(ValueError, match=r"not contiguous; x.contiguous\(\) makes a contiguous copy"):
        compress(torch.ones(4, 6).T)
    with pytest.raises(TypeError, match="cannot compress float64: supported are float32, float16, bfloat16"):
        compress(x.astype(np.float64))
    with pytest.raises(TypeError, match="cannot compress int64"):
        compress(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="cannot compress byte-swapped float32"):
        compress(x.astype(">f4"))
    with pytest.raises(TypeError, match="cannot compress list: give a NumPy array or a CPU torch tensor"):
        compress([1.0, 2.0])
    with pytest.raises(TypeError, match=r"the tensor is on meta; x.cpu\(\) copies it"):
        compress(torch.ones(3, device="meta"))
    with pytest.raises(TypeError, match=r"cannot compress a tensor of layout torch.sparse_coo"):
        compress(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="shape has rank 9, the limit is 8"):
        compress(np.ones((1,) * 9, np.float32))


@pytest.mark.parametrize("codec", ["raw", "int8", "int4", "topk:0.1"])
@pytest.mark.parametrize("kind", ["array", "tensor", "bfloat16"])
@only_native
def test_input_is_read_in_place(kind, codec):
    """Beside the frame itself nothing of the size of the input may be allocated."""
    x = np.ones((512, 2048), np.float32)
    source = {"array": x, "tensor": torch.from_numpy(x), "bfloat16": torch.from_numpy(x).bfloat16()}[kind]
    compress(source[:1], codec)
    tracemalloc.start()
    try:
        frame = compress(source, codec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < frame_bytes(source.shape, source.dtype, codec) + len(frame) // 8 + 20_000


@only_native
def test_frames_are_read_in_place():
    frame = compress(np.ones((512, 2048), np.float32), "raw")
    tracemalloc.start()
    try:
        y = decompress(memoryview(frame))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < y.nbytes + 20_000


def test_the_view_of_an_array_is_its_memory():
    for x in (np.ones((3, 4), np.float16), torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bfloat16)):
        data = arrays.view_bytes(x)[0]
        address = x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr()
        assert data.ctypes.data == address


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("raw", Codec("raw")),
        ("bf16", Codec("bf16")),
        ("int8", Codec("int8", group=64)),
        ("int8:128", Codec("int8", group=128)),
        ("int4:8", Codec("int4", group=8)),
        ("topk", Codec("topk", keep=0.25)),
        ("topk:0.1", Codec("topk", keep=0.1)),
        ("topk:1e-05", Codec("topk", keep=1e-5)),
        ("topk:1.0", Codec("topk", keep=1)),
    ],
)
def test_codecs_are_read_and_written(text, codec):
    assert Codec.parse(text) == codec
    assert str(codec) == text
    x = np.ones((2, 64), np.float32)
    assert compress(x, text) == compress(x, codec)


@pytest.mark.parametrize(
    "text", ["", "int9", "INT8", "int8:", "int8:6.4", "int8:-8", "raw:1", "topk:x", "topk:nan", " raw"]
)
def test_unknown_codecs_list_the_valid_ones(text):
    with pytest.raises(ValueError, match="is unknown; valid are raw, bf16, int8, int8:GROUP, int4"):
        compress(np.ones(3, np.float32), text)


def test_what_is_no_codec_memory_or_limit_is_named():
    x = np.ones(4, np.float32)
    frame = compress(x, "raw")
    for call in (lambda: compress(x, 8), lambda: frame_bytes((4,), "float32", 8), lambda: Encoder(8, (4,), "float32")):
        with pytest.raises(TypeError, match="codec is of type int, it must be a name, a Codec or a CalibratedCodec"):
            call()
    for call in (lambda: decompress(frame, "int8"), lambda: Decoder((4,), "float32", codebook="int8")):
        with pytest.raises(TypeError, match="codebook is a str, it must be a CalibratedCodec or have codecs of levels"):
            call()
    with pytest.raises(
        TypeError, match="out is a Tensor, it must be a bytearray, a NumPy array or other writable memory"
    ):
        compress(x, out=torch.zeros(400, dtype=torch.uint8))
    for limit in (-1, 1 << 64):
        with pytest.raises(ValueError, match=f"max_bytes is {limit}, it must be from 0 to 18446744073709551615"):
            decompress(frame, max_bytes=limit)


def test_codec_parameters_have_limits():
    for group in (0, 4, 12, 65544):
        with pytest.raises(ValueError, match=f"group is {group}, it must be a multiple of 8 from 8 to 65536"):
            Codec("int8", group=group)
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"it must be in \(0, 1\]"):
            Codec("topk", keep=keep)
    with pytest.raises(ValueError, match="codec raw has no group"):
        Codec("raw", group=64)
    with pytest.raises(ValueError, match="codec int8 has no keep"):
        Codec("int8", keep=0.5)


X = np.ones((2, 8), np.float32)
CODEC = CalibratedCodec(codebook=1, step=np.ones(8, np.float32))


@pytest.mark.parametrize("codec", ["int8", CODEC])
@pytest.mark.parametrize("threads", ["2", 2.0, True, None])
def test_a_number_of_threads_of_a_wrong_type_is_refused(threads, codec, backend):
    frame = compress(X, codec)
    for call in (
        lambda: compress(X, codec, threads=threads),
        lambda: compress(X, codec, out=bytearray(1000), threads=threads),
        lambda: decompress(frame, CODEC, threads=threads),
        lambda: Encoder(codec, X.shape, X.dtype, threads=threads),
        lambda: Decoder(X.shape, X.dtype, codebook=CODEC, threads=threads),
    ):
        with pytest.raises(TypeError, match=f"^threads is {re.escape(repr(threads))}, must be an integer$"):
            call()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (5, "shape is 5, must be a sequence of integers"),
        ("25", "shape is '25', must be a sequence of integers"),
        (None, "shape is None, must be a sequence of integers"),
        ((2, 8.0), r"shape\[1\] is 8.0, must be an integer"),
        ((True, 8), r"shape\[0\] is True, must be an integer"),
        (("2", 8), r"shape\[0\] is '2', must be an integer"),
    ],
)
@pytest.mark.parametrize("codec", ["int8", CODEC])
def test_a_shape_of_a_wrong_type_is_refused(shape, message, codec, backend):
    for call in (
        lambda: frame_bytes(shape, "float32", codec),
        lambda: Encoder(codec, shape, "float32"),
        lambda: Decoder(shape, "float32", codebook=CODEC),
    ):
        with pytest.raises(TypeError, match=f"^{message}$"):
            call()


def test_a_shape_may_be_of_any_integers(backend):
    for shape in ([2, 8], torch.Size([2, 8]), np.array([2, 8]), (np.int32(2), np.uint8(8))):
        assert frame_bytes(shape, "float32") == frame_bytes((2, 8), "float32")
        assert Encoder("int8", shape, "float32").encode(X) == compress(X)
        assert Decoder(shape, "float32").decode(compress(X)).shape == (2, 8)


@pytest.mark.parametrize("dtype", ["nonsense", 7, None, int, "float64"])
def test_what_is_no_dtype_of_frames_is_refused(dtype, backend):
    for call in (
        lambda: frame_bytes((2, 8), dtype),
        lambda: Encoder("int8", (2, 8), dtype),
        lambda: Decoder((2, 8), dtype),
    ):
        with pytest.raises(TypeError, match=r"^cannot compress .*: supported are float32, float16, bfloat16$"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_bytes": "1"}, "max_bytes is '1', must be an integer"),
        ({"max_bytes": 1e6}, "max_bytes is 1000000.0, must be an integer"),
        ({"framework": 3}, "framework is 3, must be a string"),
    ],
)
def test_limits_and_frameworks_of_a_wrong_type_are_refused(arguments, message, backend):
    with pytest.raises(TypeError, match=f"^{message}$"):
        decompress(compress(X), **arguments)


def test_parameters_of_a_codec_of_a_wrong_type_are_refused():
    with pytest.raises(TypeError, match=r"^the name of a codec is 8, must be a string$"):
        Codec(8)
    for group in ("64", 64.0, True):
        with pytest.raises(TypeError, match=f"^group is {group!r}, must be an integer$"):
            Codec("int8", group=group)
    for keep in ("0.5", [0.5], True):
        with pytest.raises(TypeError, match=f"^keep is {re.escape(repr(keep))}, must be a number$"):
            Codec("topk", keep=keep)
    for text in (8, None, ["int8"]):
        with pytest.raises(TypeError, match=f"^codec is {re.escape(repr(text))}, must be a string$"):
            Codec.parse(text)


def test_frame_bytes_takes_dtypes_of_both_frameworks():
    expected = 40 + 16 + 4 * 64 + 4 * 2
    for dtype in ("float32", np.float32, np.dtype("float32"), torch.float32, torch.bfloat16, "bfloat16"):
        assert frame_bytes((4, 64), dtype) == expected
        assert frame_bytes(torch.Size([4, 64]), dtype, Codec("int8")) == expected
    with pytest.raises(TypeError, match="cannot compress int32"):
        frame_bytes((4,), np.int32)
    with pytest.raises(ValueError, match="shape has a negative extent"):
        frame_bytes((-1,), np.float32)


def test_numpy_users_never_import_torch(backend):
    program = (
        "import sys, numpy as np; from orbitsplit._codec.codecs import compress, decompress;"
        "decompress(compress(np.ones((3, 4), np.float32)));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path), "ORBITSPLIT_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk"])
def test_frames_do_not_depend_on_threads(codec, backend):
    x = np.random.default_rng(8).standard_normal((70, 1000), np.float32)
    frame = compress(x, codec)
    assert compress(x, codec, threads=3) == frame
    out = bytearray(len(frame) + 100_000)
    assert compress(x, codec, out=out, threads=2) == frame
    decoded = decompress(frame)
    np.testing.assert_array_equal(decompress(frame, threads=3), decoded)
    np.testing.assert_array_equal(decompress(frame, out=np.empty_like(x), threads=2), decoded)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_wrong_number_of_threads_is_refused(threads, backend):
    x = np.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match=f"threads is {threads}, it must be from 1 to 256"):
        compress(x, threads=threads)
    with pytest.raises(ValueError, match=f"threads is {threads}, it must be from 1 to 256"):
        decompress(compress(x), threads=threads)


@only_native
def test_a_forked_child_has_threads_of_its_own(backend):
    code = (
        "import os, sys, numpy as np; from orbitsplit._codec.codecs import compress\n"
        "x = np.ones((2000, 64), np.float32)\n"
        "frame = compress(x, threads=2)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(compress(x, threads=2) != frame)\n"
        "print(os.waitpid(child, 0)[1], compress(x, threads=2) == frame)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert run.stdout.split() == ["0", "True"], run.stderr


class Labelled(np.ndarray):
    """A subclass with nothing beyond its values, as np.memmap is one."""


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*quantize", "ignore:.*nested tensors")
def test_arrays_of_every_kind_are_taken_or_refused_by_name(backend):
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    shifted = np.frombuffer(b"?" + x.tobytes(), np.float32, 24, offset=1).reshape(4, 6)
    read_only = np.frombuffer(x.tobytes(), np.float32).reshape(4, 6)
    encoder = Encoder("int8", (4, 6), "float32")
    for same in (x.view(Labelled), x.view(np.matrix), np.rec.array(x), shifted, read_only, torch.from_numpy(x.copy())):
        assert compress(same) == encoder.encode(same) == compress(x)
    assert decompress(compress(np.array(x[0, 0]))).shape == ()
    for wrong, error, message in (
        (np.ma.masked_array(x, mask=x > 0), TypeError, r"the array is masked, and a frame has no mask; x.filled\(0\)"),
        (np.ma.masked_array(x), TypeError, "the array is masked"),
        (np.asfortranarray(x), ValueError, "the array is not C-contiguous"),
        (x[::-1], ValueError, "the array is not C-contiguous"),
        (x[:, ::-1], ValueError, "the array is not C-contiguous"),
        (np.broadcast_to(x[0], (4, 6)), ValueError, "the array is not C-contiguous"),
        (x.astype(">f4"), TypeError, "cannot compress byte-swapped float32"),
        (x > 0, TypeError, "cannot compress bool"),
        (x.astype(object), TypeError, "cannot compress object"),
        (x.astype(np.complex64), TypeError, "cannot compress complex64"),
        (x.astype(np.longdouble), TypeError, "cannot compress float"),
        (np.zeros((4, 6), [("a", "f4")]), TypeError, "cannot compress void32"),
        (x[0, 0], TypeError, "cannot compress float32: give a NumPy array"),
        (torch.ones(4, 6, dtype=torch.bool), TypeError, "cannot compress bool"),
        (torch.quantize_per_tensor(torch.ones(4, 6), 0.1, 0, torch.quint8), TypeError, "cannot compress quint8"),
        (torch.ones(1, 6).expand(4, 6), ValueError, "the tensor is not contiguous"),
        (
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
            TypeError,
            "cannot compress a nested tensor",
        ),
        (torch._neg_view(torch.ones(4, 6)), ValueError, "the tensor has its negative bit set"),
    ):
        for call in (compress, encoder.encode):
            with pytest.raises(error, match=f"^{message}"):
                call(wrong)


def test_memory_for_an_array_of_every_kind_is_taken_or_refused_by_name(backend):
    frame = compress(np.ones((4, 6), np.float32))
    for wrong, error, message in (
        (np.ma.zeros((4, 6), np.float32), TypeError, "out is masked"),
        (np.zeros((4, 6), np.float32)[::-1], ValueError, "the array is not C-contiguous"),
        (torch._neg_view(torch.ones(4, 6)), ValueError, "the tensor has its negative bit set"),
        ([], TypeError, "out is a list, it must be a NumPy array or a CPU torch tensor"),
        (memoryview(bytearray(96)), TypeError, "out is a memoryview, it must be a NumPy array"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            decompress(frame, out=wrong)


def test_memory_for_a_frame_of_objects_or_with_a_mask_is_refused(backend):
    """Regression: bytes were written over references to objects, which ends the process."""
    objects = np.array([None] * 400)
    with pytest.raises(TypeError, match=r"^out holds Python objects, which bytes must not replace$"):
        compress(X, out=objects)
    with pytest.raises(TypeError, match=r"^out holds Python objects"):
        compress(X, out=np.zeros(100, [("a", "i4"), ("b", "O")]))
    with pytest.raises(TypeError, match=r"^out is masked"):
        compress(X, out=np.ma.zeros(400, np.uint8))
    assert objects.tolist() == [None] * 400


@pytest.mark.parametrize("codec", ["int8", "raw", "topk", "lossless_bf16", CODEC])
def test_overlapping_memory_is_refused(codec, backend):
    """Regression: a frame was written over values that were still to be read, under a checksum that fits."""
    memory = bytearray(1000)
    bound = frame_bytes(X.shape, X.dtype, codec)
    for at in (0, 56, bound // 4 * 4 - 4):
        x = np.frombuffer(memory, np.float32, 16, offset=at).reshape(2, 8)
        with pytest.raises(ValueError, match=r"^the array and the buffer of its frame overlap in memory$"):
            compress(x, codec, out=memory)
    x = np.frombuffer(memory, np.float32, 16, offset=500).reshape(2, 8)
    frame = compress(x, codec, out=memory)  # beside each other in one piece of memory
    for at in (0, 56):
        x = np.frombuffer(memory, np.float32, 16, offset=at).reshape(2, 8)
        with pytest.raises(ValueError, match=r"^the frame and the buffer of its array overlap in memory$"):
            decompress(frame, CODEC, out=x)
    assert frame == compress(np.zeros((2, 8), np.float32), codec)


@pytest.mark.parametrize("shape", [(2**63, 1), (2**70,), (-1, 2), (-(2**70),), (2**62, 2)])
def test_extents_that_no_array_has_are_refused(shape, backend):
    for call in (lambda: frame_bytes(shape, "float32"), lambda: Encoder("int8", shape, "float32")):
        with pytest.raises(ValueError, match=r"^shape has a negative extent or 2\^63 bytes or more$"):
            call()
    with pytest.raises(ValueError, match=r"^shape has a negative extent or 2\^63 bytes or more$"):
        Decoder(shape, "float32")


@pytest.mark.parametrize("shape", [{2, 8}, {2: 0, 8: 0}, b"\2\10", np.array([[2, 8]])])
def test_what_has_no_order_or_depth_of_a_shape_is_refused(shape, backend):
    with pytest.raises(TypeError, match=r"^shape(\[0\])? is .*, must be (a sequence of integers|an integer)$"):
        Encoder("int8", shape, "float32")


@pytest.mark.parametrize("dtype", [["float32"], {}, [("a", "f4")]])
def test_dtypes_that_cannot_be_looked_up_are_refused(dtype, backend):
    with pytest.raises(TypeError, match=r"^cannot compress .*: supported are float32, float16, bfloat16$"):
        frame_bytes((2,), dtype)


def test_a_long_text_is_no_codec():
    with pytest.raises(ValueError, match=r'^codec "int8:9{52}\.\.\." is unknown; valid are raw'):
        compress(X, "int8:" + "9" * 5000)
    with pytest.raises(ValueError, match=r'^codec "x{57}\.\.\." is unknown'):
        Codec("x" * 10**6)
