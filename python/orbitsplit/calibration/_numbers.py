"""The numbers of a calibrated codec, and its quantisation in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]

ESCAPE = -128
# One byte of the stream for the escape's code, one more for tables without it, and two for the value.
_ESCAPE_BITS = 32.0


@dataclass(frozen=True, eq=False, kw_only=True)
class CodecNumbers:
    """The numbers of a `CalibratedCodec` of one cut that transform and quantise; names and meanings are the same.

    Arrays have one float32 per channel, `matrix` and `inverse` are [width, width]; None leaves a step out.
    `inverse_follows`: the inverse is what the backend computes from the matrix.
    """

    step: Floats
    shift: Floats | None = None
    scale: Floats | None = None
    threshold: Floats | None = None
    matrix: Floats | None = None
    inverse: Floats | None = None
    rounding: float = 0.5
    shrink: float = 0.0
    inverse_follows: bool = False

    @property
    def width(self) -> int:
        return len(self.step)

    def transformed(self, rows: Tensor) -> Tensor:
        """Return y of rows [..., width]."""
        if self.shift is not None:
            rows = rows - torch.from_numpy(self.shift)
        if self.scale is not None:
            rows = rows * torch.from_numpy(self.scale)
        return rows if self.matrix is None else rows @ torch.from_numpy(self.matrix).T

    def codes(self, rows: Tensor) -> Tensor:
        """Return the codes of rows [..., width] as whole float32 numbers, `ESCAPE` where y itself is kept."""
        return self.codes_of(self.transformed(rows))

    def codes_of(self, y: Tensor) -> Tensor:
        """Return the codes of what `transformed` returned."""
        return quantised(y, torch.from_numpy(self.step), rounding=self.rounding, threshold=self._threshold())

    def received(self, rows: Tensor) -> Tensor:
        """Return rows [..., width] after encoding and decoding; escapes are exact."""
        y, step = self.transformed(rows), torch.from_numpy(self.step)
        codes = self.codes_of(y)
        y = torch.where(codes == ESCAPE, y, codes.sign() * (codes.abs() - self.shrink) * step)
        if self.matrix is not None:
            y = y @ torch.from_numpy(self.matrix if self.inverse is None else self.inverse.T)
        if self.scale is not None:
            y = y / torch.from_numpy(self.scale)
        return y if self.shift is None else y + torch.from_numpy(self.shift)

    def _threshold(self) -> Tensor | None:
        return None if self.threshold is None else torch.from_numpy(self.threshold)


def quantised(y: Tensor, step: Tensor, *, rounding: float, threshold: Tensor | None = None) -> Tensor:
    """Return the codes of y [..., width] as whole float32 numbers, `ESCAPE` where y itself is kept."""
    magnitude = torch.floor(y.abs() / step + rounding)
    codes = torch.where(magnitude < -ESCAPE, y.sign() * magnitude, float(ESCAPE))
    return codes if threshold is None else torch.where(y.abs() < threshold, 0.0, codes)


def entropy_bits(codes: Tensor) -> float:
    """Return the bits per element of codes [R, width] with an ideal table for each channel."""
    rows, width = codes.shape
    symbols = codes.long() + 256 * torch.arange(width) - ESCAPE
    counts = torch.bincount(symbols.flatten(), minlength=256 * width).double().view(width, 256)
    share = counts / rows
    entropy = -(share * share.clamp_min(1e-300).log2()).sum().item()
    return (entropy + _ESCAPE_BITS * share[:, 0].sum().item()) / width


def with_bits(numbers: CodecNumbers, rows: Tensor, bits: float, *, of: tuple[str, ...] = ("step",)) -> CodecNumbers:
    """Return the numbers with steps, thresholds or both (`of`) scaled so that rows [R, width] take `bits` per element.

    Raises `ValueError` if no factor does.
    """

    def scaled(log_factor: float) -> CodecNumbers:
        factor = np.float32(math.exp(log_factor))
        return replace(numbers, **{name: getattr(numbers, name) * factor for name in of})

    factor = _falling_root(lambda factor: entropy_bits(scaled(factor).codes(rows)) - bits, span=16.0)
    if factor is None:
        raise ValueError(f"no common factor of {' and '.join(of)} makes codes of {bits:.3f} bits per element")
    return scaled(factor)


def _falling_root(function: Callable[[float], float], span: float) -> float | None:
    """Return the root of a falling function in [-span, span], None without one."""
    # Outwards from 0: at very small factors all codes are escapes, and bits fall again.
    low = high = 0.0
    while function(low) < 0:
        low -= 0.5
        if low < -span:
            return None
    while function(high) > 0:
        high += 0.5
        if high > span:
            return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return high
