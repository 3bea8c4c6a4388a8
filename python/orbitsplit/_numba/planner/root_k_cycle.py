"""The root of a free-order search in a network too large to track nodes, as in cpp/src/planner/long_root.cpp."""

from __future__ import annotations

from .cost_to_go import Relaxation, follow, least_loss
from .k_cycle import hopeful_places, lengthen, lengthened_links
from .order_search import improve_by_chains
from .problem import Problem
from .root import Clock, Incumbent
from .root_bisection import DeepRoot
from .tables import THOROUGH_OPERATIONS, Metric, Options, Tables

_WIDEST = 0.03
_NARROWEST = 1e-3
_LEAST_RELAXATIONS = 24


def lengthen_root(
    problem: Problem,
    options: Options,
    clock: Clock,
    t: Tables,
    metrics: list[Metric],
    least: Relaxation,
    incumbent: Incumbent,
) -> tuple[Tables, DeepRoot, float]:
    """Deepen the root with longer memory or narrower intervals; return its tables, itself, and what it proved."""
    max_bytes = options.max_bytes // 2
    proven, width = 0.0, _WIDEST
    while True:
        root = DeepRoot(problem, t, options.objective, metrics, least, clock, incumbent, width, max_bytes)
        proven = max(proven, root.lower_bound_s())
        if not clock.is_over():
            root.incumbent = improve_by_chains(problem, options, clock, root.incumbent)
        incumbent = root.incumbent
        if clock.is_over() or not len(incumbent.stages) or proven >= incumbent.cutoff():
            return t, root, proven
        is_kept = hopeful_places(t, metrics, root)
        stages = min(t.most_stages, t.nodes, t.layers)
        repeats = t.memory < stages and _lowest_repeats(t, metrics, root)
        if repeats and _is_affordable(t, lengthened_links(t, is_kept), max_bytes):
            t = lengthen(t, is_kept)
            least = least_loss(t)
        elif width > _NARROWEST:
            width = max(_NARROWEST, width / 4)
        else:
            return t, root, proven


def _lowest_repeats(t: Tables, metrics: list[Metric], root: DeepRoot) -> bool:
    """Return whether the relaxed plan that gives the lowest bound repeats a node."""
    for metric, intervals in zip(metrics, root.intervals, strict=True):
        if not intervals:
            continue
        lowest = min(intervals, key=lambda interval: interval.bound)
        nodes = follow(t, metric, lowest.relaxations[0]).stages[:, 0]
        if len(set(nodes.tolist())) < len(nodes):
            return True
    return False


def _is_affordable(t: Tables, links: float, max_bytes: int) -> bool:
    states = links * t.pasts * (t.layers + 1)
    operations = states * (t.layers / 4.0 + 1)
    return operations <= THOROUGH_OPERATIONS and states * 2 * 8 * _LEAST_RELAXATIONS <= max_bytes
