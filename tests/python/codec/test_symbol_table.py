"""table_from_counts: the tables of the judge in both backends, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from orbitsplit import CalibratedCodec, compress, decompress
from orbitsplit._backend import load_backend
from tests.judges import stream as judge_stream

BACKENDS = [load_backend("native"), load_backend("numba")]


def some_counts():
    """Counts of every kind: none, one symbol, equal, rare, rounded to a sum of more than 256, large, random."""
    rng = np.random.default_rng(7)
    yield np.zeros(256)
    yield np.eye(256)[200]
    yield np.ones(256)
    yield np.full(256, (1 << 32) - 1)
    yield np.r_[np.ones(255), (1 << 40) - 256]
    yield 2.0 ** np.arange(256) % 1000003
    for deviation in (0.3, 1.0, 4.0, 20.0, 60.0):
        symbols = np.rint(rng.standard_normal(30_000) * deviation).astype(np.int64).astype(np.uint8)
        yield np.bincount(symbols, minlength=256)
    for size in (1, 10, 300, 10_000, 1 << 32):
        yield rng.integers(0, size, 256) * (rng.random(256) < rng.random())


@pytest.mark.parametrize("counts", list(some_counts()))
def test_tables_are_those_of_the_judge(counts):
    counts = counts.astype(np.uint64)
    expected = judge_stream.table_of(counts.tolist())
    del expected[judge_stream.ESCAPE]
    for module in BACKENDS:
        table = module.table_from_counts(counts)
        assert (table.dtype, table.shape) == (np.uint8, (256,))
        assert {s: int(f) for s, f in enumerate(table) if f} == expected


def test_a_codec_takes_the_table():
    x = np.random.default_rng(8).standard_normal((300, 32)).astype(np.float32)
    codes = np.rint(x / 0.5).astype(np.int8).view(np.uint8)
    counts = np.bincount(codes.reshape(-1), minlength=256).astype(np.uint64)
    step = np.full(32, 0.5, np.float32)
    codec = CalibratedCodec(codebook=1, step=step, tables=BACKENDS[0].table_from_counts(counts)[None])
    frame = compress(x, codec)
    share = counts[counts > 0] / counts.sum()
    assert len(frame) < 1.03 * x.size * -(share * np.log2(share)).sum() / 8 + 400
    assert np.all(np.abs(decompress(frame, codec) - x) <= 0.2501)


@pytest.mark.parametrize("module", BACKENDS, ids=["native", "numba"])
def test_other_arrays_are_refused(module):
    with pytest.raises(TypeError):
        module.table_from_counts(np.zeros(256, np.int64))
    with pytest.raises(ValueError, match="counts has 255 numbers in 1 axes, it must have 256 in 1"):
        module.table_from_counts(np.zeros(255, np.uint64))
    for counts in ([1 << 40] + [0] * 255, [1 << 32] * 256, [(1 << 64) - 1] * 256):
        with pytest.raises(ValueError, match="counts add up to 2\\^40 or more, they must add up to less"):
            module.table_from_counts(np.array(counts, np.uint64))
