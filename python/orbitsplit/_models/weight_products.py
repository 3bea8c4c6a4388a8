"""Products of torch tensors with quantized weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from orbitsplit._weights.refined import Matrix

# The most rows of x that are multiplied with quantized weights; for more it is faster to dequantize a panel at a time
# (`pytest benches/bench_weights.py`).
FEW_ROWS = 96
# The size of a panel of dequantized weights.
_PANEL_BYTES = 2 << 20


def product(matrix: Matrix, x: Tensor) -> Tensor:
    """Return x W^T [..., rows of W] for contiguous float32 x [..., columns of W]."""
    rows, columns = matrix.shape
    y = torch.empty((*x.shape[:-1], rows))
    if x.numel() <= FEW_ROWS * columns:
        matrix.matmul(x.numpy(), threads=torch.get_num_threads(), out=y.numpy())
    else:
        _multiply_panels(matrix, x.view(-1, columns), y.view(-1, rows))
    return y


def _multiply_panels(matrix: Matrix, x: Tensor, y: Tensor) -> None:
    rows, columns = matrix.shape
    size = max(1, _PANEL_BYTES // (4 * columns))
    panel = np.empty((size, columns), np.float32)
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        matrix.dequantize(slice(start, stop), out=panel[: stop - start])
        torch.mm(x, torch.from_numpy(panel[: stop - start]).t(), out=y[:, start:stop])
