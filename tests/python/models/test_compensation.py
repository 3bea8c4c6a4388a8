"""Errors of weights in int4 that compensate each other: optimal brain quantisation in float64 is the judge."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from orbitsplit import QuantizedWeights
from orbitsplit._models.compensation import DAMPING, compensated
from orbitsplit._weights.int4 import group_scales

Doubles = npt.NDArray[np.float64]


def sample(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return weights, and the second moments of inputs that go together in parts and have different sizes."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator)
    causes = torch.randn(4 * columns, columns // 4, generator=generator)
    x = causes @ torch.randn(columns // 4, columns, generator=generator)
    x = (x + 0.5 * torch.randn(x.shape, generator=generator)) * torch.rand(columns, generator=generator)
    return weights, (x.t() @ x).double()


def error(weights: Tensor, stored: QuantizedWeights, moments: Tensor) -> float:
    """Return the mean square of what errors of weights change in outputs."""
    rest = weights.double() - torch.from_numpy(stored.dequantize()).double()
    return float(((rest @ moments) * rest).sum())


def brain_surgeon(weights: Doubles, moments: Doubles, scales: Doubles, minima: Doubles) -> Doubles:
    """Round column after column and adapt those that are left: the inverse of what is left is computed anew each time.

    That is optimal brain quantisation with a given order, of which GPTQ is a fast form.
    """
    left = list(np.argsort(-moments.diagonal(), kind="stable"))
    damped = moments + np.eye(len(moments)) * DAMPING * moments.diagonal().mean()
    w, stored = weights.copy(), np.empty_like(weights)
    while left:
        column, group = left[0], left[0] // 32
        code = np.rint((w[:, column] + minima[:, group]) / scales[:, group]).clip(0, 15)
        stored[:, column] = scales[:, group] * code - minima[:, group]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        change = (w[:, column] - stored[:, column]) / inverse[0, 0]
        w[:, left] -= change[:, None] * inverse[0]
        left.pop(0)
    return stored


def test_codes_are_those_of_the_slow_method() -> None:
    weights, moments = sample(24, 96)
    found = compensated(weights, moments)
    scales, minima = (numbers.astype(np.float64) for numbers in group_scales(found))
    expected = brain_surgeon(weights.double().numpy(), moments.numpy(), scales, minima)
    same = np.isclose(found.dequantize(), expected, rtol=0, atol=1e-5)
    # float32 decides a few ties in the other way, and then what follows in that row differs.
    assert same.mean() > 0.98


@pytest.mark.parametrize("weight_format", ["int4", "int5"])
@pytest.mark.parametrize("columns", [32, 96, 160])
def test_errors_in_outputs_are_less_than_half_of_those_of_rounding(
    columns: int, weight_format: Literal["int4", "int5"]
) -> None:
    weights, moments = sample(64, columns)
    diagonal = moments.diagonal().float().numpy()
    rounded = QuantizedWeights.quantize(weights.numpy(), weight_format, importance=diagonal)
    found = compensated(weights, moments, weight_format=weight_format)
    assert found.format == weight_format
    assert error(weights, found, moments) < 0.5 * error(weights, rounded, moments)


def test_inputs_that_have_nothing_in_common_leave_rounding_as_it_is() -> None:
    weights, _ = sample(16, 64)
    diagonal = torch.linspace(0.5, 2.0, 64)
    rounded = QuantizedWeights.quantize(weights.numpy(), "int4", importance=diagonal.numpy())
    found = compensated(weights, torch.diag(diagonal).double())
    assert (found.data == rounded.data).mean() > 0.999


def test_modules_that_got_nothing_are_rounded() -> None:
    weights, _ = sample(8, 64)
    found = compensated(weights, torch.zeros(64, 64, dtype=torch.float64))
    assert np.array_equal(found.data, QuantizedWeights.quantize(weights.numpy(), "int4").data)


def test_columns_without_inputs_are_no_obstacle() -> None:
    weights, moments = sample(8, 64)
    moments[:, 40:] = 0
    moments[40:] = 0
    found = torch.from_numpy(compensated(weights, moments).dequantize())
    assert found.isfinite().all()
    assert error(weights, compensated(weights, moments), moments) < error(
        weights, QuantizedWeights.quantize(weights.numpy(), "int4"), moments
    )


def test_tall_tables_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moments = sample(50, 64)
    whole = compensated(weights, moments)
    monkeypatch.setattr("orbitsplit._models.compensation._ROWS", 16)
    assert (compensated(weights, moments).data == whole.data).mean() > 0.99
