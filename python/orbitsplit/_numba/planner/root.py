"""The root of the search, as in cpp/src/planner/root.hpp.

Intervals and Lagrange multipliers whose relaxations give good bounds, and an incumbent from the diving heuristic.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.time_limit import TimeLimit

from .cost import evaluate, value_s
from .cost_to_go import Relaxation, relax
from .metrics import Metric
from .problem import Problem
from .relaxed_walk import Walk, diving_heuristic, diving_heuristic_for_loss, relaxed_optimum
from .tables import Tables

# Bounds within this relative distance count as equal: sums in another order differ by rounding.
ROUNDING = 1e-12
# Products of multipliers up to this one with losses and budgets are finite.
MOST_MULTIPLIER = 1e100
_INTERVAL_COUNT = 16
_ROUNDS = 3


def _multiplier_steps(t: Tables) -> int:
    """Return the number of multipliers that are tried.

    With weight levels the loss buys more, and in larger pieces: better multipliers save labels, and so time.
    """
    return 8 if t.has_weight_levels else 4


def relaxation_bytes(t: Tables) -> int:
    """Return the memory of one relaxation."""
    return 2 * 8 * t.visited_sets * len(t.node_of) * (t.layers + 1)


@dataclass
class Incumbent:
    """The best plan so far: its objective, its stages as rows, and the gap of the options."""

    objective_s: float = math.inf
    gap: float = 0.0
    stages: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 5), dtype=np.int32))

    def cutoff(self) -> float:
        """Return the bound below which there is room for a plan that is better by more than the gap."""
        return self.objective_s * (1 - max(self.gap, ROUNDING))

    def is_beaten_by(self, other_s: float) -> bool:
        """Return whether an objective is better by more than rounding."""
        return other_s < self.objective_s * (1 - ROUNDING)


def offer(problem: Problem, objective: str, stages: NDArray[np.int32], incumbent: Incumbent) -> Incumbent:
    """Return stages as the incumbent if they are a plan that improves on it, else the incumbent."""
    if not len(stages):
        return incumbent
    score = evaluate(problem, stages)
    value = value_s(score, objective)
    if score["is_feasible"] and incumbent.is_beaten_by(value):
        return Incumbent(value, incumbent.gap, stages)
    return incumbent


@dataclass
class Interval:
    """Plans whose relaxed maximum is in (low, high], bounded by relaxations of limit high.

    `bound` is of the whole problem, low included; `multiplier` is the one that gave it.
    """

    low: float = 0.0
    high: float = math.inf
    bound: float = 0.0
    multiplier: float = 0.0
    relaxations: list[Relaxation] = field(default_factory=list)


class Root:
    """The intervals that are not fathomed, ascending, for each metric, and the incumbent, which walks improve."""

    def __init__(
        self,
        problem: Problem,
        t: Tables,
        objective: str,
        least: Relaxation,
        time_limit: TimeLimit,
        incumbent: Incumbent,
    ) -> None:
        self._problem = problem
        self._t = t
        self._objective = objective
        self.least = least
        self._time_limit = time_limit
        self.incumbent = incumbent
        self.intervals: list[list[Interval]] = []

    def lower_bound_s(self) -> float:
        """Return a bound on every better plan: the highest over the metrics of each one's lowest interval."""
        return max(min((interval.bound for interval in of), default=math.inf) for of in self.intervals)

    def _offer(self, walk: Walk) -> None:
        self.incumbent = offer(self._problem, self._objective, walk.stages, self.incumbent)


