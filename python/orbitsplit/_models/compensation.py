"""Weights in 4 or 5 bits whose rounding errors compensate each other: those of a row for the inputs that it gets.

The method is GPTQ (arXiv 2210.17323): columns are rounded one after the other, those of the largest inputs first, and
the error of each is taken off the columns that are not rounded yet, as least squares says.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from orbitsplit._weights.int4 import GROUP, LARGEST_CODE, group_scales, with_codes
from orbitsplit._weights.quantized import QuantizedWeights

# Added to the diagonal of the second moments, times its mean: they are of few tokens.
DAMPING = 0.03
# Of a table that is also looked up: there every column counts alike.
TIED_DAMPING = 0.1
# Columns whose errors reach the columns behind them in one product.
_BLOCK = 64
# Rows that are rounded at a time, so that copies of a large table take little memory.
_ROWS = 16384


def compensated(
    values: Tensor, moments: Tensor, *, damping: float = DAMPING, weight_format: Literal["int4", "int5"] = "int4"
) -> QuantizedWeights:
    """Quantise a matrix W [rows, columns] to int4 or int5 such that the mean square of (W - W') x is small.

    `moments` [columns, columns] is the sum of x x^T over some inputs; scales and minima are fitted to its diagonal.
    Raises `ValueError` for values that cannot be quantised.
    """
    diagonal = moments.diagonal()
    if not bool(diagonal.any()):
        return QuantizedWeights.quantize(values.numpy(), weight_format)
    order = torch.argsort(diagonal, descending=True)
    factor = _inverse_factor(moments[order][:, order], damping)
    grids = QuantizedWeights.quantize(values.numpy(), weight_format, importance=diagonal.float().numpy())
    scales, minima = (torch.from_numpy(numbers) for numbers in group_scales(grids))
    codes = torch.empty(values.shape, dtype=torch.uint8)
    for start in range(0, len(values), _ROWS):
        part = slice(start, start + _ROWS)
        of_column = order // GROUP
        grid = scales[part][:, of_column].t().contiguous(), minima[part][:, of_column].t().contiguous()
        transposed = values[part][:, order].t().contiguous()
        codes[part, order] = _rounded(transposed, *grid, factor, LARGEST_CODE[weight_format]).t()
    return with_codes(grids, codes.numpy())


def _damped(moments: Tensor, damping: float) -> Tensor:
    diagonal = moments.diagonal()
    damped: Tensor = moments.double() + torch.diag((damping * diagonal.mean()).expand(len(diagonal)).double())
    return damped


def _inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U = M^-1, of the damped moments M."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(moments, damping)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _rounded(values: Tensor, scales: Tensor, minima: Tensor, factor: Tensor, largest: int) -> Tensor:
    """Return the codes of transposed weights [columns, rows], which are changed; all arguments are in one order."""
    columns, rows = values.shape
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    inverses = torch.where(scales > 0, 1 / scales, 0.0)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty(stop - start, rows)
        for column in range(start, stop):
            code = ((values[column] + minima[column]) * inverses[column]).round_().clamp_(0, largest)
            codes[column] = code
            stored = scales[column] * code - minima[column]
            error = errors[column - start] = (values[column] - stored) / factor[column, column]
            values[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        values[stop:] -= factor[start:stop, stop:].t() @ errors
    return codes
