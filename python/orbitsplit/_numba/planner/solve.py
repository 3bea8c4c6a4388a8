"""Solve problems as cpp/src/planner/solve.cpp does: the same plans, more slowly."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.text import number, size
from orbitsplit._numba.time_limit import TimeLimit

from .cost import OBJECTIVES, evaluate, generates, value_s
from .cost_to_go import Relaxation, least_loss
from .infeasible import explain_infeasible, trivially_infeasible
from .metrics import Metric, make_metrics
from .node_classes import bound_by_classes
from .options import Options
from .order_search import improve_by_orders
from .problem import Problem, validate_problem
from .root import Incumbent, Root, RootExplorer, offer, relaxation_bytes
from .root_bisection import RootBisection
from .root_k_cycle import explore_root_k_cycle
from .search import SearchResult, search
from .tables import THOROUGH_OPERATIONS, Tables, make_tables

_MOST_TRANSFERS = 2e8  # layers x links in free order: a relaxation takes a second or more
_MOST_LABELS = 2**31 - 1
_MOST_THREADS = 256
_FIRST_LABELS = 20_000
_FIRST_LABELS_IN_ORDER = 1_000
_FIRST_ORDERS = 30
_LABEL_BYTES = 300  # with the label's share of the heap and the states, and of the capacity they reserve
_NARROWEST = 1e-3  # width relative to the incumbent at which no interval is bisected


def solve(problem: Problem, *arguments: Any) -> dict[str, Any]:
    """Return the fields of a `Solution`. Raises ValueError for an invalid problem or option."""
    options = Options(*arguments)
    validate_problem(problem)
    _check(problem, options)
    return solve_valid(problem, options)


def solve_valid(problem: Problem, options: Options) -> dict[str, Any]:
    """Return the fields of a `Solution` of a problem and options that were checked."""
    time_limit = TimeLimit(options.time_limit_s)
    t = make_tables(problem, options, time_limit)
    least = least_loss(t, time_limit)
    result = SearchResult(True, math.inf, 0, "")
    incumbent = _given_incumbent(problem, options)
    if least.root <= t.loss_limit and not trivially_infeasible(problem):
        find = _find_best if t.keys_are_exact else _find_best_k_cycle
        result, incumbent = find(problem, t, options, least, time_limit, incumbent)
    found = _outcome(problem, options, result, incumbent.stages)
    if found["status"] == "infeasible":
        for_any = options._replace(objective="latency", time_limit_s=time_limit.remaining_s())
        found["reason"] = explain_infeasible(
            problem, t, least, options, time_limit, lambda other: solve_valid(other, for_any)
        )
    return {**found, "seconds": time_limit.seconds()}


def _given_incumbent(problem: Problem, options: Options) -> Incumbent:
    stages = options.incumbent
    incumbent = Incumbent(gap=options.gap)
    found = offer(problem, options.objective, stages, incumbent)
    return found if options.max_nodes is None or len(stages) <= options.max_nodes else incumbent


def _outcome(problem: Problem, options: Options, result: SearchResult, rows: NDArray[np.int32]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "status": "infeasible", "objective_s": math.inf, "lower_bound_s": math.inf, "gap": math.inf, "loss": 0.0,
        "stages": [tuple(row) for row in rows.tolist()], "reason": "", "labels": result.labels,
    }  # fmt: skip
    if len(rows):
        score = evaluate(problem, rows)
        found |= {"objective_s": value_s(score, options.objective), "loss": score["loss"]}
    within = found["objective_s"] * (1 - options.gap)
    if not result.is_complete:
        found["status"] = "feasible" if len(rows) else "unknown"
        found["reason"] = _stopped_reason(result, options)
        found["lower_bound_s"] = min(result.lower_bound_s, within)
    elif len(rows):
        # Plans that are better by less than the gap may have been pruned.
        found["status"] = "feasible" if options.gap > 0 else "optimal"
        found["reason"] = f"the gap of {number(options.gap)} was proven" if options.gap > 0 else ""
        found["lower_bound_s"] = within
    if len(rows):
        distance = found["objective_s"] - found["lower_bound_s"]
        found["gap"] = distance / found["objective_s"] if distance > 0 else 0.0
    return found


def _find_best(
    problem: Problem, t: Tables, options: Options, least: Relaxation, time_limit: TimeLimit, incumbent: Incumbent
) -> tuple[SearchResult, Incumbent]:
    """Search; if a first search does not solve free order, again with a better incumbent or a larger ng-set."""
    if not t.is_free:
        return _find_best_in_order(problem, t, options, least, time_limit, incumbent)
    metrics, most, half = make_metrics(t, time_limit), options.max_labels, options.max_bytes // 2
    root: Root = RootExplorer(problem, t, options.objective, metrics, least, time_limit, incumbent, half)
    # A search that has no plan leaves as much time to look for one along an order as the root took.
    is_lost = not len(root.incumbent.stages)
    until = time_limit.earlier_by(time_limit.seconds()) if is_lost else time_limit
    result = _search_within(t, metrics, root, until, options, min(_FIRST_LABELS, most))
    incumbent = root.incumbent
    if result.is_complete:
        return result, incumbent
    if time_limit.is_reached() and (len(incumbent.stages) or time_limit.must_end()):
        return result._replace(stopped_by="time"), incumbent
    by_classes, incumbent = _proven_by_classes(problem, options, time_limit, incumbent)
    if by_classes.is_complete:
        return by_classes, incumbent
    result = result._replace(lower_bound_s=max(result.lower_bound_s, by_classes.lower_bound_s))
    larger = make_tables(problem, options, time_limit, 0.0, THOROUGH_OPERATIONS)
    is_larger = larger.ng_size > t.ng_size
    # A larger ng-set is worth more than the last percent of an incumbent, but much slower with a bad one.
    incumbent = improve_by_orders(problem, options, time_limit, _FIRST_ORDERS if is_larger else sys.maxsize, incumbent)
    if time_limit.is_reached():
        return result._replace(stopped_by="time"), incumbent
    if not is_larger or not len(incumbent.stages):
        root = RootExplorer(problem, t, options.objective, metrics, least, time_limit, incumbent, half)
        last = _search_within(t, metrics, root, time_limit, options, most)
        return last._replace(lower_bound_s=max(last.lower_bound_s, result.lower_bound_s)), root.incumbent
    metrics, least = make_metrics(larger, time_limit), least_loss(larger, time_limit)
    root = RootBisection(problem, larger, options.objective, metrics, least, time_limit, incumbent, _NARROWEST, half)
    last = _search_within(larger, metrics, root, time_limit, options, most)
    return last._replace(lower_bound_s=max(last.lower_bound_s, result.lower_bound_s)), root.incumbent


def _find_best_in_order(
    problem: Problem, t: Tables, options: Options, least: Relaxation, time_limit: TimeLimit, incumbent: Incumbent
) -> tuple[SearchResult, Incumbent]:
    """Search fixed order.

    With weight levels the bounds depend much on the incumbent, and the root's first ones had none: if a first search
    does not solve the problem, the root is explored again.
    """
    metrics, half = make_metrics(t, time_limit), options.max_bytes // 2
    root = RootExplorer(problem, t, options.objective, metrics, least, time_limit, incumbent, half)
    proven = 0.0
    if t.has_weight_levels and options.max_labels > _FIRST_LABELS_IN_ORDER:
        first = _search_within(t, metrics, root, time_limit, options, _FIRST_LABELS_IN_ORDER)
        if first.is_complete or first.stopped_by != "labels":
            return first, root.incumbent
        proven = first.lower_bound_s
        root = RootExplorer(problem, t, options.objective, metrics, least, time_limit, root.incumbent, half)
    result = _search_within(t, metrics, root, time_limit, options, options.max_labels)
    return result._replace(lower_bound_s=max(result.lower_bound_s, proven)), root.incumbent


def _find_best_k_cycle(
    problem: Problem, t: Tables, options: Options, least: Relaxation, time_limit: TimeLimit, incumbent: Incumbent
) -> tuple[SearchResult, Incumbent]:
    """Search free order of too many nodes for visited sets."""
    by_classes, incumbent = _proven_by_classes(problem, options, time_limit, incumbent)
    if by_classes.is_complete:
        return by_classes, incumbent
    metrics = make_metrics(t, time_limit)
    t, root, proven = explore_root_k_cycle(problem, options, time_limit, t, metrics, least, incumbent)
    result = _search_within(t, metrics, root, time_limit, options, options.max_labels)
    proven = max(proven, by_classes.lower_bound_s)
    return result._replace(lower_bound_s=max(result.lower_bound_s, proven)), root.incumbent


def _proven_by_classes(
    problem: Problem, options: Options, time_limit: TimeLimit, incumbent: Incumbent
) -> tuple[SearchResult, Incumbent]:
    """Bound plans by classes of equal nodes, which may prove an incumbent best."""
    bound, incumbent = bound_by_classes(problem, options, time_limit, incumbent, solve_valid)
    is_complete = len(incumbent.stages) > 0 and bound.lower_bound_s >= incumbent.cutoff()
    return SearchResult(is_complete, bound.lower_bound_s, bound.labels, ""), incumbent


def _search_within(
    t: Tables, metrics: list[Metric], root: Root, time_limit: TimeLimit, options: Options, max_labels: int
) -> SearchResult:
    """Search with the labels that fit into the memory that the root's relaxations leave."""
    held = sum(len(interval.relaxations) for of in root.intervals for interval in of) * relaxation_bytes(t)
    room = max(0, options.max_bytes - held) // _LABEL_BYTES
    proven = root.lower_bound_s()
    result = search(t, metrics, root, time_limit, min(max_labels, room))
    result = result._replace(lower_bound_s=max(result.lower_bound_s, proven))
    return result._replace(stopped_by="bytes") if result.stopped_by == "labels" and room < max_labels else result


