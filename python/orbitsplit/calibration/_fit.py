"""Fit a codec of a given number of bits to the statistics of a cut."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orbitsplit._backend import backend
from orbitsplit._codebook.inverses import MOST_WIDTH
from orbitsplit._io.validation import quoted

from ._numbers import ESCAPE, CodecNumbers, Floats
from ._statistics import CutStatistics

# Tables of a codec: channels are sorted by their bits, and neighbours share a table. Eight tables instead of 32 take
# 0.02 bits more on hidden states of Gemma 3 270M, 64 take 0.003 less.
_TABLES = 32

# The ridge added to every sensitivity, as a fraction of their mean: the fewer gradients were sampled per channel, the
# less reliable the smallest sensitivities are. On Gemma 3 270M at 2.5 bits, 3 % is best with gradients of 1 or 2 rows
# of 512 tokens, 1 to 3 % with 5, 0.1 to 0.3 % with 18 and 0.1 % with 88, where 1 % loses 1 to 7 % more.
_RIDGE_OF_ONE_GRADIENT_A_CHANNEL = 0.07
_LEAST_RIDGE, _MOST_RIDGE = 0.001, 0.1

# The relative tolerance of the bits on the sample; other data differ by more.
_BITS_TOLERANCE = 0.002

_MOST_SECANTS = 24

# The most that an inverse in float16 may change a row of signs; codecs refuse an inverse that changes one by 0.01.
_MOST_ROUNDING = 2.0**-10

# Steps are at least 2^-14 of the elements' root mean square: smaller ones would code the rounding of float32 in
# channels without variance.
_MOST_OCTAVES = 14.0

_ESCAPE_BITS = 16.0  # of the value, in addition to the code

STATISTICAL = ("channel", "fisher", "klt")


def geometry(kind: str, statistics: CutStatistics) -> CodecNumbers:
    """Return the error metric of a kind of codec, as numbers whose steps are relative.

    channel   errors are weighted by the inverse of their channel's standard deviation
    fisher    errors are weighted by the diagonal of the Fisher information: their effect on the model's output
    klt       errors are weighted by the whole Fisher information F, in the principal axes of the activation under that
              metric: with F = W W, those of W covariance W. Of all linear transforms this one codes a Gaussian source
              in the fewest bits at a given e'Fe of its errors e (reverse water-filling), and one step is optimal for
              all coordinates.

    Raises `ValueError` for another kind.
    """
    shift = statistics.mean.numpy().astype(np.float32)
    if kind == "channel":
        return CodecNumbers(shift=shift, step=_positive(statistics.variance.sqrt()))
    if kind == "fisher":
        weight = statistics.sensitivity
        weight = (weight + _ridge(statistics) * weight.mean()).sqrt()
        return CodecNumbers(shift=shift, step=_positive(1 / weight.clamp_min(1e-30)))
    if kind == "klt":
        return _principal_axes(statistics, shift)
    raise ValueError(f"codec {quoted(kind)} is not fitted to statistics, those are {', '.join(STATISTICAL)}")


def _ridge(statistics: CutStatistics) -> float:
    channels = len(statistics.total)
    wanted = _RIDGE_OF_ONE_GRADIENT_A_CHANNEL * channels / max(1, statistics.gradients)
    return min(_MOST_RIDGE, max(_LEAST_RIDGE, wanted))


def _principal_axes(statistics: CutStatistics, shift: Floats) -> CodecNumbers:
    fisher = statistics.fisher / max(1, statistics.gradients)
    ridge = max(_ridge(statistics) * float(fisher.diagonal().mean()), 1e-30)
    # In units of the ridge, so that the least sensitivity is 1 for any model.
    sensitivity, axes = torch.linalg.eigh(fisher / ridge + torch.eye(len(fisher), dtype=fisher.dtype))
    root = sensitivity.clamp_min(1.0).sqrt()
    half, inverse_half = (axes * root) @ axes.T, (axes / root) @ axes.T
    _, principal = torch.linalg.eigh(half @ statistics.covariance @ half)
    principal = principal.flip(1)  # the largest first
    return _rounded(shift, (principal.T @ half).numpy(), (inverse_half @ principal).numpy())


def _rounded(shift: Floats, matrix: npt.NDArray[np.float64], inverse: npt.NDArray[np.float64]) -> CodecNumbers:
    """Return the numbers with a matrix that float16 has exactly, and the inverse of the rounded one.

    Powers of two, which the steps take over, bring the rows of the matrix to norms around 1: numbers below 2^-14 would
    lose digits. Of a wide matrix the inverse does not follow: it is stored, in float16 where that is close.
    """
    size = np.exp2(-np.round(np.log2(np.linalg.norm(matrix, axis=1))))
    scaled = matrix * size[:, None]
    rounded = scaled.astype(np.float16).astype(np.float64)
    follows = len(matrix) <= MOST_WIDTH
    try:
        inverse = backend().inverse_of(rounded.astype(np.float32)) if follows else _nearest_inverse(rounded)
        scaled = rounded
    except (np.linalg.LinAlgError, ValueError):  # rounded, it is singular
        inverse, follows = inverse / size, False
    return CodecNumbers(
        shift=shift,
        step=size.astype(np.float32),
        matrix=scaled.astype(np.float32),
        inverse=inverse.astype(np.float32),
        inverse_follows=follows,
    )


def _nearest_inverse(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the inverse of a matrix, of numbers of float16 if these give back a row of signs. Raises LinAlgError."""
    inverse: npt.NDArray[np.float64] = np.linalg.inv(matrix).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = inverse.astype(np.float16).astype(np.float64)
        errors = np.linalg.norm(rounded @ matrix - np.eye(len(matrix)), axis=1)
    return rounded if errors.max() < _MOST_ROUNDING else inverse


