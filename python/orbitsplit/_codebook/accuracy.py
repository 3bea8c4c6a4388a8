"""From loss to accuracy: how many points a plan of a given loss is expected to cost. Needs NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orbitsplit._io.validation import check_count, check_fields

# Of a normal distribution, both sides: how the intervals here are meant.
Z95 = 1.96

# No plan loses as much; a curve that is nearly flat would allow more than can be said.
_MOST_LOSS = 1e5


@dataclass(frozen=True, slots=True)
class AccuracyCurve:
    """A line through the origin: the drop in accuracy that a loss costs, fitted to measured plans.

    `drop_per_loss` is the drop as a fraction (0.01: one point) per unit of loss (a nat per token or sample, or a unit
    of cosine distance); `error` its standard error, which counts what the measured plans are scattered around the
    line; `points` how many plans it was fitted to. Small losses cost accuracy in proportion: both are of second order
    in what the codec changes. `calibrate` fits it to drops as the model's own probabilities have them
    (`Measured.expected_drop`), which vary far less than counts of right answers; `verify` counts those.
    """

    drop_per_loss: float
    error: float
    points: int

    def __post_init__(self) -> None:
        check_fields("the accuracy curve", self, strings=())
        for name in ("drop_per_loss", "error"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of the accuracy curve is {value}, must be finite and at least 0")
        check_count("points of the accuracy curve", self.points, 0)

    def drop(self, loss: float) -> tuple[float, float, float]:
        """Return the expected drop for a loss, and the ends of its 95 % interval."""
        margin = Z95 * self.error * loss
        expected = self.drop_per_loss * loss
        return expected, max(0.0, expected - margin), expected + margin

    def loss_budget(self, max_accuracy_drop: float) -> float:
        """Return the loss whose expected drop is `max_accuracy_drop`; of a flat curve 1, or 0 for a drop of 0.

        Raises:
            ValueError: `max_accuracy_drop` is not in [0, 1].
        """
        if not 0 <= max_accuracy_drop <= 1:
            raise ValueError(f"max_accuracy_drop is {max_accuracy_drop}, must be from 0 to 1 (0.01 is one point)")
        if max_accuracy_drop == 0:
            return 0.0
        return min(_MOST_LOSS, max_accuracy_drop / self.drop_per_loss) if self.drop_per_loss > 0 else 1.0


def fit_curve(losses: Sequence[float], drops: Sequence[float], drop_errors: Sequence[float]) -> AccuracyCurve:
    """Fit the curve by least squares, each plan weighted by the inverse of its variance.

    The variance of a drop is that of its measurement plus what the plans scatter, in proportion to the loss: two
    passes, the second with the scatter that the first one found.

    Without any plan that loses something the curve is flat.
    """
    x, y, noise = (np.asarray(values, np.float64) for values in (losses, drops, drop_errors))
    used = x > 0
    if not used.any():
        return AccuracyCurve(0.0, 0.0, 0)
    x, y, noise = x[used], y[used], noise[used]
    floor = max(1e-6, float(np.median(noise)) / 10)
    slope, scatter = 0.0, 0.0
    for _ in range(2):
        variance = np.maximum(noise, floor) ** 2 + (scatter * x) ** 2
        slope = float((x * y / variance).sum() / (x * x / variance).sum())
        scatter = math.sqrt(max(0.0, float(np.mean(((y - slope * x) ** 2 - noise**2) / x**2))))
    variance = np.maximum(noise, floor) ** 2 + (scatter * x) ** 2
    error = math.sqrt(1 / float((x * x / variance).sum()))
    return AccuracyCurve(max(0.0, slope), error, int(used.sum()))
