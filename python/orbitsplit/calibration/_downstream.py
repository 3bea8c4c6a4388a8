"""What training a codec needs of a model: what a cut sends, and how the layers behind it take what arrives."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ._statistics import OUTLIER_RATIO

_JUDGED_EACH = 5


class DownstreamModel(Protocol):
    """What lies behind one cut of a frozen model, for some batches of data.

    Every fifth batch judges what is trained on the others, so batches must not share texts or images.
    """

    @property
    def batches(self) -> int:
        """The number of batches."""
        ...

    def sent(self, batch: int) -> Tensor:
        """Return what the cut sends for a batch, [..., width] in float32, without a gradient."""
        ...

    def divergence(self, batch: int, received: Tensor) -> Tensor:
        """Return how far the model strays when the layers behind the cut get `received`, shaped as what was sent.

        A scalar, the mean over tokens or samples (Kullback-Leibler: nats), differentiable in `received`.
        """
        ...


class SampledRows:
    """Rows from all batches of a downstream model, as many of each, and how they are spread.

    `rows` [R, width] are those that are no outliers; `outlier_norm` is the norm from which a row is one.

    Raises:
        ValueError: The downstream has no batches, or all its rows are zero.
    """

    def __init__(self, downstream: DownstreamModel, *, limit: int = 16384) -> None:
        if downstream.batches < 1:
            raise ValueError("the downstream model has no batches, a codec needs data to be trained on")
        share = max(1, limit // downstream.batches)
        rows = torch.cat([_evenly(downstream.sent(batch).flatten(0, -2), share) for batch in range(downstream.batches)])
        norms = rows.norm(dim=-1)
        self.outlier_norm = OUTLIER_RATIO * norms.median().item()
        if not self.outlier_norm > 0:
            raise ValueError("half of all rows are zero, there is nothing to train a codec on")
        self.rows = rows[norms < self.outlier_norm]

    def is_inlier(self, sent: Tensor) -> Tensor:
        """Say of each row of [..., width] whether it is no outlier, [...]."""
        usual: Tensor = sent.norm(dim=-1) < self.outlier_norm
        return usual


def training_batches(batches: int) -> tuple[list[int], list[int]]:
    """Return the batches to train on and those to judge the result by: every fifth, or all if there are too few."""
    judged = list(range(_JUDGED_EACH - 1, batches, _JUDGED_EACH))
    everything = list(range(batches))
    return ([batch for batch in everything if batch not in judged], judged) if judged else (everything, everything)


def batch_order(batches: list[int], steps: int, generator: torch.Generator) -> list[int]:
    """Return which batch each training step uses: all of them in random order, again and again."""
    passes = -(-steps // len(batches))
    order = torch.cat([torch.randperm(len(batches), generator=generator) for _ in range(passes)])
    return [batches[index] for index in order[:steps].tolist()]


def _evenly(rows: Tensor, count: int) -> Tensor:
    """Return `count` of the rows, evenly spaced, or all."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).long()]
