"""How the times of stages and links of a running plan drift from its prediction, by the workers' heartbeats."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from orbitsplit._plans.plan import Plan
from orbitsplit._plans.rebalance import Measured, MeasuredLink
from orbitsplit.runtime._messages.control import Heartbeat

# A drift of more than this fraction counts: twice what predictions of whole runs are off by (docs/benchmarks.md).
DRIFT = 0.2
# It has to last, in both halves of so many seconds: many times a garbage collection, a burst of another process or the
# gap that a recovery leaves, all of a second or less here. The window grows until each half has so many steps.
WINDOW_S = 10.0
LEAST_STEPS = 20
# What was longer ago says nothing of now.
_LONGEST_S = 600.0


class _Sample(NamedTuple):
    """Totals of a stage, and of the link behind it, at a moment."""

    step_times: tuple[tuple[int, float], ...]
    sent_bytes: int
    link_s: float


@dataclass
class Drift:
    """The heartbeats of the last WINDOW_S seconds of one session, or of more with few steps."""

    _session: int = -1
    _samples: list[tuple[float, list[_Sample]]] = field(default_factory=list)

    def add(self, now_s: float, session: int, heartbeats: Sequence[Heartbeat | None]) -> None:
        """Add what the stages of a session have reported, unless one has not yet."""
        beats = [beat for beat in heartbeats if beat is not None and beat.session == session]
        if session != self._session or len(beats) < len(heartbeats):
            self._session = session
            self._samples.clear()
        if len(beats) == len(heartbeats):
            self._samples.append((now_s, [_Sample(beat.step_times, beat.sent_bytes, beat.link_s) for beat in beats]))
        del self._samples[: self._first(now_s)]

    def measured(self, plan: Plan) -> Measured:
        """Return the stages and emulated links that took longer or less than predicted, in both halves of the window.

        The figures are those of the whole window. None are returned before it is full.
        """
        if plan.prediction is None or not plan.prediction.decode_stage_s or not self._is_full():
            return Measured()
        first, half, last = (self._samples[k][1] for k in (0, self._middle(0), -1))
        names = [stage.node for stage in plan.stages]
        factors: dict[str, float] = {}
        for name, predicted_s, *at in zip(names, plan.prediction.decode_stage_s, first, half, last, strict=True):
            parts = [_step_s(*at[:2]), _step_s(*at[1:])]
            if (whole := _step_s(at[0], at[2])) and predicted_s and _drifts([_over(one, predicted_s) for one in parts]):
                factors[name] = whole / predicted_s
        links: dict[tuple[str, str], MeasuredLink] = {}
        for ends, link, *at in zip(pairwise(names), plan.links, first, half, last, strict=False):
            rates = [_rate(*at[:2]), _rate(*at[1:])]
            if (rate := _rate(at[0], at[2])) and _drifts([_over(link.bytes_per_s, one) for one in rates]):
                links[ends] = MeasuredLink(rate, link.latency_s)
        return Measured(factors=factors, links=links)

    def _is_full(self) -> bool:
        # The oldest sample may be a little younger than the window, as samples are not taken at its edges.
        return len(self._samples) > 2 and self._samples[-1][0] - self._samples[0][0] >= 0.9 * WINDOW_S

    def _first(self, now_s: float) -> int:
        """Return the oldest sample of the shortest window that is long enough, the oldest of all if none is yet."""
        for first in reversed(range(len(self._samples))):
            age_s = now_s - self._samples[first][0]
            if age_s >= WINDOW_S and (self._has_steps(first) or age_s > _LONGEST_S):
                return first
        return 0

    def _has_steps(self, first: int) -> bool:
        """Return whether there are enough steps of each stage in both halves of the time from a sample on."""
        ends = self._samples[first][1], self._samples[-1][1]
        if min(map(_steps, *ends)) < 2 * LEAST_STEPS:
            return False
        half = self._samples[self._middle(first)][1]
        return min(*map(_steps, ends[0], half), *map(_steps, half, ends[1])) >= LEAST_STEPS

    def _middle(self, first: int) -> int:
        """Return the sample that is next to the middle of the time from another one on."""
        middle_s = (self._samples[first][0] + self._samples[-1][0]) / 2
        after = bisect.bisect(self._samples, middle_s, key=lambda sample: sample[0])
        return min((after - 1, after), key=lambda k: abs(self._samples[k][0] - middle_s))


def _over(value: float | None, other: float | None) -> float | None:
    return value / other if value and other else None


def _drifts(factors: Sequence[float | None]) -> bool:
    """Return whether all of the factors are known and too large, or all too small."""
    known = [factor for factor in factors if factor is not None]
    if len(known) < len(factors):
        return False
    return min(known) > 1 + DRIFT or max(known) < 1 / (1 + DRIFT)


def _steps(before: _Sample, after: _Sample) -> int:
    """Return how many steps were computed in between."""
    return after.step_times[0][0] - before.step_times[0][0] if before.step_times and after.step_times else 0


def _step_s(before: _Sample, after: _Sample) -> float | None:
    """Return the mean seconds of a step, what is decoded and encoded for it included; None of too few steps."""
    if _steps(before, after) < LEAST_STEPS:
        return None
    counts = [b[0] - a[0] for a, b in zip(before.step_times, after.step_times, strict=True)]
    seconds = [b[1] - a[1] for a, b in zip(before.step_times, after.step_times, strict=True)]
    return sum(total_s / count for total_s, count in zip(seconds, counts, strict=True) if count)


def _rate(before: _Sample, after: _Sample) -> float | None:
    """Return the bytes per second of a link while it was occupied, None where nothing is emulated."""
    busy_s = after.link_s - before.link_s
    return (after.sent_bytes - before.sent_bytes) / busy_s if busy_s > 0 else None
