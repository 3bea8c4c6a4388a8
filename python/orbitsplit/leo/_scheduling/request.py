"""What a plan in time is asked for, and which strategies it may use: option objects, or their fields as keywords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._planner.level_table import LevelTable
from orbitsplit.leo._orbits.validation import check_moment, check_name, check_not_negative, check_positive, names_of


@dataclass(frozen=True, kw_only=True)
class TimedRequest:
    """An input that is to be processed, and where and by when its result is needed.

    The input, `input_bytes` for the whole workload, is on the satellite or at the station `source` from `requested` on.
    The result, `output_bytes`, must be at any station of `destination` (default: all) within `deadline_s`.

    Example:
        >>> from datetime import datetime, timezone
        >>> TimedRequest(requested=datetime(2026, 1, 1, tzinfo=timezone.utc), source="sat-3",
        ...              input_bytes=2e8, output_bytes=1e4).deadline_s
        86400.0

    Raises:
        TypeError: An argument is of another type.
        ValueError: The time has no time zone, or a number is out of range.
    """

    requested: datetime
    source: str
    input_bytes: float
    output_bytes: float
    destination: Sequence[str] | None = None
    deadline_s: float = 86_400.0

    def __post_init__(self) -> None:
        check_moment("requested", self.requested)
        check_name("source", self.source)
        check_not_negative("input_bytes", self.input_bytes)
        check_not_negative("output_bytes", self.output_bytes)
        check_positive("deadline_s", self.deadline_s)
        if self.destination is not None:
            object.__setattr__(self, "destination", names_of("destination", self.destination))


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """How activations may be compressed, and how far the search for a plan in time may go.

    `levels` or `codebook`, `loss_budget` and `max_accuracy_drop` are those of `orbitsplit.plan`. `max_nodes` and
    `time_limit_s` limit each single plan that is considered, of which there may be hundreds. `shares` allows that a
    station computes some micro-batches and satellites the others. `handover_s` is what it takes to let another plan
    resume a generation, in addition to moving keys and values.

    Raises:
        TypeError, ValueError: `handover_s` is no number, or negative.
    """

    levels: LevelTable | None = None
    codebook: Codebook | None = None
    loss_budget: float = 0.0
    max_accuracy_drop: float | None = None
    max_nodes: int | None = None
    time_limit_s: float | None = None
    shares: bool = True
    handover_s: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("handover_s", self.handover_s)


class RequestKeywords(TypedDict, total=False):
    """The fields of `TimedRequest` as keywords."""

    requested: datetime
    source: str
    input_bytes: float
    output_bytes: float
    destination: Sequence[str] | None
    deadline_s: float


class OptionKeywords(TypedDict, total=False):
    """The fields of `StrategyOptions` as keywords."""

    levels: LevelTable | None
    codebook: Codebook | None
    loss_budget: float
    max_accuracy_drop: float | None
    max_nodes: int | None
    time_limit_s: float | None
    shares: bool
    handover_s: float


class PlanKeywords(RequestKeywords, OptionKeywords, total=False):
    """The fields of `TimedRequest` and of `StrategyOptions` as keywords."""
