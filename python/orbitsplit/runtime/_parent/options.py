"""Options of pipelines: time limits, and the keywords that may be given in their place; whether one rebalances."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from orbitsplit._io.keyword_options import take_options
from orbitsplit._plans.replanner import Replanner

from .arguments import boolean, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The time limits of a pipeline, in seconds.

    Processes must be ready after `start_s`; a migration waits no longer for what is under way. A process that
    sends no heartbeat for `heartbeat_s` is lost, and so is a link whose message is overdue by `stall_s`.

    Raises TypeError or ValueError, naming the field, unless all are positive and finite.
    """

    start_s: float = 600.0
    heartbeat_s: float = 8.0
    stall_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, number(field.name, getattr(self, field.name), above=0))


# Keywords of `Pipeline`, and the fields of `Timeouts` that they stand for.
TIMEOUT_KEYWORDS = {"start_timeout_s": "start_s", "heartbeat_timeout_s": "heartbeat_s", "stall_timeout_s": "stall_s"}


def timeouts_of(timeouts: Timeouts | None, keywords: dict[str, Any]) -> Timeouts:
    """Return the time limits of a pipeline, and remove their keywords. Raises TypeError for both at once."""
    limits = {field: keywords.pop(name) for name, field in TIMEOUT_KEYWORDS.items() if name in keywords}
    return take_options("Pipeline", "timeouts", Timeouts, timeouts, limits)


def rebalance_of(rebalance: bool | None, replan: object, *, has_hosts: bool) -> bool:
    """Return whether a pipeline rebalances; None: if it runs on hosts and its `replan` can.

    Raises TypeError for another value, ValueError if it is asked for and `replan` is not a `replanner`.
    """
    can = isinstance(replan, Replanner)
    if rebalance is None:
        return can and has_hosts
    if boolean("rebalance", rebalance) and not can:
        raise ValueError("rebalance needs a replan of orbitsplit.replanner, which knows the profile and the network")
    return rebalance
