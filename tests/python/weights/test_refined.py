"""Matrices in int4 with some rows in int8: values of both formats, and float64 products with them, are the judge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from orbitsplit import QuantizedWeights
from orbitsplit._weights.refined import RefinedWeights

ROWS, COLUMNS = 50, 96
INDICES = [0, 7, 8, 31, 49]


def sample(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def both(indices: list[int]) -> tuple[RefinedWeights, npt.NDArray[np.float32]]:
    """Return a refined matrix, and what its values are: those of int4, and of int8 in the refined rows."""
    values = sample()
    coarse = QuantizedWeights.quantize(values, "int4")
    expected = coarse.dequantize()
    expected[indices] = QuantizedWeights.quantize(values, "int8").dequantize()[indices]
    return RefinedWeights.refine(coarse, indices, values[indices]), expected


@pytest.mark.parametrize("indices", [[3], INDICES, list(range(ROWS))])
def test_values_are_those_of_both_formats(indices: list[int]) -> None:
    weights, expected = both(indices)
    assert np.array_equal(weights.dequantize(), expected)
    for first, stop in ((0, 7), (7, 9), (9, 31), (40, ROWS), (20, 20), (30, 10)):
        assert np.array_equal(weights.dequantize(slice(first, stop)), expected[first:stop])
    out = np.empty((24, COLUMNS), np.float32)
    assert weights.dequantize(slice(8, 32), out=out) is out
    assert np.array_equal(out, expected[8:32])


@pytest.mark.parametrize("wanted", [[], [49], [7, 0, 7, 12, 48, 49], [[31, 30], [8, 8]]])
def test_rows_of_an_embedding(wanted: list[int]) -> None:
    weights, expected = both(INDICES)
    chosen = np.array(wanted, np.int64)
    assert np.array_equal(weights.rows(chosen), expected[chosen])


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 9)])
def test_products(shape: tuple[int, ...]) -> None:
    weights, expected = both(INDICES)
    x = np.random.default_rng(1).normal(size=(*shape, COLUMNS)).astype(np.float32)
    y = np.empty((*shape, ROWS), np.float32)
    assert weights.matmul(x, out=y) is y
    # x is rounded to 16 bits.
    np.testing.assert_allclose(y, x.astype(np.float64) @ expected.T.astype(np.float64), rtol=0, atol=5e-3)


def test_stored_bytes_are_the_matrix_again_at_any_address() -> None:
    weights, expected = both(INDICES)
    assert weights.bytes == 50 * (8 + 6 + 48) + 5 * 4 + 5 * (3 * 34)
    memory = np.concatenate([np.zeros(3, np.uint8), weights.data])
    again = RefinedWeights((ROWS, COLUMNS), len(INDICES), memory[3:])
    assert np.array_equal(again.dequantize(), expected)


@pytest.mark.parametrize("indices", [[3, 3], [8, 7], [-1, 4], [4, ROWS]])
def test_rows_that_are_not_there_or_twice_are_refused(indices: list[int]) -> None:
    values = sample()
    with pytest.raises(ValueError, match="must ascend from 0 to at most 49"):
        RefinedWeights.refine(QuantizedWeights.quantize(values, "int4"), indices, values[:2])


def test_bytes_of_another_number_of_rows_are_refused() -> None:
    weights, _ = both(INDICES)
    with pytest.raises(ValueError, match=r"data has 3630 bytes, weights \(50, 96\) with 4 rows in int8 have 3524"):
        RefinedWeights((ROWS, COLUMNS), 4, weights.data)
    with pytest.raises(ValueError, match="51 rows in int8 of a matrix with 50"):
        RefinedWeights((ROWS, COLUMNS), 51, weights.data)