def _check(problem: Problem, options: Options) -> None:
    if options.objective not in OBJECTIVES:
        *most, last = OBJECTIVES
        raise ValueError(f'objective is "{options.objective}"; valid are {", ".join(most)} and {last}')
    if not options.time_limit_s >= 0:
        raise ValueError(f"time_limit_s is {number(options.time_limit_s)}, must be at least 0")
    if not 1 <= options.max_labels <= _MOST_LABELS:
        raise ValueError(f"max_labels is {options.max_labels}, must be from 1 to {_MOST_LABELS}")
    if options.max_bytes < 1:
        raise ValueError(f"max_bytes is {options.max_bytes}, must be at least 1")
    if options.max_ng_size < 0 or not 0 <= options.max_bitset_nodes <= 64:
        raise ValueError(
            f"max_ng_size is {options.max_ng_size} and max_bitset_nodes {options.max_bitset_nodes}, must be at least 0 "
            "and max_bitset_nodes at most 64"
        )
    if not 0 <= options.gap < 1:
        raise ValueError(f"gap is {number(options.gap)}, must be at least 0 and below 1")
    if not 1 <= options.threads <= _MOST_THREADS:
        raise ValueError(f"threads is {options.threads}, it must be from 1 to {_MOST_THREADS}")
    if options.max_nodes is not None and options.max_nodes < 1:
        raise ValueError(f"max_nodes is {options.max_nodes}, must be at least 1")
    if options.objective == "time_per_token" and not generates(problem):
        raise ValueError(f"objective is time_per_token, new_tokens is {problem.new_tokens}, must be at least 2")
    layers, links = len(problem.layers), int(np.count_nonzero(problem.bandwidth_bytes_per_s > 0))
    if problem.order == "free" and layers * links > _MOST_TRANSFERS:
        raise ValueError(
            f"order is free with {layers} layers and {links} links, at most {number(_MOST_TRANSFERS)} layers times "
            "links can be searched"
        )


def _stopped_reason(result: SearchResult, options: Options) -> str:
    if result.stopped_by == "time":
        return f"the time limit of {number(options.time_limit_s)} s was reached"
    if result.stopped_by == "bytes":
        return f"the limit of {size(options.max_bytes)} was reached"
    return f"the limit of {options.max_labels} labels was reached"
