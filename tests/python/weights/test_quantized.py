"""Weights in 8 and 4 bits: what is stored, what comes back, products against float64, refusals."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from orbitsplit import QuantizedWeights
from orbitsplit._backend import load_backend, use_backend
from orbitsplit._weights.quantized import quantized_bytes
from tests.judges import weights as judge

FORMATS = ("int8", "int4", "int5")


@pytest.fixture(params=["native", "numba"], autouse=True)
def _backend(request):
    with use_backend(request.param):
        yield


def values(rows, columns, seed=1):
    """Normal values, with scales of rows and groups that differ."""
    rng = np.random.default_rng(seed)
    scales = np.exp2(rng.integers(-6, 3, (rows, columns // 32)))
    return (rng.standard_normal((rows, columns)) * np.repeat(scales, 32, axis=1)).astype(np.float32)


def test_int8_is_q8_0_byte_for_byte():
    w = values(50, 640)
    w[3, 64:96] = 0
    w[4, 5] = -w[4, :32].max() * 2
    w[5] *= np.float32(1e-7)  # scales that are subnormal in float16, or 0
    weights = QuantizedWeights.quantize(w, "int8")
    expected = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(weights.data.reshape(expected.shape), expected)
    np.testing.assert_array_equal(
        weights.dequantize(), gguf.quants.dequantize(expected, gguf.GGMLQuantizationType.Q8_0)
    )


def test_any_q8_0_block_is_read():
    """Codes of -128, which we do not write, and scales of any bits."""
    blocks = np.random.default_rng(2).integers(0, 256, (40, 10 * 34), np.uint8)
    blocks[:, 1::34] &= 0xBF  # finite
    blocks[0] = 0x80
    weights = QuantizedWeights("int8", (40, 320), blocks)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(weights.dequantize(), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_values_are_what_the_bytes_say(format):
    weights = QuantizedWeights.quantize(values(9, 96), format)
    exact = judge.dequantised(weights.data, format, weights.shape)
    np.testing.assert_allclose(weights.dequantize(), exact, rtol=0, atol=np.abs(exact).max() * 2**-21)


def test_int4_is_better_than_rounding_between_minimum_and_maximum():
    """The search is worth a fifth of the squared error of what its 16 codes would give without it."""
    w = np.random.default_rng(3).standard_normal((64, 640)).astype(np.float32)
    groups = w.reshape(64, -1, 32)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    step = (groups.max(axis=2, keepdims=True) - low) / 15
    plain = np.rint((groups - low) / step) * step + low
    found = QuantizedWeights.quantize(w, "int4").dequantize()
    assert np.square(found - w).sum() < 0.85 * np.square(plain - groups).sum()


def test_int5_has_a_quarter_of_the_squared_error_of_int4():
    w = np.random.default_rng(3).standard_normal((64, 640)).astype(np.float32)
    of_int4, of_int5 = (np.square(QuantizedWeights.quantize(w, f).dequantize() - w).sum() for f in ("int4", "int5"))
    assert 0.2 < of_int5 / of_int4 < 0.27


def test_weights_that_were_q5_0_come_back_but_for_scales_and_minima_in_8_bits():
    rng = np.random.default_rng(4)
    w = (rng.standard_normal((500, 32)) * np.exp2(rng.uniform(-1, 1, (500, 1)))).astype(np.float32).reshape(50, 320)
    kind = gguf.GGMLQuantizationType.Q5_0
    w = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    error = np.linalg.norm(QuantizedWeights.quantize(w, "int5").dequantize() - w) / np.linalg.norm(w)
    assert error < 0.012  # five bits alone: 0.04


def test_importance_moves_errors_to_where_they_do_not_matter():
    w = values(64, 320)
    importance = np.where(np.arange(320) % 4 == 0, 50, 1).astype(np.float32)
    plain, weighted = (QuantizedWeights.quantize(w, "int4", importance=k).dequantize() for k in (None, importance))
    of_plain, of_weighted = np.square(plain - w), np.square(weighted - w)
    assert (of_weighted * importance).sum() < 0.8 * (of_plain * importance).sum()
    assert of_plain.sum() < of_weighted.sum()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [0.0, -0.75, 0.75, 1e-30, -(2.0**-149)])
def test_groups_of_one_value(format, value):
    w = np.full((3, 64), value, np.float32)
    w[1] = 0
    found = QuantizedWeights.quantize(w, format).dequantize()
    np.testing.assert_allclose(found, w, rtol=2**-11, atol=2**-24 if format == "int8" else 2**-148)


def test_sizes():
    int8, int4, int5 = (QuantizedWeights.quantize(np.ones((10, 640), np.float32), format) for format in FORMATS)
    assert (int5.bytes, int5.bits_per_weight) == (4480, 5.6)
    assert (int8.bytes, int8.bits_per_weight) == (6800, 8.5)
    assert (int4.bytes, int4.bits_per_weight) == (3680, 4.6)
    assert quantized_bytes("int4", (10, 640)) == 3680
    assert np.isnan(QuantizedWeights.quantize(np.ones((0, 32), np.float32), "int8").bits_per_weight)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(0,), (1,), (8,), (13,), (2, 3), ()])
def test_products_are_as_exact_as_promised(format, shape):
    weights = QuantizedWeights.quantize(values(70, 320), format)
    x = values(int(np.prod(shape)), 320, seed=4)
    y = weights.matmul(x.reshape(*shape, 320))
    assert y.dtype == np.float32
    assert y.shape == (*shape, 70)
    exact = x.astype(float) @ judge.dequantised(weights.data, format, weights.shape).T
    error = np.abs(y.reshape(-1, 70) - exact)
    bound = judge.product_bound(weights.data, format, weights.shape, x)
    assert np.all(error <= bound)
    assert error.max(initial=0) <= 2.0**-14 * np.abs(exact).max(initial=0)  # the bound is that of the worst case


@pytest.mark.parametrize("format", FORMATS)
def test_the_largest_codes_do_not_saturate(format):
    data = np.full(quantized_bytes(format, (2, 64)), 0x80 if format == "int8" else 0xFF, np.uint8)
    lines = data.reshape(2, -1)
    if format == "int8":
        lines[:, [0, 34]], lines[:, [1, 35]] = 0x00, 0x3C
    else:
        lines[:, :8] = np.array([1, 1], np.float32).view(np.uint8)
    x = np.array([[32639.0], [-32639.0]], np.float32).repeat(64, axis=1)
    w = {"int8": -128, "int4": 255 * 15 - 255, "int5": 255 * 31 - 255}[format]
    expected = np.array([[w * 64 * 32639.0] * 2, [-w * 64 * 32639.0] * 2])
    np.testing.assert_allclose(QuantizedWeights(format, (2, 64), data).matmul(x), expected, rtol=2**-22)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_value_that_is_not_finite_gives_nan(format, value):
    weights = QuantizedWeights.quantize(values(5, 64), format)
    for place in range(64):
        x = np.ones((3, 64), np.float32)
        x[1, place] = value
        y = weights.matmul(x)
        assert np.isfinite(y[[0, 2]]).all()
        assert (y[1].view(np.uint32) == 0x7FC00000).all()


@pytest.mark.parametrize("format", FORMATS)
def test_rows(format):
    weights = QuantizedWeights.quantize(values(20, 64), format)
    everything = weights.dequantize()
    for rows in (slice(None), slice(3, 9), slice(-4, None), slice(15, 99), slice(9, 3)):
        np.testing.assert_array_equal(weights.dequantize(rows), everything[rows])
    for indices in ([3, 3, 19], [[0], [7]], [], np.int32(4), np.array([1, 2], np.uint8)):
        np.testing.assert_array_equal(weights.rows(indices), everything[np.asarray(indices, np.int64)])
    out = np.zeros((6, 64), np.float32)
    assert weights.dequantize(slice(3, 9), out=out, threads=2) is out
    np.testing.assert_array_equal(out, everything[3:9])
    assert weights.rows([5] * 6, out=out) is out
    np.testing.assert_array_equal(out, everything[[5] * 6])
    y = np.zeros((2, 20), np.float32)
    x = values(2, 64, seed=5)
    assert weights.matmul(x, out=y, threads=2) is y
    np.testing.assert_array_equal(y, weights.matmul(x))


def test_a_memory_map_at_any_address(tmp_path):
    weights = QuantizedWeights.quantize(values(20, 64), "int4")
    (tmp_path / "w").write_bytes(b"x" + weights.data.tobytes())
    mapped = np.memmap(tmp_path / "w", np.uint8, "r", 1)
    again = QuantizedWeights("int4", weights.shape, mapped)
    assert np.shares_memory(again.data, mapped)
    x = values(3, 64, seed=6)
    np.testing.assert_array_equal(again.matmul(x), weights.matmul(x))


def test_the_data_is_read_only_and_not_copied():
    data = np.zeros((2, 34), np.uint8)
    weights = QuantizedWeights("int8", (2, 32), data)
    assert np.shares_memory(weights.data, data)
    assert data.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        weights.data[0] = 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda w: QuantizedWeights("int6", (1, 32), w.data),
            ValueError,
            "format is 'int6', must be one of int8, int4, int5",
        ),
        (lambda w: QuantizedWeights(8, (1, 32), w.data), TypeError, "format is 8"),
        (lambda w: QuantizedWeights("int8", (4, 33), w.data), ValueError, "columns is 33, it must be a multiple of 32"),
        (lambda w: QuantizedWeights("int8", (-4, 32), w.data), ValueError, "rows is -4, it must be at least 0"),
        (lambda w: QuantizedWeights("int8", (1 << 70, 32), w.data), ValueError, "the matrix has 2.63 bytes or more"),
        (lambda w: QuantizedWeights("int8", (4.0, 32), w.data), TypeError, "rows is 4.0, must be an integer"),
        (lambda w: QuantizedWeights("int8", 4, w.data), TypeError, r"shape is 4, it must be \(rows, columns\)"),
        (
            lambda w: QuantizedWeights("int8", (4, 32), w.data),
            ValueError,
            "data has 272 bytes, .* have 136",
        ),
        (
            lambda w: QuantizedWeights("int8", (4, 64), bytes(272)),
            TypeError,
            "data is a bytes, it must be a uint8 arr",
        ),
        (lambda w: QuantizedWeights("int8", (2, 64), w.data[::2]), ValueError, "data is not C-contiguous"),
        (lambda w: QuantizedWeights.quantize(np.ones(32), "int8"), ValueError, "values has 1 axes, a matrix has 2"),
        (
            lambda w: QuantizedWeights.quantize([[np.inf] * 32], "int4"),
            ValueError,
            "row 0 has a weight that is not f",
        ),
        (lambda w: QuantizedWeights.quantize([[9e6] * 32], "int8"), ValueError, "row 0 has a weight that int8 cannot"),
        (
            lambda w: QuantizedWeights.quantize([[1.0] * 32], "int4", importance=[-1.0] * 32),
            ValueError,
            "importance must be finite and at least 0",
        ),
        (
            lambda w: QuantizedWeights.quantize([[1.0] * 32], "int4", importance=[1.0] * 3),
            ValueError,
            "importance has 3 values, the shape needs 32",
        ),
        (lambda w: w.matmul([1.0] * 64), TypeError, "x is a list, it must be a float32 array"),
        (lambda w: w.matmul(np.ones((1, 64))), TypeError, "x is an array of float64, it must be a float32 array"),
        (lambda w: w.matmul(np.ones((1, 32), np.float32)), ValueError, r"x has the shape \(1, 32\), .* 64 elements"),
        (lambda w: w.matmul(np.ones((64, 64), np.float32).T), ValueError, "x is not C-contiguous and aligned"),
        (
            lambda w: w.matmul(np.ones((2, 64), np.float32), out=np.ones((2, 3), np.float32)),
            ValueError,
            "out has the sh",
        ),
        (lambda w: w.matmul(np.ones((2, 64), np.float32), threads=0), ValueError, "threads is 0, it must be from 1 to"),
        (
            lambda w: w.matmul(np.ones((2, 64), np.float32), threads=1.0),
            TypeError,
            "threads is 1.0, must be an integer",
        ),
        (lambda w: w.dequantize(2), TypeError, "rows is int, it must be a slice"),
        (lambda w: w.dequantize(slice(0, 4, 2)), ValueError, "rows has the step 2, it must have none"),
        (lambda w: w.dequantize(out=np.ones((4, 64))), TypeError, "out is an array of float64"),
        (lambda w: w.rows([1.5]), TypeError, "indices is an array of float64, it must have integers"),
        (lambda w: w.rows([0, 4]), ValueError, "row 4 is not one of the 4 rows"),
        (lambda w: w.rows([-1]), ValueError, "row -1 is not one of the 4 rows"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(QuantizedWeights.quantize(values(4, 64), "int8"))


def test_an_output_that_is_read_only():
    out = np.zeros((1, 4), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        QuantizedWeights.quantize(values(4, 64), "int8").matmul(np.ones((1, 64), np.float32), out=out)


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_memory_of_another_size_is_refused_by_the_core(backend):
    """What the class cannot pass on; C++ callers and both backends get the same messages."""
    core = load_backend(backend)
    data, x, y = np.zeros(68, np.uint8), np.ones(32, np.float32), np.ones(2, np.float32)
    for call, message in (
        (lambda: core.quantized_bytes(3, 1, 32), "weight format 3 is unknown; 0 is int8, 1 is int4, 2 is int5"),
        (lambda: core.multiply(data[:60], 0, 2, 32, x, 1, y), "data has 60 bytes, the shape needs 68"),
        (lambda: core.multiply(data, 0, 2, 32, x[:31], 1, y), "x has 31 values, the shape needs 32"),
        (lambda: core.multiply(data, 0, 2, 32, x, 1, y[:1]), "y has 1 values, the shape needs 2"),
        (lambda: core.dequantize(data, 0, 2, 32, 2, x), "rows 2 to 3 are not within the 2 rows"),
        (lambda: core.dequantize(data, 0, 2, 32, 0, x[:30]), "out has 30 values, the shape needs 0"),
        (lambda: core.dequantize(data, 0, 2, 32, 0, data[1:5]), "out is not aligned in memory"),
        (
            lambda: core.dequantize_rows(data, 0, 2, 32, np.zeros(2, np.int64), x),
            "out has 32 values, 2 rows of 32 columns are to be written",
        ),
        (lambda: core.quantize(x, 0, 1, 32, data, x[:0]), "out has 68 bytes, the shape needs 34"),
        (lambda: core.quantize(x, 0, 2, 32, data, x[:0]), "values has 32 values, the shape needs 64"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
