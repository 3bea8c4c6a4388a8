"""The root of a free-order search in a network too large for visited sets, as in cpp/src/planner/root_k_cycle.hpp."""

from __future__ import annotations

from orbitsplit._numba.time_limit import TimeLimit

from .cost_to_go import Relaxation, least_loss
from .k_cycle import extend_vertices, extended_link_count, promising_vertices
from .metrics import Metric
from .options import Options
from .order_search import improve_by_chains
from .problem import Problem
from .relaxed_walk import relaxed_optimum
from .root import Incumbent
from .root_bisection import RootBisection
from .tables import THOROUGH_OPERATIONS, Tables

_WIDEST = 0.03  # width of intervals relative to the incumbent, at first
_NARROWEST = 1e-3
_LEAST_RELAXATIONS = 24  # that must fit the memory


def explore_root_k_cycle(
    problem: Problem,
    options: Options,
    time_limit: TimeLimit,
    t: Tables,
    metrics: list[Metric],
    least: Relaxation,
    incumbent: Incumbent,
) -> tuple[Tables, RootBisection, float]:
    """Bisect the root repeatedly; return the last tables, their root, and the highest lower bound.

    Each time with k-cycle elimination of a larger k where the relaxed optimum repeats a node, else with narrower
    intervals, until neither is affordable or helps.
    """
    max_bytes = options.max_bytes // 2
    proven, width = 0.0, _WIDEST
    while True:
        root = RootBisection(problem, t, options.objective, metrics, least, time_limit, incumbent, width, max_bytes)
        proven = max(proven, root.lower_bound_s())
        if not time_limit.is_reached():
            root.incumbent = improve_by_chains(problem, options, time_limit, root.incumbent)
        incumbent = root.incumbent
        if time_limit.is_reached() or not len(incumbent.stages) or proven >= incumbent.cutoff():
            return t, root, proven
        is_kept = promising_vertices(t, metrics, root, time_limit)
        stages = min(t.most_stages, t.nodes, t.layers)
        repeats = t.k_cycle < stages and _lowest_repeats(t, metrics, root)
        if repeats and _is_affordable(t, extended_link_count(t, is_kept), max_bytes):
            t = extend_vertices(t, is_kept)
            least = least_loss(t, time_limit)
        elif width > _NARROWEST:
            width = max(_NARROWEST, width / 4)
        else:
            return t, root, proven


def _lowest_repeats(t: Tables, metrics: list[Metric], root: RootBisection) -> bool:
    """Return whether the relaxed plan that gives the lowest bound repeats a node."""
    for metric, intervals in zip(metrics, root.intervals, strict=True):
        if not intervals:
            continue
        lowest = min(intervals, key=lambda interval: interval.bound)
        nodes = relaxed_optimum(t, metric, lowest.relaxations[0]).stages[:, 0]
        if len(set(nodes.tolist())) < len(nodes):
            return True
    return False


def _is_affordable(t: Tables, links: float, max_bytes: int) -> bool:
    states = links * t.visited_sets * (t.layers + 1)
    operations = states * (t.layers / 4.0 + 1)
    return operations <= THOROUGH_OPERATIONS and states * 2 * 8 * _LEAST_RELAXATIONS <= max_bytes
