"""Do the codecs pay on a slow link? Encode and decode beside a copy of the memory and what NumPy and PyTorch offer.

    pytest benches/bench_codec.py
    pytest benches/bench_codec.py --benchmark-disable     the answers only

Each group is one question, its columns comparable within a run: one thread, float32 input, checksums included for ours.
"""

from __future__ import annotations

import contextlib
import zlib

import numpy as np
import pytest
import torch

from orbitsplit._backend import load_backend, use_backend
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import compress, decompress, frame_bytes
from orbitsplit._codec.stateful import Decoder, Encoder

# A prefill message of 4096 tokens of width 640 (10.5 MB), and a decode step of one.
SHAPES = {"prefill": (4096, 640), "decode step": (1, 640)}
GROUP = 64


@pytest.fixture(params=SHAPES)
def case(request):
    torch.set_num_threads(1)
    return request.param, activation(SHAPES[request.param])


def activation(shape):
    """Normal values with a few channels a hundred times the rest, as in language models."""
    x = np.random.default_rng(4).standard_normal(shape, np.float32)
    x[:, np.random.default_rng(5).choice(shape[1], 4, replace=False)] *= 100
    return x


def measure(benchmark, group, case, run):
    """Time `run` on memory that is already mapped, and return its last result."""
    name, x = case
    benchmark.group = f"{group}, {name}"
    result = benchmark(run)
    if benchmark.stats:
        benchmark.extra_info["input GB/s"] = round(x.nbytes / benchmark.stats.stats.median / 1e9, 2)
    return result


def int8_error_bound(x):
    """Half a scale for each element, the scale a little more than largest / 127."""
    largest = np.abs(x.reshape(x.shape[0], -1, GROUP)).max(axis=2)
    return np.repeat(largest / 127 * (0.5 + 2**-7), GROUP, axis=1)


def numpy_int8(x):
    groups = x.reshape(-1, GROUP)
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(groups / scale).astype(np.int8), scale


