"""The root of the search, as in cpp/src/planner/root.hpp: prices, intervals and a first incumbent."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .cost import evaluate, value_s
from .cost_to_go import Relaxation, Walk, dive, dive_for_loss, follow, relax
from .problem import Problem
from .tables import Metric, Tables

ROUNDING = 1e-12
_INTERVALS = 16
_ROUNDS = 3
_PRICE_STEPS = 4


class Clock:
    """Time since a solve began."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._start

    def is_over(self) -> bool:
        """Return whether the limit has passed."""
        return self.seconds() > self._limit_s


def relaxation_bytes(t: Tables) -> int:
    """Return what one relaxation takes."""
    return 2 * 8 * t.pasts * len(t.node_of) * (t.layers + 1)


@dataclass
class Incumbent:
    """The best plan so far."""

    objective_s: float = math.inf
    gap: float = 0.0
    stages: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 4), dtype=np.int32))

    def cutoff(self) -> float:
        """Return what a bound must stay below to promise a plan that is better by more than the gap."""
        return self.objective_s * (1 - max(self.gap, ROUNDING))

    def is_beaten_by(self, other_s: float) -> bool:
        """Return whether an objective is better by more than rounding."""
        return other_s < self.objective_s * (1 - ROUNDING)


def better(problem: Problem, objective: str, stages: NDArray[np.int32], incumbent: Incumbent) -> Incumbent:
    """Return stages as incumbent if they are a plan that beats it, else the incumbent."""
    if not len(stages):
        return incumbent
    score = evaluate(problem, stages)
    value = value_s(score, objective)
    if score["is_feasible"] and incumbent.is_beaten_by(value):
        return Incumbent(value, incumbent.gap, stages)
    return incumbent


@dataclass
class Interval:
    """Plans whose relaxed maximum lies in (low, high]."""

    low: float = 0.0
    high: float = math.inf
    bound: float = 0.0
    price: float = 0.0
    relaxations: list[Relaxation] = field(default_factory=list)


class Explorer:
    """Holds the intervals that matter for each metric, and the incumbent, which walks improve."""

    def __init__(
        self,
        problem: Problem,
        t: Tables,
        objective: str,
        least: Relaxation,
        clock: Clock,
        incumbent: Incumbent,
    ) -> None:
        self._problem = problem
        self._t = t
        self._objective = objective
        self.least = least
        self._clock = clock
        self.incumbent = incumbent
        self.intervals: list[list[Interval]] = []

    def lower_bound_s(self) -> float:
        """Return what no better plan is below: every metric bounds it by the lowest of its intervals."""
        return max(min((interval.bound for interval in of), default=math.inf) for of in self.intervals)

    def _offer(self, walk: Walk) -> None:
        self.incumbent = better(self._problem, self._objective, walk.stages, self.incumbent)


class Root(Explorer):
    """Explores the root; afterwards holds the intervals that matter for each metric, and the incumbent."""

    def __init__(
        self,
        problem: Problem,
        t: Tables,
        objective: str,
        metrics: list[Metric],
        least: Relaxation,
        clock: Clock,
        incumbent: Incumbent,
        max_bytes: int,
    ) -> None:
        super().__init__(problem, t, objective, least, clock, incumbent)
        has_room = 2 * _INTERVALS * (_PRICE_STEPS + 1) * relaxation_bytes(t) <= max_bytes
        for metric in metrics:
            whole = Interval()
            self._price(metric, whole, 0.0)
            self.intervals.append([whole])
        self._offer(dive_for_loss(t, least))
        least_sum = [intervals[0].bound for intervals in self.intervals]
        for step in range(1, _ROUNDS + 1):
            if not has_room or self.incumbent.objective_s == math.inf:
                break
            for a, metric in enumerate(metrics):
                if not clock.is_over():
                    self.intervals[a] = self._refined(metric, self.intervals[a], least_sum[a], step == _ROUNDS)
        self.intervals = [self._hopeful(intervals) for intervals in self.intervals]

    def _add(self, metric: Metric, interval: Interval, price: float) -> Relaxation:
        made = relax(self._t, metric, interval.high, price)
        interval.relaxations.append(made)
        bound = made.root - price * self._t.loss_limit + interval.low
        if len(interval.relaxations) == 1 or bound > interval.bound:
            interval.bound, interval.price = bound, price
        if made.root < math.inf:
            self._offer(dive(self._t, metric, made, self.least))
        return made

    def _inherit_price(self, metric: Metric, interval: Interval, inherited: float) -> None:
        root = self._add(metric, interval, 0.0).root
        if root < math.inf and inherited > 0 and interval.bound < self.incumbent.cutoff():
            self._add(metric, interval, inherited)

    def _price(self, metric: Metric, interval: Interval, inherited: float) -> None:
        """Find the best price by intersecting the lines of a walk below the loss budget and one above it."""
        t = self._t
        unpriced = self._add(metric, interval, 0.0)
        if unpriced.root == math.inf:
            return
        over_sum, over_loss = unpriced.root, follow(t, metric, unpriced).loss
        if over_loss <= t.loss_limit:
            return
        under_sum, under_loss = 0.0, -1.0
        # Where sums weigh nothing, the interval's end takes their place.
        price = inherited if inherited > 0 else (over_sum if over_sum > 0 else interval.high) / over_loss
        for _ in range(_PRICE_STEPS):
            if not price < math.inf or interval.bound >= self.incumbent.cutoff() or self._clock.is_over():
                return
            priced = self._add(metric, interval, price)
            loss = follow(t, metric, priced).loss
            if loss <= t.loss_limit:
                under_sum, under_loss = priced.root - price * loss, loss
            else:
                over_sum, over_loss = priced.root - price * loss, loss
            last = price
            price = 4 * price if under_loss < 0 else (under_sum - over_sum) / (over_loss - under_loss)
            if not price > 0 or price == last:
                return

    def _refined(self, metric: Metric, intervals: list[Interval], least_sum: float, is_last: bool) -> list[Interval]:
        """Cut the intervals that may hold a better plan into smaller ones."""
        if metric.prefill_max == 0 and metric.decode_max == 0:
            return intervals
        intervals = self._hopeful(intervals)
        top = self.incumbent.objective_s - least_sum
        parts = max(1, _INTERVALS // max(1, len(intervals)))
        finer: list[Interval] = []
        for wide in intervals:
            high = min(wide.high, top)
            for part in range(parts):
                if wide.low >= high:
                    break
                narrow = Interval(low=wide.low if part == 0 else finer[-1].high)
                if self._clock.is_over():  # the rest stays whole: its relaxations bound it too
                    bound = wide.bound + (narrow.low - wide.low)
                    finer.append(dataclasses.replace(wide, low=narrow.low, bound=bound))
                    break
                is_top = part + 1 == parts
                narrow.high = high if is_top else wide.low + (high - wide.low) * (part + 1) / parts
                (self._price if is_last else self._inherit_price)(metric, narrow, wide.price)
                finer.append(narrow)
        return self._hopeful(finer)

    def _hopeful(self, intervals: list[Interval]) -> list[Interval]:
        return [interval for interval in intervals if interval.bound < self.incumbent.cutoff()]
