"""What `plan` takes beside a model, a network and a workload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orbitsplit._io.validation import check_kind, check_number, tuple_of
from orbitsplit._planner.solve import SolveKeywords

from .plan import Plan


@dataclass(frozen=True, slots=True)
class RunningPlan:
    """A plan that runs now, perhaps on nodes or links that are lost, and what decides whether to replace it.

    Attributes:
        plan: The plan, of the same model.
        runs: How many more runs of the workload are expected: weights move once for all of them.
        stores: Names of nodes that keep the weights of all layers.

    Raises:
        ValueError: `runs` is not finite and above 0.
        TypeError: A field has another type.
    """

    plan: Plan
    runs: float = 1.0
    stores: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_kind("plan of a RunningPlan", self.plan, Plan)
        check_runs(self.runs)
        object.__setattr__(self, "stores", tuple_of("stores", self.stores, str))


class PlanKeywords(SolveKeywords, total=False):
    """The fields of `SolveOptions`, and those of `RunningPlan` beside the plan, as keywords."""

    runs: float
    stores: Sequence[str]


def check_runs(runs: float) -> None:
    """Raise unless `runs` is a finite number above 0."""
    check_number("runs", runs)
    if not (math.isfinite(runs) and runs > 0):
        raise ValueError(f"runs is {runs}, must be finite and above 0")


def take_running(running: Plan | RunningPlan | None, keywords: dict[str, Any]) -> RunningPlan | None:
    """Return the running plan with the `keywords` that are fields of it; remove these.

    Without a running plan they are ignored.

    Raises:
        TypeError: They are given beside a `RunningPlan`, which has them.
    """
    own = {key: keywords.pop(key) for key in ("runs", "stores") if key in keywords}
    if not isinstance(running, RunningPlan):
        return None if running is None else RunningPlan(running, **own)
    if own:
        raise TypeError(f"plan() got running= and {next(iter(own))}=, which is a field of it: give one of them")
    return running
