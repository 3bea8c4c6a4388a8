"""Codes, scales and minima inside matrices in int4 and int5: the formula of `weights.hpp` is the judge."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from orbitsplit import QuantizedWeights
from orbitsplit._weights.int4 import group_scales, with_codes

ROWS, COLUMNS = 7, 96
LARGEST: dict[Literal["int4", "int5"], int] = {"int4": 15, "int5": 31}
both = pytest.mark.parametrize("weight_format", LARGEST)


def quantized(weight_format: Literal["int4", "int5"] = "int4", seed: int = 0) -> QuantizedWeights:
    values = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return QuantizedWeights.quantize(values, weight_format)


@both
def test_other_codes_are_read_as_the_formula_says(weight_format: Literal["int4", "int5"]) -> None:
    weights = quantized(weight_format)
    codes = np.random.default_rng(1).integers(0, LARGEST[weight_format] + 1, (ROWS, COLUMNS)).astype(np.uint8)
    scales, minima = group_scales(weights)
    assert scales.shape == minima.shape == (ROWS, COLUMNS // 32)
    expected = scales.repeat(32, axis=1) * codes - minima.repeat(32, axis=1)
    np.testing.assert_allclose(with_codes(weights, codes).dequantize(), expected, rtol=1e-6, atol=1e-6)


def test_the_original_is_left_as_it_is() -> None:
    weights = quantized()
    before = weights.data.copy()
    with_codes(weights, np.zeros((ROWS, COLUMNS), np.uint8))
    assert np.array_equal(weights.data, before)


@both
def test_the_same_codes_give_the_same_bytes(weight_format: Literal["int4", "int5"]) -> None:
    weights = quantized(weight_format)
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


def test_codes_beyond_five_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes must be uint8 from 0 to 31 of shape \(7, 96\)"):
        with_codes(quantized("int5"), np.full((ROWS, COLUMNS), 32, np.uint8))


def test_other_formats_are_refused() -> None:
    weights = QuantizedWeights.quantize(np.ones((1, 32), np.float32), "int8")
    with pytest.raises(ValueError, match="weights are in int8, must be in int4 or int5"):
        group_scales(weights)