def torch_int8(x):
    groups = x.view(-1, GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(groups / scale).to(torch.int8), scale


def test_encode_copy(benchmark, case):
    out = np.empty_like(case[1])
    measure(benchmark, "encode", case, lambda: np.copyto(out, case[1]))
    np.testing.assert_array_equal(out, case[1])


def test_encode_numpy_int8(benchmark, case):
    codes, scale = measure(benchmark, "encode", case, lambda: numpy_int8(case[1]))
    error = np.abs((codes * scale).reshape(case[1].shape) - case[1])
    assert np.all(error <= int8_error_bound(case[1]))


def test_encode_torch_int8(benchmark, case):
    x = torch.from_numpy(case[1])
    codes, scale = measure(benchmark, "encode", case, lambda: torch_int8(x))
    error = np.abs((codes * scale).reshape(x.shape).numpy() - case[1])
    assert np.all(error <= int8_error_bound(case[1]))


def test_encode_torch_bf16(benchmark, case):
    x = torch.from_numpy(case[1])
    result = measure(benchmark, "encode", case, x.bfloat16)
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4"])
def test_encode(benchmark, case, codec):
    frame = measure(benchmark, "encode", case, lambda: compress(case[1], codec))
    check_decoded(decompress(frame), case[1], codec)


def test_encode_numba(benchmark, case):
    expected = compress(case[1], "int8")
    with use_backend("numba"):
        assert measure(benchmark, "encode", case, lambda: compress(case[1], "int8")) == expected


def test_decode_copy(benchmark, case):
    out = np.empty_like(case[1])
    measure(benchmark, "decode", case, lambda: np.copyto(out, case[1]))
    np.testing.assert_array_equal(out, case[1])


def test_decode_numpy_int8(benchmark, case):
    codes, scale = numpy_int8(case[1])
    decoded = measure(benchmark, "decode", case, lambda: codes * scale)
    assert np.all(np.abs(decoded.reshape(case[1].shape) - case[1]) <= int8_error_bound(case[1]))


def test_decode_torch_int8(benchmark, case):
    codes, scale = torch_int8(torch.from_numpy(case[1]))
    decoded = measure(benchmark, "decode", case, lambda: codes * scale)
    assert np.all(np.abs(decoded.reshape(case[1].shape).numpy() - case[1]) <= int8_error_bound(case[1]))


def test_decode_torch_bf16(benchmark, case):
    x = torch.from_numpy(case[1]).bfloat16()
    decoded = measure(benchmark, "decode", case, x.float)
    check_decoded(decoded.numpy(), case[1], "bf16")


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4"])
def test_decode(benchmark, case, codec):
    frame = compress(case[1], codec)
    check_decoded(measure(benchmark, "decode", case, lambda: decompress(frame)), case[1], codec)


def test_decode_numba(benchmark, case):
    frame = compress(case[1])
    expected = decompress(frame)
    with use_backend("numba"):
        np.testing.assert_array_equal(measure(benchmark, "decode", case, lambda: decompress(frame)), expected)


def check_decoded(decoded, x, codec):
    bound = {
        "raw": 0.0,
        "bf16": 2.0**-8 * np.abs(x),
        "int8": int8_error_bound(x),
        "int4": int8_error_bound(x) * 127 / 7,
    }[codec]
    assert np.all(np.abs(decoded - x) <= bound)


KEEP = 0.25


def sparsified(x):
    """Rows with all but the largest quarter of magnitudes set to zero, by sorting."""
    order = np.argsort(-np.abs(x), axis=1, kind="stable")[:, : round(KEEP * x.shape[1])]
    result = np.zeros_like(x)
    np.put_along_axis(result, order, np.take_along_axis(x, order, axis=1), axis=1)
    return result


def test_topk_numpy(benchmark, case):
    x = case[1]
    kept = round(KEEP * x.shape[1])
    chosen = measure(benchmark, "top 25 %", case, lambda: np.argpartition(-np.abs(x), kept, axis=1)[:, :kept])
    assert np.abs(np.take_along_axis(x, chosen, axis=1)).sum() == pytest.approx(np.abs(sparsified(x)).sum(), 1e-4)


def test_topk_torch(benchmark, case):
    x = torch.from_numpy(case[1])
    kept = round(KEEP * x.shape[1])
    values = measure(benchmark, "top 25 %", case, lambda: x.abs().topk(kept, dim=1)).values
    assert float(values.double().sum()) == pytest.approx(np.abs(sparsified(case[1])).sum(dtype=np.float64), 1e-4)


def test_topk(benchmark, case):
    frame = measure(benchmark, "top 25 %", case, lambda: compress(case[1], f"topk:{KEEP}"))
    np.testing.assert_allclose(decompress(frame), sparsified(case[1]), rtol=2.0**-8)


@pytest.mark.parametrize("name", ["crc32c native", "crc32c numba", "zlib.crc32"])
def test_checksum(benchmark, case, name):
    data = case[1].tobytes()
    function = zlib.crc32 if name == "zlib.crc32" else load_backend(name.split()[1]).crc32c
    check = 0xCBF43926 if name == "zlib.crc32" else 0xE3069283
    assert function(b"123456789") == check
    result = measure(benchmark, "checksum", case, lambda: function(data))
    assert result == (zlib.crc32(data) if name == "zlib.crc32" else load_backend("numba").crc32c(data))


# A decode step of one sequence, in models of 270 million and of 70 billion parameters.
ROWS = (640, 8192)


@pytest.fixture(params=ROWS)
def row(request):
    torch.set_num_threads(1)
    return activation((1, request.param))


def measure_row(benchmark, x, run):
    benchmark.group = f"codec one row, {x.shape[1]}"
    result = benchmark(run)
    if benchmark.stats:
        benchmark.extra_info["best us"] = round(benchmark.stats.stats.min * 1e6, 2)
    return result


def test_one_row_copied(benchmark, row):
    """Twice, as an encoder and a decoder pass over it twice."""
    there, back = np.empty_like(row), np.empty_like(row)
    measure_row(benchmark, row, lambda: (np.copyto(there, row), np.copyto(back, there)))
    np.testing.assert_array_equal(back, row)


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "topk:0.1"])
@pytest.mark.parametrize("dtype", ["array", "float32", "bfloat16"])
def test_one_row(benchmark, row, codec, dtype):
    """Encode and decode through Python, into memory that is reused."""
    x = row if dtype == "array" else torch.from_numpy(row).to(getattr(torch, dtype))
    encoder, decoder = Encoder(codec, x.shape, x.dtype), Decoder(x.shape, x.dtype)
    decoded = measure_row(benchmark, row, lambda: decoder.decode(encoder.encode(x)))
    assert type(decoded) is type(x)
    expected = decompress(compress(x, codec), framework="torch")
    torch.testing.assert_close(torch.as_tensor(decoded), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_one_row_by_functions(benchmark, row, kind):
    x = row if kind == "array" else torch.from_numpy(row)
    frame, out = bytearray(frame_bytes(x.shape, x.dtype)), np.empty_like(row)
    decoded = measure_row(benchmark, row, lambda: decompress(compress(x, out=frame), out=out))
    check_decoded(decoded, row, "int8")


# Calibrated codecs, also of a wide model: codes stored as they are, or coded by static tables, beside a copy.
CALIBRATED_SHAPES = {"prefill": (4096, 640), "wide": (640, 4096), "decode step": (1, 640), "wide step": (1, 8192)}


def calibrated(width, *, is_coded):
    """A codec for normal channels, four of them a hundred times the rest: steps from deviations, tables from counts."""
    rng = np.random.default_rng(6)
    deviation = activation((200, width)).std(axis=0)
    step = deviation / (2 if is_coded else 20)
    if not is_coded:
        return CalibratedCodec(codebook=1, step=step)
    codes = np.rint(rng.standard_normal(100_000) * 2).astype(np.int8).view(np.uint8)
    counts = np.bincount(codes, minlength=256)
    tables = np.repeat([counts * 254 // counts.sum()], 8, axis=0)
    return CalibratedCodec(codebook=1, step=step, tables=tables, table_of_channel=np.arange(width) % 8)


@pytest.fixture(params=CALIBRATED_SHAPES)
def calibrated_case(request):
    return request.param, activation(CALIBRATED_SHAPES[request.param])


def check_calibrated(decoded, x, codec):
    """Half a step, or bfloat16's error where a number is beyond the codes."""
    assert np.all(np.abs(decoded - x) <= np.maximum(codec.step * 0.501, np.abs(x) * 2.0**-8))


@pytest.mark.parametrize("kind", ["stored", "coded"])
def test_encode_calibrated(benchmark, calibrated_case, kind):
    x = calibrated_case[1]
    codec = calibrated(x.shape[1], is_coded=kind == "coded")
    encoder = Encoder(codec, x.shape, x.dtype)
    frame = measure(benchmark, "codec calibrated, encode", calibrated_case, lambda: encoder.encode(x))
    assert len(frame) < x.nbytes * (0.15 if kind == "coded" else 0.4)
    check_calibrated(decompress(frame, codec), x, codec)


@pytest.mark.parametrize("kind", ["stored", "coded"])
def test_decode_calibrated(benchmark, calibrated_case, kind):
    x = calibrated_case[1]
    codec = calibrated(x.shape[1], is_coded=kind == "coded")
    decoder, frame = Decoder(x.shape, x.dtype, codebook=codec), compress(x, codec)
    decoded = measure(benchmark, "codec calibrated, decode", calibrated_case, lambda: decoder.decode(frame))
    check_calibrated(decoded, x, codec)


# A whole matrix in front of the coder, beside a product of the same sizes in NumPy, which may sum in any order.
MATRIX_SHAPES = {"prefill": (4096, 640), "decode step": (1, 640), "wide step": (1, 2048)}


@pytest.fixture(params=MATRIX_SHAPES, scope="module")
def matrix_case(request):
    x = activation(MATRIX_SHAPES[request.param])
    n = x.shape[1]
    matrix = np.linalg.qr(np.random.default_rng(7).standard_normal((n, n)))[0]
    coded = calibrated(n, is_coded=True)
    # The massive channels are spread over all: one step for all of them.
    step = np.full(n, np.sqrt(np.mean(np.square(activation((200, n))))) / 2, np.float32)
    tables = {"tables": coded.tables, "table_of_channel": coded.table_of_channel}
    return (request.param, x), CalibratedCodec(codebook=1, step=step, matrix=matrix, inverse=matrix.T, **tables)


def check_matrix(decoded, x, codec):
    """The error of a row: as that of its codes, by norm."""
    y = x @ codec.matrix.T
    bound = np.maximum(codec.step * 0.501, np.abs(y) * 2.0**-8)
    assert np.all(np.linalg.norm(decoded - x, axis=1) <= np.linalg.norm(bound, axis=1) * 1.001)


@pytest.mark.parametrize("isa", load_backend("native").isas())
def test_encode_matrix(benchmark, matrix_case, isa):
    case, codec = matrix_case
    x = case[1]
    encoder = Encoder(codec, x.shape, x.dtype)
    with forced(isa):
        frame = measure(benchmark, "codec calibrated with a matrix, encode", case, lambda: encoder.encode(x))
    check_matrix(decompress(frame, codec), x, codec)


@pytest.mark.parametrize("isa", load_backend("native").isas())
def test_decode_matrix(benchmark, matrix_case, isa):
    case, codec = matrix_case
    x = case[1]
    decoder, frame = Decoder(x.shape, x.dtype, codebook=codec), compress(x, codec)
    with forced(isa):
        decoded = measure(benchmark, "codec calibrated with a matrix, decode", case, lambda: decoder.decode(frame))
    check_matrix(decoded, x, codec)


@pytest.mark.parametrize("group", ["encode", "decode"])
def test_numpy_beside_matrix(benchmark, matrix_case, group):
    (name, x), codec = matrix_case
    transposed = np.ascontiguousarray(codec.matrix.T)
    out = np.empty_like(x)
    product = measure(
        benchmark, f"codec calibrated with a matrix, {group}", (name, x), lambda: np.matmul(x, transposed, out=out)
    )
    np.testing.assert_allclose(np.linalg.norm(product, axis=1), np.linalg.norm(x, axis=1), rtol=1e-4)


@pytest.mark.parametrize("group", ["encode", "decode"])
def test_copy_beside_calibrated(benchmark, calibrated_case, group):
    x = calibrated_case[1]
    out = np.empty_like(x)
    measure(benchmark, f"codec calibrated, {group}", calibrated_case, lambda: np.copyto(out, x))
    np.testing.assert_array_equal(out, x)


@pytest.fixture(scope="module")
def large():
    """65.5 MB, which no cache holds."""
    return activation((25_600, 640))


@pytest.mark.parametrize("threads", [1, 2])
def test_encode_calibrated_by_threads(benchmark, large, threads):
    codec = calibrated(large.shape[1], is_coded=True)
    encoder = Encoder(codec, large.shape, large.dtype, threads=threads)
    benchmark.group = "codec threads, encode 65.5 MB"
    frame = benchmark(lambda: encoder.encode(large))
    check_calibrated(decompress(frame, codec), large, codec)


@pytest.mark.parametrize("threads", [1, 2])
def test_decode_calibrated_by_threads(benchmark, large, threads):
    codec = calibrated(large.shape[1], is_coded=True)
    decoder, frame = Decoder(large.shape, large.dtype, codebook=codec, threads=threads), compress(large, codec)
    benchmark.group = "codec threads, decode 65.5 MB"
    check_calibrated(benchmark(lambda: decoder.decode(frame)), large, codec)


# A message of 512 tokens of width 4096, of which a tenth is kept.
TOPK_SHAPE, TOPK_KEPT = (512, 4096), 410


@pytest.fixture(scope="module")
def wide():
    torch.set_num_threads(1)
    return activation(TOPK_SHAPE)


def kept_magnitudes(x):
    """The largest magnitudes of each row in order, by sorting."""
    return -np.sort(-np.abs(x), axis=1)[:, :TOPK_KEPT]


def measure_wide(benchmark, x, run):
    benchmark.group = "codec top-k, 10 % of [512, 4096]"
    result = benchmark(run)
    if benchmark.stats:
        benchmark.extra_info["input GB/s"] = round(x.nbytes / benchmark.stats.stats.median / 1e9, 2)
    return result


def test_wide_copy(benchmark, wide):
    out = np.empty_like(wide)
    measure_wide(benchmark, wide, lambda: np.copyto(out, wide))
    np.testing.assert_array_equal(out, wide)


def test_wide_argpartition(benchmark, wide):
    chosen = measure_wide(benchmark, wide, lambda: np.argpartition(-np.abs(wide), TOPK_KEPT, axis=1)[:, :TOPK_KEPT])
    found = -np.sort(-np.abs(np.take_along_axis(wide, chosen, axis=1)), axis=1)
    np.testing.assert_array_equal(found, kept_magnitudes(wide))


def test_wide_torch(benchmark, wide):
    x = torch.from_numpy(wide)
    found = measure_wide(benchmark, wide, lambda: x.abs().topk(TOPK_KEPT, dim=1)).values
    np.testing.assert_array_equal(found.numpy(), kept_magnitudes(wide))


@pytest.mark.parametrize("isa", load_backend("native").isas())
def test_wide_encode(benchmark, wide, isa):
    """The whole frame: selection, values, positions, checksum."""
    with forced(isa):
        frame = measure_wide(benchmark, wide, lambda: compress(wide, "topk:0.1"))
    check_wide(decompress(frame), wide)


@pytest.mark.parametrize("isa", load_backend("native").isas())
def test_wide_decode(benchmark, wide, isa):
    frame, out = compress(wide, "topk:0.1"), np.empty_like(wide)
    with forced(isa):
        check_wide(measure_wide(benchmark, wide, lambda: decompress(frame, out=out)), wide)


def check_wide(decoded, x):
    is_kept = decoded != 0
    assert np.all(is_kept.sum(axis=1) == TOPK_KEPT)
    np.testing.assert_allclose(decoded[is_kept], x[is_kept], rtol=2.0**-8)
    found = np.abs(np.where(is_kept, x, 0))
    np.testing.assert_array_equal(-np.sort(-found, axis=1)[:, :TOPK_KEPT], kept_magnitudes(x))


@contextlib.contextmanager
def forced(isa):
    core = load_backend("native")
    before = core.isa()
    core.set_isa(isa)
    try:
        yield
    finally:
        core.set_isa(before)


# int8 into memory that is already mapped, on each instruction set, beside a copy of the same array.
ISAS = load_backend("native").isas()


@pytest.fixture(params=ISAS)
def isa(request):
    native = load_backend("native")
    chosen = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(chosen)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_copy_beside_int8(benchmark, case, direction):
    out = np.empty_like(case[1])
    measure(benchmark, f"codec int8, {direction}", case, lambda: np.copyto(out, case[1]))
    np.testing.assert_array_equal(out, case[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_encode(benchmark, case, isa, threads):
    x = case[1]
    out = bytearray(frame_bytes(x.shape, x.dtype, "int8"))
    frame = measure(benchmark, "codec int8, encode", case, lambda: compress(x, "int8", out=out, threads=threads))
    check_decoded(decompress(frame), x, "int8")


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_decode(benchmark, case, isa, threads):
    x = case[1]
    frame = compress(x, "int8")
    out = np.zeros_like(x)
    measure(benchmark, "codec int8, decode", case, lambda: decompress(frame, out=out, threads=threads))
    check_decoded(out, x, "int8")
