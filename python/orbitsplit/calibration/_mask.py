"""The learned threshold mask: gates trained through the frozen model drop the elements it needs least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._downstream import DownstreamModel, SampledRows, training_batches
from ._numbers import CodecNumbers, entropy_bits, with_bits
from ._training import Training, mean_divergence, train

# A gate opens over a factor e^(1/_SHARPNESS) in magnitude around its threshold, before the temperature sharpens it.
_SHARPNESS = 4.0
_HOT, _COLD = 1.0, 0.15
_TRAINING = Training(steps=200, learning_rate=0.03)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedMask:
    """Numbers of a codec with thresholds, the fraction of elements that it keeps, its bits per element for an ideal
    entropy coder, and the divergence on held-out batches.

    `divergence_before` is that of thresholds in proportion to each channel's standard deviation, at equal bits.
    """

    numbers: CodecNumbers
    kept: float
    bits: float
    divergence_before: float
    divergence: float


def learn_mask(
    downstream: DownstreamModel, *, bits: float, value_bits: int = 8, training: Training = _TRAINING
) -> LearnedMask:
    """Learn for each channel the threshold below which elements are dropped, for `bits` per element when coded.

    Elements within the threshold of their channel's shift become the shift; others are quantised to `value_bits`. The
    gates are Gumbel sigmoids (Maddison et al. 2017) with straight-through estimates, trained with a Lagrange multiplier
    on the fraction they keep, which is adapted to the target; at the end one factor on all thresholds makes `bits`
    exact for an ideal coder. The initial numbers are returned if the divergence on held-out batches did not fall.

    Raises:
        ValueError: `bits` cannot be reached, `value_bits` is not from 2 to 8, or the downstream model has no usable
            data.
    """
    if not 2 <= value_bits <= 8:
        raise ValueError(f"value_bits is {value_bits}, it must be from 2 to 8")
    sample = SampledRows(downstream)
    start = with_bits(_initial(sample.rows, value_bits), sample.rows, bits, of=("threshold",))
    trained, held_out = training_batches(downstream.batches)
    gates = _Gates(start, torch.Generator().manual_seed(training.seed))
    kept = _kept(start, sample.rows)
    # The multiplier at which keeping everything costs as much as the initial divergence.
    multiplier = max(mean_divergence(downstream, start, trained[:1]), 1e-6) / kept
    train(gates, downstream, trained, sample, training, target_rate=kept, multiplier=multiplier)
    learned = with_bits(gates.numbers(), sample.rows, bits, of=("threshold",))
    before, after = (mean_divergence(downstream, numbers, held_out) for numbers in (start, learned))
    numbers = learned if after < before else start
    return LearnedMask(
        numbers=numbers,
        kept=_kept(numbers, sample.rows),
        bits=entropy_bits(numbers.codes(sample.rows)),
        divergence_before=before,
        divergence=min(before, after),
    )


class _Gates(nn.Module):
    """The thresholds and shifts in training."""

    def __init__(self, start: CodecNumbers, generator: torch.Generator) -> None:
        super().__init__()
        assert start.threshold is not None
        assert start.shift is not None
        self._generator = generator
        self._step = torch.from_numpy(start.step)
        self._value_scale = torch.from_numpy(start.threshold)
        self._log_threshold = nn.Parameter(self._value_scale.log())
        # In units of the threshold, so that one learning rate suits all channels.
        self._moved = nn.Parameter(torch.zeros(start.width))
        self._shift = torch.from_numpy(start.shift)

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters for an optimizer."""
        return [{"params": [self._log_threshold, self._moved], "lr": learning_rate}]

    def forward(self, sent: Tensor, inlier: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Return the decoded activation, [..., width], and the fraction of the inlier rows' elements that is kept."""
        temperature = _HOT * (_COLD / _HOT) ** done
        shift = self._shift + self._moved * self._value_scale
        y = sent - shift
        logits = _SHARPNESS * (y.abs().clamp_min(1e-30).log() - self._log_threshold)
        uniform = torch.rand(logits.shape, generator=self._generator).clamp_(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((logits + uniform.logit()) / temperature)
        gate = (soft > 0.5).float() + soft - soft.detach()
        quantised = y + (torch.round(y / self._step) * self._step - y).detach()
        kept = torch.sigmoid(logits / temperature)[inlier].mean()
        return torch.where(inlier[..., None], quantised * gate + shift, sent), kept

    def numbers(self) -> CodecNumbers:
        shift = self._shift + self._moved.detach() * self._value_scale
        return CodecNumbers(
            step=self._step.numpy(), shift=shift.numpy(), threshold=self._log_threshold.detach().exp().numpy()
        )


def _initial(rows: Tensor, value_bits: int) -> CodecNumbers:
    """Return thresholds of one standard deviation, and steps that reach the largest values with `value_bits`."""
    shift = rows.mean(0)
    y = rows - shift
    floor = 1e-6 * y.std()
    step = (y.abs().amax(0) / (2 ** (value_bits - 1) - 1)).clamp_min(floor)
    return CodecNumbers(step=step.numpy(), shift=shift.numpy(), threshold=y.std(0).clamp_min(floor).numpy())


def _kept(numbers: CodecNumbers, rows: Tensor) -> float:
    return (numbers.codes(rows) != 0).float().mean().item()
