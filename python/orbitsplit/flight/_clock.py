"""The clock of a flight, and plans and links in its scale.

If the clock runs s times faster than real time, nodes compute s times faster, links carry s times more bytes per
second, and delays are s times shorter: so all that a plan counts in seconds of the clock takes 1/s of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orbitsplit._io.validation import quoted
from orbitsplit._network.link_conditions import LinkConditions, LinkShape
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanLink
from orbitsplit._plans.prediction import Prediction

# A clock is not slower than real time.
LEAST_SPEED = 1.0

# Predicted times that are single numbers, and those with one for each stage or link.
_SECONDS = ("total_s", "prefill_s", "token_step_s", "lower_bound_s")
_SECONDS_OF_EACH = ("stage_s", "link_s", "decode_stage_s", "decode_link_s", "earlier_stage_s")


@dataclass(frozen=True, slots=True)
class FlightClock:
    """Seconds since the beginning of a flight, which was at `origin_s` of the monotonic clock."""

    origin_s: float
    speed: float

    def now_s(self) -> float:
        """Return the time of the clock."""
        return self.of_s(time.monotonic())

    def of_s(self, monotonic_s: float) -> float:
        """Return the time of the clock at an instant of the monotonic clock."""
        return (monotonic_s - self.origin_s) * self.speed

    def monotonic_s(self, at_s: float) -> float:
        """Return the instant of the monotonic clock at a time of this one."""
        return self.origin_s + at_s / self.speed


def scaled_plan(plan: Plan, speed: float) -> Plan:
    """Return a plan that takes 1 / `speed` of the seconds."""
    return replace(
        plan,
        stages=tuple(replace(stage, slowdown=stage.slowdown / speed) for stage in plan.stages),
        links=tuple(
            PlanLink(None if link.bytes_per_s is None else link.bytes_per_s * speed, link.latency_s / speed)
            for link in plan.links
        ),
        return_latency_s=plan.return_latency_s / speed,
        return_latencies_s=tuple(latency_s / speed for latency_s in plan.return_latencies_s),
        prediction=None if plan.prediction is None else _scaled_prediction(plan.prediction, speed),
    )


def _scaled_prediction(prediction: Prediction, speed: float) -> Prediction:
    single: dict[str, Any] = {name: getattr(prediction, name) / speed for name in _SECONDS}
    several: dict[str, Any] = {
        name: tuple(value / speed for value in getattr(prediction, name)) for name in _SECONDS_OF_EACH
    }
    return replace(prediction, **single, **several)


def scaled_conditions(conditions: LinkConditions, speed: float) -> LinkConditions:
    """Return the conditions of links over a time that is 1 / `speed` as long."""
    return LinkConditions(tuple(_scaled_link(link, speed) for link in conditions.links), conditions.seed)


def _scaled_link(link: LinkShape, speed: float) -> LinkShape:
    return replace(
        link,
        bytes_per_s=None if link.bytes_per_s is None else link.bytes_per_s * speed,
        latency_s=None if link.latency_s is None else link.latency_s / speed,
        rates=tuple((start_s / speed, rate * speed) for start_s, rate in link.rates),
        down=tuple((start_s / speed, stop_s / speed) for start_s, stop_s in link.down),
    )


def too_fast(plans: Iterable[Plan], speed: float) -> str | None:
    """Return a sentence on the node that this machine cannot emulate at a speed, None if it can emulate all."""
    slowdowns = {stage.node: stage.slowdown for plan in plans for stage in plan.stages}
    name = min(slowdowns, key=lambda node: slowdowns[node])
    if slowdowns[name] >= speed:
        return None
    # Rounded so that what is named does fit.
    lacks = f"{math.ceil(100 * speed / slowdowns[name]) / 100:g} times"
    most = math.floor(100 * slowdowns[name]) / 100
    fits = f"a speed of at most {most:g} fits, or " if most >= LEAST_SPEED else ""
    return (
        f"{quoted(name)} is {slowdowns[name]:g} times slower than this machine, so at a speed of {speed:g} it would be "
        f"{lacks} faster: {fits}a factor `slower` {lacks} as large"
    )


def changed_rates(edges_s: Sequence[float], rates: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return (start, rate) of each span of one rate above 0, the first from 0 on; where it is 0, the rate before."""
    found: list[tuple[float, float]] = []
    for start_s, rate in zip(edges_s, rates, strict=False):
        if rate > 0 and (not found or rate != found[-1][1]):
            found.append((start_s if found else 0.0, rate))
    return tuple(found)
