"""The training loop of codecs: divergence of the frozen model plus a Lagrange multiplier times the rate."""

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

_MULTIPLIER_GAIN = 0.05
_WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Hyperparameters of training; `progress(fraction)` is called after each step."""

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

    def __call__(self, sent: Tensor, inlier: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Return the decoded activation, [..., width], and the rate of the inlier rows, a scalar.

        `inlier` [...] is false for rows that are outliers; `done` is the finished fraction of the training.
        """
        ...


def train(
    codec: Trained,
    downstream: DownstreamModel,
    batches: list[int],
    sample: SampledRows,
    training: Training,
    *,
    target_rate: float,
    multiplier: float,
) -> None:
    """Train a codec on some batches to minimise the divergence at a rate of about `target_rate`.

    `multiplier` is the initial Lagrange multiplier; it rises while the rate is above the target and falls below it.
    """
    optimizer = torch.optim.Adam(codec.groups(training.learning_rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, training.steps))
    generator = torch.Generator().manual_seed(training.seed)
    for step, batch in enumerate(batch_order(batches, training.steps, generator)):
        sent = downstream.sent(batch)
        received, rate = codec(sent, sample.is_inlier(sent), step / training.steps)
        optimizer.zero_grad()
        torch.autograd.backward(downstream.divergence(batch, received) + multiplier * rate)
        optimizer.step()
        schedule.step()
        multiplier *= math.exp(_MULTIPLIER_GAIN * max(-1.0, min(1.0, rate.item() / target_rate - 1)))
        if training.progress is not None:
            training.progress((step + 1) / training.steps)


@torch.no_grad()
def mean_divergence(downstream: DownstreamModel, numbers: CodecNumbers, batches: list[int]) -> float:
    """Return the divergence of the model with a codec, the mean over batches."""
    return statistics.fmean(
        downstream.divergence(batch, numbers.received(downstream.sent(batch))).item() for batch in batches
    )


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear warm-up times a cosine decay."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
