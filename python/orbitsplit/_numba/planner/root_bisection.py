"""The root of a free-order search whose relaxations are large and good, as in cpp/src/planner/root_bisection.hpp."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from orbitsplit._numba.time_limit import TimeLimit

from .cost_to_go import Relaxation, relax
from .metrics import Metric
from .problem import Problem
from .relaxed_walk import diving_heuristic, diving_heuristic_for_loss, relaxed_optimum
from .root import MOST_MULTIPLIER, Incumbent, Interval, Root, relaxation_bytes
from .tables import Tables

_MULTIPLIER_STEPS = 5
_LATER_MULTIPLIER_STEPS = 2


class _Line(NamedTuple):
    """A relaxed plan, which gives the bound sum + multiplier * (loss - budget): a line in the multiplier.

    A negative loss means that there is none.
    """

    sum: float = 0.0
    loss: float = -1.0


@dataclass
class _Span:
    interval: Interval = field(default_factory=Interval)
    over: _Line = field(default_factory=_Line)
    under: _Line = field(default_factory=_Line)


class RootBisection(Root):
    """The explored root, with one relaxation for each interval.

    Bisects the interval with the smallest bound until all are fathomed or a limit is reached: time, a width of
    `narrowest` relative to the incumbent, or `max_bytes` of relaxations. Bisects nothing without an incumbent.
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
        narrowest: float,
        max_bytes: int,
    ) -> None:
        super().__init__(problem, t, objective, least, time_limit, incumbent)
        self._narrowest = narrowest
        self._max_spans = max_bytes // relaxation_bytes(t) - 2
        self.intervals = [self._explore(metric) for metric in metrics]

    def _explore(self, metric: Metric) -> list[Interval]:
        spans = [_Span()]
        self._try_multiplier(metric, spans[0], 0.0)
        for _ in range(_MULTIPLIER_STEPS):
            if not self._time_limit.is_reached():
                self._improve_multiplier(metric, spans[0])
        if not len(self.incumbent.stages):
            self._offer(diving_heuristic_for_loss(self._t, self.least))
        if self.incumbent.objective_s < math.inf and (metric.prefill_max > 0 or metric.decode_max > 0):
            # The bound is of the sum alone so far.
            spans[0].interval.high = self.incumbent.objective_s - spans[0].interval.bound
            while (
                not self._time_limit.is_reached()
                and len(spans) <= self._max_spans
                and self._bisect_lowest(metric, spans)
            ):
                pass
        return [span.interval for span in spans if self._is_promising(span)]

    def _is_promising(self, span: _Span) -> bool:
        return span.interval.bound < self.incumbent.cutoff()

    def _try_multiplier(self, metric: Metric, span: _Span, multiplier: float) -> None:
        """Make one more relaxation and keep it if its bound is the interval's best."""
        t, interval = self._t, span.interval
        made = relax(t, metric, interval.high, multiplier, self._time_limit)
        bound = made.root - multiplier * t.loss_limit + interval.low
        if made.root < math.inf and not self._time_limit.must_end():  # what was given up leads nowhere
            self._offer(diving_heuristic(t, metric, made, self.least))
            loss = relaxed_optimum(t, metric, made).loss
            line = _Line(made.root - multiplier * loss, loss)
            if loss > t.loss_limit:
                span.over = line
            else:
                span.under = line
        is_better = bound > interval.bound
        if is_better or not interval.relaxations:
            interval.relaxations = [made]
        if is_better:
            interval.bound, interval.multiplier = bound, multiplier

    def _improve_multiplier(self, metric: Metric, span: _Span) -> None:
        """Try the multiplier where the lines of a walk above the loss budget and one within it meet, as in root.py."""
        over, under, last = span.over, span.under, span.interval.multiplier
        if over.loss < 0 or not self._is_promising(span):
            return
        if under.loss >= 0:
            multiplier = (under.sum - over.sum) / (over.loss - under.loss)
        else:
            multiplier = 4 * last if last > 0 else over.sum / over.loss
        if 0 < multiplier <= MOST_MULTIPLIER and abs(multiplier - last) > 1e-3 * multiplier:
            self._try_multiplier(metric, span, multiplier)

    def _bisect_lowest(self, metric: Metric, spans: list[_Span]) -> bool:
        """Bisect the interval with the smallest bound; the upper half keeps the relaxation, whose limit is the same."""
        if len(spans) > self._max_spans:
            return False
        spans[:] = [span for span in spans if self._is_promising(span)]
        if not spans:
            return False
        at = min(range(len(spans)), key=lambda i: spans[i].interval.bound)
        upper = spans[at].interval
        if upper.high - upper.low <= self._narrowest * self.incumbent.objective_s:
            return False
        middle = upper.low + (upper.high - upper.low) / 2
        lower = dataclasses.replace(spans[at], interval=dataclasses.replace(upper, high=middle, relaxations=[]))
        upper.bound += middle - upper.low
        upper.low = middle
        self._try_multiplier(metric, lower, lower.interval.multiplier)
        for _ in range(_LATER_MULTIPLIER_STEPS):
            self._improve_multiplier(metric, lower)
        spans.insert(at, lower)
        return True
