"""Solves problems in Python and Numba, as cpp/src/planner/solve.cpp does: the same plans, more slowly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._bounds import Relaxation, least_loss
from ._cost import evaluate
from ._infeasible import explain_infeasible
from ._orders import improve_by_orders
from ._problem import validate_problem
from ._root import Clock, Incumbent, Root
from ._search import SearchResult, search
from ._tables import Metric, Tables, make_metrics, make_tables
from ._text import number

if TYPE_CHECKING:
    from orbitsplit._problem import Problem

_MOST_FREE_NODES = 64
_MOST_LABELS = 2**31 - 1
_FIRST_LABELS = 20_000


def solve(problem: Problem, time_limit_s: float, max_labels: int, max_tracked: int) -> dict[str, Any]:
    """Return the fields of a `Solution`. Raises ValueError for an invalid problem or option."""
    clock = Clock(time_limit_s)
    _check(problem, time_limit_s, max_labels)
    t = make_tables(problem, max_tracked)
    metrics = make_metrics(t)
    least = least_loss(t)
    result = SearchResult(True, math.inf, 0, "")
    rows = np.empty((0, 4), dtype=np.int32)
    if least.root <= t.loss_limit:
        result, rows = _find_best(problem, t, metrics, least, clock, max_labels)
    found: dict[str, Any] = {
        "status": "unknown", "objective_s": math.inf, "lower_bound_s": 0.0, "gap": math.inf, "loss": 0.0,
        "stages": [tuple(row) for row in rows.tolist()], "labels": result.labels,
    }  # fmt: skip
    if len(rows):
        score = evaluate(problem, rows)
        found |= {"objective_s": score["objective_s"], "loss": score["loss"]}
    if result.is_complete:
        found |= {"status": "optimal", "gap": 0.0} if len(rows) else {"status": "infeasible"}
        found["lower_bound_s"] = found["objective_s"]
    else:
        found["lower_bound_s"] = min(result.lower_bound_s, found["objective_s"])
        if len(rows):
            gap = (found["objective_s"] - found["lower_bound_s"]) / found["objective_s"]
            found |= {"status": "feasible", "gap": gap}
    found["reason"] = _stopped_reason(result, time_limit_s, max_labels)
    if found["status"] == "infeasible":
        found["reason"] = explain_infeasible(
            problem, t, least, max_tracked, lambda other: solve(other, time_limit_s, max_labels, max_tracked)
        )
    return {**found, "seconds": clock.seconds()}


def _find_best(
    problem: Problem, t: Tables, metrics: list[Metric], least: Relaxation, clock: Clock, max_labels: int
) -> tuple[SearchResult, NDArray[np.int32]]:
    """Search; in free order, where a first search does not end, again with a better incumbent."""
    root = Root(problem, t, metrics, least, clock, Incumbent())
    result = search(t, metrics, root, clock, min(_FIRST_LABELS, max_labels) if t.is_free else max_labels)
    if result.is_complete or not t.is_free:
        return result, root.incumbent.stages
    incumbent = improve_by_orders(problem, clock, root.incumbent)
    if clock.is_over():
        return result._replace(stopped_by="time"), incumbent.stages
    root = Root(problem, t, metrics, least, clock, incumbent)
    result = search(t, metrics, root, clock, max_labels)
    return result, root.incumbent.stages


def _check(problem: Problem, time_limit_s: float, max_labels: int) -> None:
    validate_problem(problem)
    if not time_limit_s >= 0:
        raise ValueError(f"time_limit_s is {number(time_limit_s)}, must be at least 0")
    if max_labels > _MOST_LABELS:
        raise ValueError(f"max_labels is {max_labels}, must be at most {_MOST_LABELS}")
    if problem.order == "free" and len(problem.nodes) > _MOST_FREE_NODES:
        raise ValueError(f"order is free with {len(problem.nodes)} nodes, at most {_MOST_FREE_NODES} can be searched")


def _stopped_reason(result: SearchResult, time_limit_s: float, max_labels: int) -> str:
    if result.stopped_by == "time":
        return f"the time limit of {number(time_limit_s)} s was reached"
    return f"the limit of {max_labels} labels was reached" if result.stopped_by else ""
