"""A flight: what was requested, what was planned in time, and what happened on the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orbitsplit._io.validation import check_count, check_integer, check_kind, tuple_of
from orbitsplit._plans.trace import Trace
from orbitsplit.leo import TimedPlan, TimedRequest


@dataclass(frozen=True)
class FlightRequest:
    """A prompt that is to be continued: where and when it is, and where its text is needed.

    `request` has the source, the bytes of the prompt's file and of the text's, and the deadline; `input_ids` are the
    tokens of the prompt.

    Raises:
        TypeError: A field has another type.
        ValueError: There is no token, or a token is negative.
    """

    request: TimedRequest
    input_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        check_kind("request", self.request, TimedRequest)
        object.__setattr__(self, "input_ids", tuple_of("input_ids", self.input_ids))
        check_count("the number of input_ids", len(self.input_ids), 1)
        for k, token in enumerate(self.input_ids):
            check_integer(f"input_ids[{k}]", token)
            if token < 0:
                raise ValueError(f"input_ids[{k}] is {token}, must be at least 0")


@dataclass(frozen=True)
class FlownRequest:
    """A request as planned and as flown; times are those of the flight's clock.

    `timed` is the plan in time. `tokens` are the new tokens, which the station of the result had at `completion`; the
    first stage began at `compute_start`, and the last token was there at `compute_stop`.
    """

    requested: FlightRequest
    timed: TimedPlan
    tokens: tuple[int, ...]
    compute_start: datetime
    compute_stop: datetime
    completion: datetime

    @property
    def duration_s(self) -> float:
        """Return seconds from the request to the completion, as flown."""
        return (self.completion - self.timed.requested).total_seconds()

    @property
    def lag_s(self) -> float:
        """Return by how many seconds the completion was later than planned; negative: earlier."""
        return (self.completion - self.timed.completion).total_seconds()

    @property
    def compute_lag_s(self) -> float:
        """Return by how many seconds the computation took longer than planned; negative: shorter."""
        return (self.compute_stop - self.compute_start).total_seconds() - self._planned_compute_s

    @property
    def compute_deviation(self) -> float:
        """Return the lag of the computation as a fraction of its planned time, in which no pass is waited for."""
        return self.compute_lag_s / max(self._planned_compute_s, 1e-9)

    @property
    def _planned_compute_s(self) -> float:
        return (self.timed.compute_stop - self.timed.compute_start).total_seconds()

    @property
    def deviation(self) -> float:
        """Return the lag as a fraction of the planned time from request to completion, most of which may be waiting."""
        return self.lag_s / max(self.timed.duration_s, 1e-9)


@dataclass(frozen=True)
class Flight:
    """Requests of a constellation, run on the runtime by a clock that is `speed` times faster than real time.

    `trace` has all events, passes, hand-overs, transmissions and tokens. `energy_j` is what each satellite with a power
    limit consumed beyond idling, and `energy_shortfall` the reason why its supply would not have sufficed, None if it
    did. `too_fast` names the computer that this machine cannot emulate at this speed, None if it can emulate all.
    """

    scenario: str
    speed: float
    requests: tuple[FlownRequest, ...]
    trace: Trace
    seconds: float
    energy_j: Mapping[str, float] = field(default_factory=dict)
    energy_shortfall: str | None = None
    too_fast: str | None = None

    @property
    def handovers(self) -> int:
        """Return the number of hand-overs."""
        return 0 if self.trace.flight is None else len(self.trace.flight.handovers)

    @property
    def flown(self) -> timedelta:
        """Return how long the flight was by its clock."""
        return timedelta(seconds=self.seconds * self.speed)

    @property
    def largest_deviation(self) -> float:
        """Return the largest deviation of a completion from its plan, either way, as a fraction."""
        return max(abs(flown.deviation) for flown in self.requests)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the trace as JSON-ready data."""
        return {
            "scenario": self.scenario,
            "speed": self.speed,
            "wall_seconds": self.seconds,
            "flown_seconds": self.flown.total_seconds(),
            "handovers": self.handovers,
            "largest_deviation": self.largest_deviation,
            "energy_j": dict(self.energy_j),
            "energy_shortfall": self.energy_shortfall,
            "too_fast": self.too_fast,
            "requests": [_row(flown) for flown in self.requests],
        }


def _row(flown: FlownRequest) -> dict[str, Any]:
    timed = flown.timed
    nodes: Sequence[str] = [stage.node for stage in timed.plan.stages]
    return {
        "requested": timed.requested.isoformat(),
        "source": flown.requested.request.source,
        "strategy": timed.strategy,
        "nodes": list(nodes),
        "relayed_to": None if timed.relay is None else [stage.node for stage in timed.relay.plan.stages],
        "planned_compute_start": timed.compute_start.isoformat(),
        "compute_start": flown.compute_start.isoformat(),
        "planned_compute_stop": timed.compute_stop.isoformat(),
        "compute_stop": flown.compute_stop.isoformat(),
        "planned_completion": timed.completion.isoformat(),
        "completion": flown.completion.isoformat(),
        "lag_s": flown.lag_s,
        "compute_lag_s": flown.compute_lag_s,
        "deviation": flown.deviation,
        "compute_deviation": flown.compute_deviation,
        "tokens": list(flown.tokens),
    }
