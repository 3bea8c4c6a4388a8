"""From loss to accuracy: a known slope is found again, its error is honest, budgets invert drops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitsplit import AccuracyCurve
from orbitsplit._codebook.accuracy import fit_curve

SLOPE, NOISE = 0.4, 0.002


def measured(count: int, seed: int, *, scatter: float = 0.0) -> tuple[list[float], list[float], list[float]]:
    """Return losses, drops that follow the slope but for noise and scatter, and the error of each drop."""
    source = np.random.default_rng(seed)
    losses = source.uniform(0.01, 0.3, count)
    errors = source.uniform(0.5, 1.5, count) * NOISE
    slopes = SLOPE * (1 + scatter * source.standard_normal(count))
    drops = slopes * losses + errors * source.standard_normal(count)
    return losses.tolist(), drops.tolist(), errors.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_known_slope_is_found_in_noisy_points(seed: int) -> None:
    curve = fit_curve(*measured(40, seed))
    assert curve.points == 40
    assert curve.drop_per_loss == pytest.approx(SLOPE, abs=4 * curve.error)
    assert curve.drop_per_loss == pytest.approx(SLOPE, rel=0.05)
    assert 0 < curve.error < 0.05


def test_points_without_noise_give_the_slope() -> None:
    losses = [0.01, 0.1, 0.5]
    curve = fit_curve(losses, [SLOPE * loss for loss in losses], [0.0] * 3)
    assert curve.drop_per_loss == pytest.approx(SLOPE)
    assert curve.error < 1e-3
    assert fit_curve([0.2], [0.05], [0.001]).drop_per_loss == pytest.approx(0.25)


def test_precise_points_count_more_than_vague_ones() -> None:
    losses, drops, errors = measured(20, 0)
    wrong = fit_curve([*losses, 0.2], [*drops, 0.9], [*errors, 2.0])
    assert wrong.drop_per_loss == pytest.approx(fit_curve(losses, drops, errors).drop_per_loss, rel=0.01)


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_the_interval_holds_the_slope_as_often_as_it_says(scatter: float) -> None:
    curves = [fit_curve(*measured(30, seed, scatter=scatter)) for seed in range(300)]
    inside = np.mean([abs(curve.drop_per_loss - SLOPE) <= 1.96 * curve.error for curve in curves])
    assert 0.90 <= inside <= 0.995


def test_more_points_leave_less_error_and_scatter_more() -> None:
    errors = [np.mean([fit_curve(*measured(n, seed)).error for seed in range(20)]) for n in (10, 40, 160)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]  # about half each time
    scattered = np.mean([fit_curve(*measured(40, seed, scatter=0.5)).error for seed in range(20)])
    assert scattered > 3 * errors[1]


def test_a_drop_that_is_a_gain_makes_a_flat_curve() -> None:
    curve = fit_curve([0.1, 0.2], [-0.01, -0.02], [0.001, 0.001])
    assert curve.drop_per_loss == 0
    assert curve.drop(0.1)[0] == 0


def test_plans_that_lose_nothing_do_not_count() -> None:
    losses, drops, errors = measured(10, 0)
    assert fit_curve([0.0, *losses], [0.5, *drops], [0.0, *errors]).points == 10
    for empty in ([], [0.0, 0.0]):
        assert fit_curve(empty, empty, empty) == AccuracyCurve(0.0, 0.0, 0)


CURVES = st.builds(AccuracyCurve, st.floats(1e-3, 100), st.floats(0, 10), st.integers(1, 100))


@given(CURVES, st.floats(0, 1))
def test_a_loss_budget_is_the_loss_of_that_drop(curve: AccuracyCurve, limit: float) -> None:
    assert curve.drop(curve.loss_budget(limit))[0] == pytest.approx(limit, abs=1e-12)


@given(CURVES, st.floats(0, 10))
def test_drops_lie_within_their_interval(curve: AccuracyCurve, loss: float) -> None:
    drop, low, high = curve.drop(loss)
    assert 0 <= low <= drop <= high
    assert high - drop == pytest.approx(1.96 * curve.error * loss, rel=1e-3, abs=1e-12)
    assert drop == pytest.approx(curve.drop_per_loss * loss)


def test_a_flat_curve_allows_any_loss_up_to_one() -> None:
    flat = AccuracyCurve(0.0, 0.0, 3)
    assert flat.loss_budget(0.01) == 1.0
    assert flat.loss_budget(0.0) == 0.0


@pytest.mark.parametrize("limit", [-0.01, 1.01, math.nan])
def test_a_limit_that_is_no_fraction_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"max_accuracy_drop is .*, must be from 0 to 1"):
        AccuracyCurve(0.5, 0.1, 3).loss_budget(limit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((math.nan, 0.1, 3), "drop_per_loss of the accuracy curve is nan"),
        ((-0.1, 0.1, 3), r"drop_per_loss of the accuracy curve is -0\.1"),
        ((0.1, math.inf, 3), "error of the accuracy curve is inf"),
        ((0.1, -1.0, 3), r"error of the accuracy curve is -1\.0"),
    ],
)
def test_a_curve_that_makes_no_sense_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccuracyCurve(*arguments)


def test_a_curve_of_a_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match="drop_per_loss is 'steep', must be a number"):
        AccuracyCurve("steep", 0.1, 3)  # type: ignore[arg-type]
