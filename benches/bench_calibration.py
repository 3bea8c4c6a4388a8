"""How long it takes to fit one level to a cut as wide as that of Gemma 3 270M, and that the peers of the tables are
what they say. The tables themselves: calibrate_gemma.py, calibrate_vit.py, calibrate_minilm.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import orbitsplit as osp
from benches.studies.lossy_peers import language_model_peers
from orbitsplit.calibration._fit import STATISTICAL, fit, geometry
from orbitsplit.calibration._statistics import SAMPLE_ROWS, CutStatistics

WIDTH = 640


@pytest.fixture(scope="module")
def statistics() -> CutStatistics:
    """Statistics of correlated rows, of which the model reads some directions ten times more closely than others."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.logspace(0, -2, WIDTH)
    reading = torch.randn(WIDTH, WIDTH, generator=generator) * torch.logspace(0, -1, WIDTH)
    found = CutStatistics.empty(WIDTH, is_whole=True)
    for _ in range(8):
        rows, gradients = (torch.randn(1024, WIDTH, generator=generator) @ matrix.T for matrix in (mixing, reading))
        found.add(rows, gradients)
        found.keep(rows, SAMPLE_ROWS // 8)
    return found


@pytest.mark.parametrize("kind", STATISTICAL)
@pytest.mark.benchmark(group="fit a level, 640 channels, 4096 rows")
def test_fit(benchmark: Any, statistics: CutStatistics, kind: str) -> None:
    fitted = benchmark(lambda: fit(geometry(kind, statistics), statistics.sample, 2.6))
    given: dict[str, Any] = {**fitted.arrays, **fitted.scalars}
    codec = osp.CalibratedCodec(codebook=1, **given)
    rows = statistics.sample
    frame = osp.compress(rows, codec)
    assert 8 * len(frame) / rows.numel() == pytest.approx(2.6, rel=0.01)
    error = osp.decompress(frame, codec, framework="torch") - rows
    assert float(error.norm() / (rows - rows.mean(0)).norm()) < 0.3


def test_peers_are_what_they_say() -> None:
    rows = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    # Bits per element, and the error of normal numbers as a part of their norm: a step's over sqrt(12), and for top-k
    # what is not kept.
    expected = {
        "int8 per token": (8.03, 0.008),
        "int8, groups of 32 (Q8_0)": (8.5, 0.006),
        "static int8 per channel": (8.0, 0.006),
        "NF4, blocks of 64": (4.125, 0.1),
        "top 25 %, int8": (2.9, 0.55),
        "top 50 %, int8": (5.0, 0.26),
        "Hadamard int4": (4.125, 0.12),
    }
    peers = language_model_peers(rows)
    assert set(peers) == set(expected)
    for name, (bits, error) in expected.items():
        sent = peers[name](rows)
        assert 8 * sent.frame_bytes / rows.numel() == pytest.approx(bits, rel=0.03), name
        found = float((sent.received - rows).norm() / rows.norm())
        assert found == pytest.approx(error, rel=0.35), name
        assert np.isfinite(found)
