"""The root of a free-order search with few large relaxations, as in cpp/src/planner/deep_root.cpp."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from .cost_to_go import Relaxation, dive, dive_for_loss, follow, relax
from .problem import Problem
from .root import Clock, Explorer, Incumbent, Interval, relaxation_bytes
from .tables import Metric, Tables

_PRICE_STEPS = 5
_LATER_PRICE_STEPS = 2


class _Line(NamedTuple):
    """A relaxed plan of some price on loss; a negative loss: none."""

    sum: float = 0.0
    loss: float = -1.0


@dataclass
class _Span:
    interval: Interval = field(default_factory=Interval)
    over: _Line = field(default_factory=_Line)
    under: _Line = field(default_factory=_Line)


class DeepRoot(Explorer):
    """Halves intervals of one relaxation each, the one with the smallest bound first."""

    def __init__(
        self,
        problem: Problem,
        t: Tables,
        objective: str,
        metrics: list[Metric],
        least: Relaxation,
        clock: Clock,
        incumbent: Incumbent,
        narrowest: float,
        max_bytes: int,
    ) -> None:
        super().__init__(problem, t, objective, least, clock, incumbent)
        self._narrowest = narrowest
        self._max_spans = max_bytes // relaxation_bytes(t) - 2
        self.intervals = [self._explore(metric) for metric in metrics]

    def _explore(self, metric: Metric) -> list[Interval]:
        spans = [_Span()]
        self._try_price(metric, spans[0], 0.0)
        least_sum = spans[0].interval.bound
        for _ in range(_PRICE_STEPS):
            if not self._clock.is_over():
                self._improve_price(metric, spans[0])
        if not len(self.incumbent.stages):
            self._offer(dive_for_loss(self._t, self.least))
        if self.incumbent.objective_s < math.inf and (metric.prefill_max > 0 or metric.decode_max > 0):
            spans[0].interval.high = self.incumbent.objective_s - least_sum
            while not self._clock.is_over() and len(spans) <= self._max_spans and self._halve_lowest(metric, spans):
                pass
        return [span.interval for span in spans if self._is_hopeful(span)]

    def _is_hopeful(self, span: _Span) -> bool:
        return span.interval.bound < self.incumbent.cutoff()

    def _try_price(self, metric: Metric, span: _Span, price: float) -> None:
        """Make one more relaxation and keep it if it is the interval's best."""
        t, interval = self._t, span.interval
        made = relax(t, metric, interval.high, price)
        bound = made.root - price * t.loss_limit + interval.low
        if made.root < math.inf:
            self._offer(dive(t, metric, made, self.least))
            loss = follow(t, metric, made).loss
            line = _Line(made.root - price * loss, loss)
            if loss > t.loss_limit:
                span.over = line
            else:
                span.under = line
        if not interval.relaxations or bound > interval.bound:
            interval.bound, interval.price, interval.relaxations = bound, price, [made]

    def _improve_price(self, metric: Metric, span: _Span) -> None:
        over, under, last = span.over, span.under, span.interval.price
        if over.loss < 0 or not self._is_hopeful(span):
            return
        if under.loss >= 0:
            price = (under.sum - over.sum) / (over.loss - under.loss)
        else:
            price = 4 * last if last > 0 else over.sum / over.loss
        if 0 < price < math.inf and abs(price - last) > 1e-3 * price:
            self._try_price(metric, span, price)

    def _halve_lowest(self, metric: Metric, spans: list[_Span]) -> bool:
        """Cut the interval with the smallest bound; the upper half keeps the relaxation, whose limit is the same."""
        spans[:] = [span for span in spans if self._is_hopeful(span)]
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
        self._try_price(metric, lower, lower.interval.price)
        for _ in range(_LATER_PRICE_STEPS):
            self._improve_price(metric, lower)
        spans.insert(at, lower)
        return True
