"""How fast are products with quantised weights? Half the head of Gemma 3 270M beside what torch offers on a CPU.

    pytest benches/bench_weights.py
    pytest benches/bench_weights.py --benchmark-disable     the answers only

Each group is one number of rows of x, one thread. A step of decoding reads every weight once: `read` is how long
reading their bytes takes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orbitsplit import QuantizedWeights

OUTPUTS, COLUMNS = 131_072, 640
ROWS = (1, 4, 8, 128)
PANEL_ROWS = 1024  # 2.6 MB of float32: what is dequantised at a time


@pytest.fixture(scope="module")
def head():
    return np.random.default_rng(1).standard_normal((OUTPUTS, COLUMNS), np.float32) / np.float32(25)


@pytest.fixture(scope="module", params=["int8", "int5", "int4"])
def quantized(request, head):
    return QuantizedWeights.quantize(head, request.param)


@pytest.fixture(params=ROWS)
def x(request):
    torch.set_num_threads(1)
    return np.random.default_rng(2).standard_normal((request.param, COLUMNS), np.float32)


def measure(benchmark, x, run, weight_bytes):
    benchmark.group = f"{len(x)} rows of x"
    result = benchmark(run)
    if benchmark.stats:
        benchmark.extra_info["weights GB/s"] = round(weight_bytes / benchmark.stats.stats.median / 1e9, 2)
    return np.asarray(result)


def check(y, x, weights, tolerance):
    """Compare columns that are spread over the result with the product in float64."""
    chosen = np.arange(0, OUTPUTS, 1021)
    exact = x.astype(float) @ weights[chosen].astype(float).T
    assert np.abs(y[:, chosen] - exact).max() < tolerance * np.abs(exact).max()


def test_ours(benchmark, quantized, x):
    y = measure(benchmark, x, lambda: quantized.matmul(x), quantized.bytes)
    check(y, x, quantized.dequantize(), 1e-4)


def test_ours_by_panels(benchmark, quantized, x):
    """Dequantised some rows at a time for torch's product: the alternative for many rows of x."""
    panel, y = np.empty((PANEL_ROWS, COLUMNS), np.float32), torch.empty(len(x), OUTPUTS)
    of_x, of_panel = torch.from_numpy(x), torch.from_numpy(panel)

    def run():
        for first in range(0, OUTPUTS, PANEL_ROWS):
            quantized.dequantize(slice(first, first + PANEL_ROWS), out=panel)
            y[:, first : first + PANEL_ROWS] = torch.mm(of_x, of_panel.T)
        return y

    check(measure(benchmark, x, run, quantized.bytes), x, quantized.dequantize(), 1e-5)


def test_torch_float32_linear(benchmark, head, x):
    weights, of_x = torch.from_numpy(head), torch.from_numpy(x)
    y = measure(benchmark, x, lambda: torch.nn.functional.linear(of_x, weights), head.nbytes)
    check(y, x, head, 1e-5)


def test_torch_float32_mm(benchmark, head, x):
    weights, of_x = torch.from_numpy(head), torch.from_numpy(x)
    y = measure(benchmark, x, lambda: torch.mm(weights, of_x.T), head.nbytes)
    check(y.T, x, head, 1e-5)


def test_torch_bfloat16(benchmark, head, x):
    weights, of_x = torch.from_numpy(head).bfloat16(), torch.from_numpy(x).bfloat16()
    y = measure(benchmark, x, lambda: torch.nn.functional.linear(of_x, weights).float(), head.nbytes // 2)
    check(y, x, head, 0.02)


def test_torch_int8pack(benchmark, head, x):
    """A scale for each row: less exact than groups of 32."""
    scales = np.abs(head).max(axis=1) / np.float32(127)
    codes = torch.from_numpy(np.rint(head / scales[:, None]).astype(np.int8))
    of_x, of_rows = torch.from_numpy(x).bfloat16(), torch.from_numpy(scales).bfloat16()
    y = measure(benchmark, x, lambda: torch._weight_int8pack_mm(of_x, codes, of_rows).float(), codes.numel())
    check(y, x, head, 0.03)


def test_read(benchmark, quantized):
    """Reading alone: the sum of the bytes as 64-bit numbers."""
    benchmark.group = "read"
    words = quantized.data.view(np.uint64)
    total = benchmark(words.sum)
    if benchmark.stats:
        benchmark.extra_info["GB/s"] = round(words.nbytes / benchmark.stats.stats.median / 1e9, 2)
    assert int(total) == sum(int(part) for part in words.reshape(64, -1).sum(axis=1)) % 2**64
