"""Trained codecs: better than what they start from, at the bits that were asked, and exactly what frames carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit.calibration import _candidates
from orbitsplit.calibration._distill import distill
from orbitsplit.calibration._fit import finish
from orbitsplit.calibration._mask import learn_mask
from orbitsplit.calibration._numbers import CodecNumbers, entropy_bits
from orbitsplit.calibration._statistics import CutStatistics
from orbitsplit.calibration._training import Training
from tests.support.tiny_encoders import tiny_images, tiny_vit

WIDTH, ROWS, BATCHES = 16, 256, 10


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Quadratic:
    """A model that reads some channels a hundred times more closely than others: divergence is a weighted square."""

    def __init__(self, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(WIDTH, WIDTH, generator=generator)
        self._rows = [torch.randn(ROWS, WIDTH, generator=generator) @ mixing for _ in range(BATCHES)]
        self.weight = torch.logspace(-2, 0, WIDTH)

    @property
    def batches(self) -> int:
        return BATCHES

    def sent(self, batch: int) -> Tensor:
        return self._rows[batch]

    def divergence(self, batch: int, received: Tensor) -> Tensor:
        return (((received - self._rows[batch]) * self.weight) ** 2).sum(-1).mean()


def plain() -> CodecNumbers:
    return CodecNumbers(step=np.ones(WIDTH, np.float32), shift=np.zeros(WIDTH, np.float32))


def judge(downstream: Quadratic, numbers: CodecNumbers) -> float:
    """Return the divergence of real frames, over all batches."""
    given = {name: getattr(numbers, name) for name in ("step", "shift", "scale", "threshold", "matrix", "inverse")}
    codec = osp.CalibratedCodec(codebook=1, rounding=numbers.rounding, shrink=numbers.shrink, **given)
    arrived = [
        osp.decompress(osp.compress(downstream.sent(batch), codec), codec, framework="torch")
        for batch in range(BATCHES)
    ]
    return float(np.mean([downstream.divergence(batch, received) for batch, received in enumerate(arrived)]))


def test_distillation_beats_its_start_at_the_same_bits() -> None:
    downstream = Quadratic()
    found = distill(downstream, plain(), bits=2.0, training=Training(steps=150, learning_rate=0.03))
    assert found.bits == pytest.approx(2.0, rel=0.01)
    rows = torch.cat([downstream.sent(batch) for batch in range(BATCHES)])
    start = _with_bits(plain(), rows, 2.0)
    # Reverse water-filling: with one step for all, what is read closely is sent no better than what is not.
    assert judge(downstream, found.numbers) < 0.5 * judge(downstream, start)
    assert found.divergence < found.divergence_before


def _with_bits(numbers: CodecNumbers, rows: Tensor, bits: float) -> CodecNumbers:
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        scaled = replace(numbers, step=numbers.step * np.float32(middle))
        low, high = (middle, high) if entropy_bits(scaled.codes(rows)) > bits else (low, middle)
    return replace(numbers, step=numbers.step * np.float32(high))


@pytest.mark.parametrize("trains_matrix", [False, True])
def test_a_transform_and_its_inverse_stay_inverse(trains_matrix: bool) -> None:
    matrix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)) + 4 * torch.eye(WIDTH)
    inverse = torch.linalg.inv(matrix).numpy()
    start = replace(plain(), matrix=matrix.numpy(), inverse=inverse, inverse_follows=True)
    training = Training(steps=40, learning_rate=0.03)
    found = distill(Quadratic(), start, bits=3.0, trains_matrix=trains_matrix, training=training).numbers
    assert found.inverse_follows == (not trains_matrix)
    assert found.matrix is not None
    assert found.inverse is not None
    np.testing.assert_allclose(found.inverse @ found.matrix, np.eye(WIDTH), atol=1e-4)
    if trains_matrix:
        assert np.abs(found.matrix - matrix.numpy()).max() > 1e-3
    downstream = Quadratic()
    assert judge(downstream, found) == pytest.approx(_reference(downstream, found), rel=1e-3)


def _reference(downstream: Quadratic, numbers: CodecNumbers) -> float:
    return float(np.mean([downstream.divergence(b, numbers.received(downstream.sent(b))) for b in range(BATCHES)]))


@pytest.mark.parametrize(("bits", "value_bits"), [(1.0, 4), (3.0, 8)])
def test_a_mask_learns_what_is_read(bits: float, value_bits: int) -> None:
    downstream = Quadratic()
    training = Training(steps=120, learning_rate=0.05)
    found = learn_mask(downstream, bits=bits, value_bits=value_bits, training=training)
    assert found.bits == pytest.approx(bits, rel=0.01)
    assert 0 < found.kept < 1
    assert found.divergence < found.divergence_before
    threshold, spread = found.numbers.threshold, torch.cat([downstream.sent(b) for b in range(BATCHES)]).std(0).numpy()
    assert threshold is not None
    # Channels that are read a hundred times more closely are kept from smaller magnitudes on.
    assert np.median((threshold / spread)[-4:]) < np.median((threshold / spread)[:4])


def test_what_is_finished_takes_the_bits_of_real_frames() -> None:
    downstream = Quadratic()
    rows = torch.cat([downstream.sent(batch) for batch in range(BATCHES)])
    numbers = learn_mask(downstream, bits=2.0, value_bits=4, training=Training(steps=5, learning_rate=0.05)).numbers
    fitted = finish(numbers, rows, 2.0, varies="threshold")
    given: dict[str, Any] = {**fitted.arrays, **fitted.scalars}
    frame = osp.compress(rows, osp.CalibratedCodec(codebook=1, **given))
    # Beside the codes there are the header, and for each stream of 256 rows two sizes and 64 states of two bytes, which
    # carry some of the codes themselves.
    beside = 56 + len(rows) // 256 * (128 + 8)
    assert 8 * (len(frame) - beside) <= 2.0 * rows.numel() <= 8 * len(frame)
    assert fitted.bits_per_element == pytest.approx(2.0, rel=0.005)


@pytest.mark.parametrize(
    "train",
    [lambda downstream, **o: learn_mask(downstream, **o), lambda downstream, **o: distill(downstream, plain(), **o)],
)
def test_the_same_seed_gives_the_same_numbers(train: Any) -> None:
    training = Training(steps=10, learning_rate=0.03, seed=3)
    first, second = (train(Quadratic(), bits=2.0, training=training).numbers for _ in range(2))
    np.testing.assert_array_equal(first.step, second.step)
    np.testing.assert_array_equal(first.shift, second.shift)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="value_bits is 9, it must be from 2 to 8"):
        learn_mask(Quadratic(), bits=2.0, value_bits=9)
    with pytest.raises(ValueError, match="must be positive"):
        Training(steps=0, learning_rate=0.1)


def test_a_kind_without_a_branch_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was trained as "trained", under another name.
    monkeypatch.setattr(_candidates, "KINDS", (*_candidates.KINDS, "new"))
    sources = _candidates.Sources(
        statistics=CutStatistics.empty(WIDTH, is_whole=True), fitted=lambda _name: Quadratic(), seed=0
    )
    with pytest.raises(ValueError, match="codec 'new' is not calibrated, those are channel, fisher, klt, mask, tra"):
        next(_candidates.candidates(["new"], [2.0], sources, Quadratic()))


def test_calibrate_trains_and_a_codebook_has_the_results() -> None:
    model, data = tiny_vit(), tiny_images(96)
    asked: dict[str, Any] = {"cuts": [1, 2], "levels": (2.0,), "hull_only": False, "seed": 1}
    book = osp.calibrate(model, data, codecs=("mask", "trained"), **asked)
    for cut in book.cuts:
        assert {level.name for level in book.levels(cut)} == {"mask 2", "trained 2"}
        mask = book[cut, book.level_of(cut, "mask 2")]
        assert isinstance(mask, osp.CalibratedCodec)
        assert mask.threshold is not None
    # Masks of a later cut are trained on what those of the earlier cuts leave.
    alone = osp.calibrate(model, data, codecs=("mask",), **{**asked, "cuts": [2]})
    ours, theirs = book[2, book.level_of(2, "mask 2")], alone[2, 0]
    assert isinstance(ours, osp.CalibratedCodec)
    assert isinstance(theirs, osp.CalibratedCodec)
    assert not np.array_equal(ours.threshold, theirs.threshold)
