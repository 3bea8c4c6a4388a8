"""The training loop of codecs: divergence of the frozen model, plus a price for what the codec lets through."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ._downstream import DownstreamModel, SampledRows, batch_order
from ._numbers import CodecNumbers

_PRICE_GAIN = 0.05
_RISE_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how fast numbers are trained, from which random numbers, and who hears the share that is done."""

    steps: int
    learning_rate: float
    seed: int = 0
    progress: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.learning_rate > 0:
            raise ValueError(f"steps {self.steps} and learning_rate {self.learning_rate} must be positive")


class Trained(Protocol):
    """Numbers of a codec in training."""

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters, as an optimizer takes them."""
        ...

    def __call__(self, sent: Tensor, usual: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Return what arrives of what is sent, [..., width], and what usual rows take, a scalar.

        `usual` [...] says which rows are no outliers, `done` what share of the training is over.
        """
        ...


def train(
    codec: Trained,
    downstream: DownstreamModel,
    batches: list[int],
    sample: SampledRows,
    training: Training,
    *,
    takes: float,
    price: float,
) -> None:
    """Train a codec on some batches so that the model strays least while usual rows take about `takes`.

    `price` is the Lagrange multiplier at the start; it rises while more is taken and falls while less is.
    """
    optimizer = torch.optim.Adam(codec.groups(training.learning_rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, training.steps))
    generator = torch.Generator().manual_seed(training.seed)
    for step, batch in enumerate(batch_order(batches, training.steps, generator)):
        sent = downstream.sent(batch)
        received, taken = codec(sent, sample.is_inlier(sent), step / training.steps)
        optimizer.zero_grad()
        torch.autograd.backward(downstream.divergence(batch, received) + price * taken)
        optimizer.step()
        schedule.step()
        price *= math.exp(_PRICE_GAIN * max(-1.0, min(1.0, taken.item() / takes - 1)))
        if training.progress is not None:
            training.progress((step + 1) / training.steps)


@torch.no_grad()
def mean_divergence(downstream: DownstreamModel, numbers: CodecNumbers, batches: list[int]) -> float:
    """Return how far the model strays with a codec, the mean over batches."""
    return statistics.fmean(
        downstream.divergence(batch, numbers.received(downstream.sent(batch))).item() for batch in batches
    )


def _share_of_rate(step: int, steps: int) -> float:
    """Rise over the first steps, then fall along a cosine."""
    return min(1.0, (step + 1) / _RISE_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
