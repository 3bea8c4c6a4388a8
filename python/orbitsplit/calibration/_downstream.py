"""The part of a model that training a codec needs: the activation at a cut, and the layers behind it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ._statistics import OUTLIER_RATIO

_HELD_OUT_EACH = 5


class DownstreamModel(Protocol):
    """The layers behind one cut of a frozen model, on batches of data.

    Every fifth batch is held out to evaluate what is trained on the others, so batches must not share texts or images.
    """

    @property
    def batches(self) -> int:
        """The number of batches."""
        ...

    def sent(self, batch: int) -> Tensor:
        """Return the activation at the cut for a batch, [..., width] in float32, without a gradient."""
        ...

    def divergence(self, batch: int, received: Tensor) -> Tensor:
        """Return the divergence of the model's outputs when the layers behind the cut get `received`, [..., width].

        A scalar, the mean over tokens or samples (Kullback-Leibler: nats), differentiable in `received`.
        """
        ...


class SampledRows:
    """Rows of the activation, equally many from all batches of a downstream model.

    `rows` [R, width] are the inliers; `outlier_norm` is the norm from which a row is an outlier.

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
            raise ValueError("at least half of all rows are zero, a codec cannot be trained on them")
        self.rows = rows[norms < self.outlier_norm]

    def is_inlier(self, sent: Tensor) -> Tensor:
        """Return whether each row of [..., width] is no outlier, [...]."""
        inlier: Tensor = sent.norm(dim=-1) < self.outlier_norm
        return inlier


def training_batches(batches: int) -> tuple[list[int], list[int]]:
    """Return the batches to train on and the held-out ones: every fifth, or all for both if there are fewer."""
    held_out = list(range(_HELD_OUT_EACH - 1, batches, _HELD_OUT_EACH))
    everything = list(range(batches))
    return (
        ([batch for batch in everything if batch not in held_out], held_out) if held_out else (everything, everything)
    )


def batch_order(batches: list[int], steps: int, generator: torch.Generator) -> list[int]:
    """Return the batch of each training step: passes over all batches, each in random order."""
    passes = -(-steps // len(batches))
    order = torch.cat([torch.randperm(len(batches), generator=generator) for _ in range(passes)])
    return [batches[index] for index in order[:steps].tolist()]


def _evenly(rows: Tensor, count: int) -> Tensor:
    """Return `count` of the rows, evenly spaced, or all."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).long()]
