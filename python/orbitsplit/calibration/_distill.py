"""The trained codec: its numbers are trained by distillation, with a Lagrange multiplier on the bits of its codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._downstream import DownstreamModel, SampledRows, training_batches
from ._numbers import ESCAPE, CodecNumbers, Floats, entropy_bits, quantised, with_bits
from ._training import Training, mean_divergence, train

# The least probability of a code, which also accounts for the escape that all tables have.
_FLOOR = 2.0**-16
_TRAINING = Training(steps=300, learning_rate=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Numbers of a trained codec, its bits per element for an ideal entropy coder, and the divergence before and after
    training, at equal bits, on held-out batches."""

    numbers: CodecNumbers
    bits: float
    divergence_before: float
    divergence: float


def distill(
    downstream: DownstreamModel,
    initial: CodecNumbers,
    *,
    bits: float,
    trains_matrix: bool = False,
    training: Training = _TRAINING,
) -> Distilled:
    """Train the numbers of a codec through the frozen model, for `bits` per element after entropy coding.

    Steps, shift, shrink and (if `initial` has a matrix) scale and matrix minimise the divergence plus a Lagrange
    multiplier times the bits, which is adapted to the target. Codes are rounded in the forward pass with a
    straight-through gradient; bits are those of one Laplace distribution per channel at codes with uniform noise
    (Balle et al. 2017). Cayley's map keeps the matrix orthogonal. At the end one factor on all steps makes `bits` exact
    for an ideal coder. The initial numbers are returned if the divergence on held-out batches did not fall.

    Raises:
        ValueError: `bits` cannot be reached, or the downstream model has no usable data.
    """
    sample = SampledRows(downstream)
    start = with_bits(initial, sample.rows, bits)
    trained, held_out = training_batches(downstream.batches)
    before = mean_divergence(downstream, start, held_out)
    generator = torch.Generator().manual_seed(training.seed)
    codec = _Trained(start, sample.rows, generator, trains_matrix=trains_matrix)
    # The multiplier at which the first step is optimal, if the divergence grows with the square of the step.
    multiplier = 2 * math.log(2) * max(before, 1e-6) / min(bits, 1.0)
    train(codec, downstream, trained, sample, training, target_rate=bits, multiplier=multiplier)
    distilled = with_bits(codec.numbers(), sample.rows, bits)
    after = mean_divergence(downstream, distilled, held_out)
    numbers = distilled if after < before else start
    return Distilled(
        numbers=numbers,
        bits=entropy_bits(numbers.codes(sample.rows)),
        divergence_before=before,
        divergence=min(before, after),
    )


class _Trained(nn.Module):
    """The numbers in training; the parameters are relative changes, 0 at the start."""

    def __init__(self, start: CodecNumbers, rows: Tensor, generator: torch.Generator, *, trains_matrix: bool) -> None:
        super().__init__()
        self._start, self._generator = start, generator
        self._trains_matrix = trains_matrix and start.matrix is not None
        width = start.width
        self._step, self._scale, self._shift = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self._skew = nn.Parameter(torch.zeros(width if self._trains_matrix else 0, width))
        self._shrink = nn.Parameter(torch.tensor(start.shrink))
        u = start.transformed(rows) / torch.from_numpy(start.step)
        self._log_spread = nn.Parameter(u.abs().mean(0).clamp_min(0.05).log())
        self._deviation = rows.std(0)

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters for an optimizer; the matrix, whose width^2 parameters rotate all channels, is slow."""
        slow = {"params": [self._skew], "lr": learning_rate / math.sqrt(self._start.width)}
        others = [self._step, self._scale, self._shift, self._shrink, self._log_spread]
        return [slow, {"params": others, "lr": learning_rate}]

    def forward(self, sent: Tensor, inlier: Tensor, _done: float) -> tuple[Tensor, Tensor]:
        """Return the decoded activation, [..., width], and the bits per element of the inlier rows."""
        # Not by a clamp in the graph: beyond its ends its gradient is zero, and the value would stay there.
        self._shrink.data.clamp_(0, 0.49)
        step, shift, scale, matrix, inverse = self._current()
        y = (sent - shift) * scale if matrix is None else ((sent - shift) * scale) @ matrix.T
        u = y / step
        with torch.no_grad():
            codes = quantised(u, torch.ones(()), rounding=self._start.rounding)
        shrunk = codes.sign() * (codes.abs() - self._shrink)
        y_received = torch.where(codes == ESCAPE, y, (u + (codes - u).detach() + shrunk - codes) * step)
        received = y_received if inverse is None else y_received @ inverse.T
        noisy = u[inlier] + torch.rand(u[inlier].shape, generator=self._generator) - 0.5
        return received / scale + shift, laplace_bits(noisy, self._log_spread.exp()).mean()

    def numbers(self) -> CodecNumbers:
        with torch.no_grad():
            step, shift, scale, matrix, inverse = self._current()
        return CodecNumbers(
            step=step.numpy(),
            shift=shift.numpy(),
            scale=None if matrix is None else scale.numpy(),
            matrix=None if matrix is None else matrix.numpy(),
            inverse=None if self._start.inverse is None or inverse is None else inverse.numpy(),
            rounding=self._start.rounding,
            shrink=self._shrink.clamp(0, 0.49).item(),
            inverse_follows=self._start.inverse_follows and not self._trains_matrix,
        )

    def _current(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        start, width = self._start, self._start.width
        step = torch.from_numpy(start.step) * self._step.exp()
        shift = _or(start.shift, torch.zeros(width)) + self._shift * self._deviation
        if start.matrix is None:  # a scale would be redundant with the steps
            return step, shift, torch.ones(width), None, None
        matrix = torch.from_numpy(start.matrix)
        inverse = matrix.T if start.inverse is None else torch.from_numpy(start.inverse)
        if self._trains_matrix:
            rotation = _rotation(self._skew)
            matrix, inverse = rotation @ matrix, inverse @ rotation.T
        return step, shift, _or(start.scale, torch.ones(width)) * self._scale.exp(), matrix, inverse


def laplace_bits(u: Tensor, spread: Tensor) -> Tensor:
    """Return the bits of each code u [..., width], which may be fractional: -log2 of the probability of u - 1/2 to
    u + 1/2 under a Laplace distribution with mean magnitude `spread` [width]."""
    magnitude, half = u.abs(), 0.5
    inside = 1 - (torch.exp((magnitude.clamp_max(half) - half) / spread) + torch.exp((-magnitude - half) / spread)) / 2
    beyond = magnitude.clamp_min(half)
    outside = (torch.exp((half - beyond) / spread) - torch.exp((-half - beyond) / spread)) / 2
    probability = torch.where(magnitude < half, inside, outside)
    return -(probability * (1 - _FLOOR) + _FLOOR).log2()


def _rotation(skew: Tensor) -> Tensor:
    """Return the orthogonal matrix of Cayley's map of the antisymmetric part of a matrix."""
    half = (skew - skew.T) / 2
    identity = torch.eye(len(skew))
    rotation: Tensor = torch.linalg.solve(identity + half, identity - half)
    return rotation


def _or(array: Floats | None, otherwise: Tensor) -> Tensor:
    return otherwise if array is None else torch.from_numpy(array)