class RootExplorer(Root):
    """The explored root. Divides no interval if the relaxations could take more than `max_bytes`.

    Only plans better than the incumbent count; it may be an objective without stages.
    """

    def __init__(
        self,
        problem: Problem,
        t: Tables,
        objective: str,
        metrics: list[Metric],
        least: Relaxation,
        time_limit: TimeLimit,
        incumbent: Incumbent,
        max_bytes: int,
    ) -> None:
        super().__init__(problem, t, objective, least, time_limit, incumbent)
        has_room = 2 * _INTERVAL_COUNT * (_multiplier_steps(t) + 1) * relaxation_bytes(t) <= max_bytes
        for metric in metrics:
            whole = Interval()
            self._optimise_multiplier(metric, whole, 0.0)
            self.intervals.append([whole])
        if not time_limit.must_end() or not len(self.incumbent.stages):
            self._offer(diving_heuristic_for_loss(t, least))
        least_sum = [intervals[0].bound for intervals in self.intervals]
        for step in range(1, _ROUNDS + 1):
            if not has_room or self.incumbent.objective_s == math.inf:
                break
            for a, metric in enumerate(metrics):
                if not time_limit.is_reached():
                    self.intervals[a] = self._refined(metric, self.intervals[a], least_sum[a], step == _ROUNDS)
        self.intervals = [self._without_fathomed(intervals) for intervals in self.intervals]

    def _add(self, metric: Metric, interval: Interval, multiplier: float) -> Relaxation:
        """Add a relaxation at one multiplier; its diving heuristic may improve the incumbent."""
        made = relax(self._t, metric, interval.high, multiplier, self._time_limit)
        interval.relaxations.append(made)
        bound = made.root - multiplier * self._t.loss_limit + interval.low
        if bound > interval.bound:
            interval.bound, interval.multiplier = bound, multiplier
        if made.root < math.inf and not self._time_limit.must_end():  # what was given up leads nowhere
            self._offer(diving_heuristic(self._t, metric, made, self.least))
        return made

    def _inherit_multiplier(self, metric: Metric, interval: Interval, inherited: float) -> None:
        """Add two relaxations: at multiplier 0, and at the best of the interval that this one is a part of."""
        root = self._add(metric, interval, 0.0).root
        if root < math.inf and inherited > 0 and interval.bound < self.incumbent.cutoff():
            self._add(metric, interval, inherited)

    def _optimise_multiplier(self, metric: Metric, interval: Interval, inherited: float) -> None:
        """Find the best multiplier by intersecting the lines of a walk within the loss budget and one above it.

        (LARAC; Juttner et al., INFOCOM 2001.) Starts from multiplier 0 and the inherited one.
        """
        t = self._t
        unpenalised = self._add(metric, interval, 0.0)
        if unpenalised.root == math.inf or self._time_limit.must_end():
            return
        over_sum, over_loss = unpenalised.root, relaxed_optimum(t, metric, unpenalised).loss
        if over_loss <= t.loss_limit:
            return
        under_sum, under_loss = 0.0, -1.0
        # If sums have no weight, the interval's end replaces them.
        multiplier = inherited if inherited > 0 else (over_sum if over_sum > 0 else interval.high) / over_loss
        for _ in range(_multiplier_steps(t)):
            if (
                not multiplier <= MOST_MULTIPLIER
                or interval.bound >= self.incumbent.cutoff()
                or self._time_limit.is_reached()
            ):
                return
            penalised = self._add(metric, interval, multiplier)
            loss = relaxed_optimum(t, metric, penalised).loss
            if loss <= t.loss_limit:
                under_sum, under_loss = penalised.root - multiplier * loss, loss
            else:
                over_sum, over_loss = penalised.root - multiplier * loss, loss
            last = multiplier
            multiplier = 4 * multiplier if under_loss < 0 else (under_sum - over_sum) / (over_loss - under_loss)
            if not multiplier > 0 or multiplier == last:
                return

    def _refined(self, metric: Metric, intervals: list[Interval], least_sum: float, is_last: bool) -> list[Interval]:
        """Divide the intervals that may hold a better plan into smaller ones."""
        if metric.prefill_max == 0 and metric.decode_max == 0:
            return intervals
        intervals = self._without_fathomed(intervals)
        top = self.incumbent.objective_s - least_sum
        parts = max(1, _INTERVAL_COUNT // max(1, len(intervals)))
        finer: list[Interval] = []
        for wide in intervals:
            high = min(wide.high, top)
            for part in range(parts):
                if wide.low >= high:
                    break
                low = wide.low if part == 0 else finer[-1].high
                # What is proven of the whole holds for its rest, and so do its relaxations.
                bound = wide.bound + (low - wide.low)
                narrow = Interval(low=low, bound=bound, multiplier=wide.multiplier)
                if self._time_limit.is_reached():
                    finer.append(dataclasses.replace(wide, low=low, bound=bound))
                    break
                is_top = part + 1 == parts
                narrow.high = high if is_top else wide.low + (high - wide.low) * (part + 1) / parts
                (self._optimise_multiplier if is_last else self._inherit_multiplier)(metric, narrow, wide.multiplier)
                finer.append(narrow)
        return self._without_fathomed(finer)

    def _without_fathomed(self, intervals: list[Interval]) -> list[Interval]:
        return [interval for interval in intervals if interval.bound < self.incumbent.cutoff()]
