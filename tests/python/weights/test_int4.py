"""Codes, scales and minima inside matrices in int4: the formula of `weights.hpp` is the judge."""

from __future__ import annotations

import numpy as np
import pytest

from orbitsplit import QuantizedWeights
from orbitsplit._weights.int4 import group_scales, with_codes

ROWS, COLUMNS = 7, 96


def quantized(seed: int = 0) -> QuantizedWeights:
    values = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return QuantizedWeights.quantize(values, "int4")


def test_other_codes_are_read_as_the_formula_says() -> None:
    weights = quantized()
    codes = np.random.default_rng(1).integers(0, 16, (ROWS, COLUMNS)).astype(np.uint8)
    scales, minima = group_scales(weights)
    assert scales.shape == minima.shape == (ROWS, COLUMNS // 32)
    expected = scales.repeat(32, axis=1) * codes - minima.repeat(32, axis=1)
    np.testing.assert_allclose(with_codes(weights, codes).dequantize(), expected, rtol=1e-6, atol=1e-6)


def test_the_original_is_left_as_it_is() -> None:
    weights = quantized()
    before = weights.data.copy()
    with_codes(weights, np.zeros((ROWS, COLUMNS), np.uint8))
    assert np.array_equal(weights.data, before)


def test_the_same_codes_give_the_same_bytes() -> None:
    weights = quantized()
    scales, minima = (numbers.repeat(32, axis=1) for numbers in group_scales(weights))
    codes = np.rint((weights.dequantize() + minima) / scales).astype(np.uint8)
    assert np.array_equal(with_codes(weights, codes).data, weights.data)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((ROWS, COLUMNS), np.int64),
        np.zeros((ROWS, COLUMNS - 32), np.uint8),
        np.full((ROWS, COLUMNS), 16, np.uint8),
    ],
)
def test_other_shapes_types_and_ranges_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"codes must be uint8 from 0 to 15 of shape \(7, 96\)"):
        with_codes(quantized(), codes)


def test_other_formats_are_refused() -> None:
    weights = QuantizedWeights.quantize(np.ones((1, 32), np.float32), "int8")
    with pytest.raises(ValueError, match="weights are in int8, must be in int4"):
        group_scales(weights)