def _positive(profile: Tensor) -> Floats:
    """Return a profile scaled to a median of 1, without zeros (of constant channels)."""
    values = profile.numpy()
    known = values[values > 0]
    middle = float(np.median(known)) if len(known) else 1.0
    return np.asarray(np.clip(values / middle, 1e-6, 1e6), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A fitted codec: its array and scalar arguments of `CalibratedCodec`, and the bits per element on the sample.

    `inverse_follows`: its inverse is what the backend computes from its matrix, so that a codebook may leave it out.
    """

    arrays: dict[str, npt.NDArray[Any]]
    scalars: dict[str, float]
    bits_per_element: float
    inverse_follows: bool


def fit(geometry: CodecNumbers, sample: Tensor, bits: float) -> Fitted:
    """Return the codec of this geometry whose steps take `bits` per element on the sample [R, H], including escapes.

    Raises `ValueError` if the sample is empty.
    """
    return _fitted(*_start(geometry, sample, bits))


def start_of(geometry: CodecNumbers, sample: Tensor, bits: float) -> CodecNumbers:
    """Return the numbers of `fit`, to be trained further."""
    return _start(geometry, sample, bits)[0]


def _start(geometry: CodecNumbers, sample: Tensor, bits: float) -> tuple[CodecNumbers, _Coded]:
    coded = _coded(replace(geometry, rounding=_rounding(bits)), sample, bits, "step")
    return replace(coded.numbers, shrink=coded.shrink()), coded


def finish(numbers: CodecNumbers, sample: Tensor, bits: float, *, varies: Literal["step", "threshold"]) -> Fitted:
    """Return the codec of trained numbers, steps or thresholds scaled to `bits` per element on the sample [R, H].

    Raises `ValueError` as `fit`.
    """
    coded = _coded(numbers, sample, bits, varies)
    return _fitted(coded.numbers, coded)


def _fitted(numbers: CodecNumbers, coded: _Coded) -> Fitted:
    named = {name: getattr(numbers, name) for name in ("step", "shift", "scale", "threshold", "matrix", "inverse")}
    arrays = {name: array for name, array in named.items() if array is not None}
    return Fitted(
        arrays={**arrays, "tables": coded.tables, "table_of_channel": coded.table_of_channel},
        scalars={"rounding": numbers.rounding, "shrink": numbers.shrink},
        bits_per_element=coded.bits,
        inverse_follows=numbers.inverse_follows,
    )


def _rounding(bits: float) -> float:
    """Return the rounding: a dead zone lowers the loss at a given rate if most codes are 0, else it raises it."""
    return 0.5 if bits >= 3 else 0.45 if bits >= 2 else 0.4


def _coded(numbers: CodecNumbers, sample: Tensor, bits: float, varies: str) -> _Coded:
    """Scale steps or thresholds until the sample takes `bits`, by the secant method: doubling steps saves about a bit.

    If the sample has few distinct values, bits jump; then the nearest found is returned.
    """
    if not len(sample):
        raise ValueError("there are no rows to fit a codec to")
    y = numbers.transformed(sample)

    def at(octaves: float) -> _Coded:
        factor = np.float32(2**octaves)
        return _Coded(replace(numbers, **{varies: getattr(numbers, varies) * factor}), y)

    octaves, least = 0.0, -math.inf
    if varies == "step":
        size = math.log2(float((y / torch.from_numpy(numbers.step)).square().mean().sqrt()) or 1.0)
        octaves, least = size + 2 - bits, size - _MOST_OCTAVES
    found, slope = at(octaves), -1.0
    best = found
    for _ in range(_MOST_SECANTS):
        if abs(best.bits - bits) <= _BITS_TOLERANCE * bits:
            break
        # Bounded: with few bits, or nearly all codes escapes, bits hardly depend on the step.
        change = min(2.0, max(-2.0, (bits - found.bits) / slope))
        before, octaves = found.bits, max(least, octaves + change)
        found = at(octaves)
        slope = min(-0.1, max(-2.0, (found.bits - before) / (change or 1.0)))
        if abs(found.bits - bits) < abs(best.bits - bits) - _BITS_TOLERANCE * bits:
            best = found
    return best


class _Coded:
    """The codes of transformed rows [R, H], the tables fitted to them, and their bits per element."""

    def __init__(self, numbers: CodecNumbers, y: Tensor) -> None:
        self.numbers = numbers
        self._y = y
        codes = numbers.codes_of(y)
        self._codes = codes.to(torch.int8).numpy()
        width = y.shape[1]
        spread = torch.where(codes == ESCAPE, 128.0, codes.abs()).mean(0).numpy()
        self.table_of_channel = np.empty(width, np.uint8)
        groups = np.array_split(np.argsort(spread, kind="stable"), min(_TABLES, width))
        for index, channels in enumerate(groups):
            self.table_of_channel[channels] = index
        flat = self._codes.view(np.uint8) + 256 * self.table_of_channel.astype(np.int32)
        counts = np.bincount(flat.ravel(), minlength=256 * len(groups)).reshape(len(groups), 256).astype(np.uint64)
        self.tables = np.stack([backend().table_from_counts(row) for row in counts])
        escapes = int(counts[:, 256 + ESCAPE].sum())
        self.bits = (float((counts * _cost(self.tables)).sum()) + _ESCAPE_BITS * escapes) / flat.size

    def shrink(self) -> float:
        """Return the mean distance of magnitudes below their codes, in steps, which decoding subtracts."""
        used = (self._codes != 0) & (self._codes != ESCAPE)
        if not used.any():
            return 0.0
        steps = (self._y / torch.from_numpy(self.numbers.step)).abs().numpy()[used]
        return min(0.45, max(0.0, float((np.abs(self._codes[used].astype(np.float32)) - steps).mean())))


def _cost(tables: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the bits of each symbol [T, 256]; those of frequency 0 take the escape's bits and eight more."""
    escape = 256 - tables.sum(1, dtype=np.int64)
    with np.errstate(divide="ignore"):
        own = 8 - np.log2(tables.astype(np.float64))
    return np.where(tables > 0, own, (8 - np.log2(escape))[:, None] + 8)
