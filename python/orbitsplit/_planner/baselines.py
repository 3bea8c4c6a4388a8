"""Heuristic baselines: splits that other systems use instead of a search, to be compared with a plan.

Each function returns stages on the nodes in their given order, with the best single level at every cut and the best
single weight level. They may violate memory, links, pins or the loss budget; `evaluate` reports that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._io.validation import Array, check_choice, check_kind

from .certificate import Alternative
from .objective import check_objective, value_s
from .problem import Problem, earlier_time_s, evaluate, stage_overhead_s
from .problem_parts import Stage
from .solve import solve
from .tied_weights import TiedBytes, check_tied_bytes
from .uniform_weights import best_uniform
from .unsplit import Unsplit, fastest_first, unsplit

# The name of the alternative that compresses nothing.
WITHOUT_COMPRESSION = "best without compression"


class Span(NamedTuple):
    """Layers [start, stop) on a node, before a level is chosen."""

    node: int
    start: int
    stop: int


def uniform(problem: Problem) -> tuple[Stage, ...]:
    """Split the layers into equal counts, one stage for each node.

    Nodes that are left when there are fewer layers have no stage.

    Limits that the stages violate are for `evaluate` to report.
    """
    check_kind("problem", problem, Problem)
    return best_uniform(problem, _uniform, _best)


def proportional(problem: Problem, *, to: Literal["speed", "memory"] = "speed") -> tuple[Stage, ...]:
    """Split the layers in proportion to the nodes' speed, or to their usable memory (as exo does).

    By speed, a layer weighs its mean seconds over the nodes, and a node's speed is the inverse of its seconds for
    all layers, both in the mean over the micro-batches; by memory, all layers weigh the same.

    Raises:
        ValueError: `to` is neither "speed" nor "memory".
    """
    check_kind("problem", problem, Problem)
    check_choice("to", to, ("speed", "memory"))
    return best_uniform(problem, lambda plain: _proportional(plain, to), _best)


def _uniform(problem: Problem) -> tuple[Stage, ...]:
    return _with_best_level(problem, _shares(np.ones(len(problem.layers)), np.ones(len(problem.nodes))))


def _proportional(problem: Problem, to: str) -> tuple[Stage, ...]:
    seconds = _mean_time_s(problem)
    work = seconds.mean(axis=0)
    if to == "memory":
        work = np.ones(len(problem.layers))
        share = np.array([node.memory_bytes - node.headroom_bytes for node in problem.nodes])
    else:
        total = seconds.sum(axis=1)
        # A node that takes no time would get all layers.
        share = 1.0 / total if (total > 0).all() else np.zeros(len(problem.nodes))
    return _with_best_level(problem, _shares(work, share)) if share.sum() > 0 else _uniform(problem)


def _mean_time_s(problem: Problem) -> Array:
    """Return the mean seconds of a layer over the micro-batches (N, L)."""
    if problem.layer_earlier_time_s is None:
        return problem.layer_time_s
    more = problem.micro_batches - 1
    return (problem.layer_time_s + more * problem.layer_earlier_time_s) / (1 + more)


def fill_in_order(problem: Problem) -> tuple[Stage, ...]:
    """Fill the nodes in order up to their memory, as accelerate does; the last one takes all remaining layers.

    A node that cannot hold the next layer is skipped.

    Limits that the stages violate are for `evaluate` to report.
    """
    check_kind("problem", problem, Problem)
    return best_uniform(problem, _fill_in_order, _best)


def _fill_in_order(problem: Problem) -> tuple[Stage, ...]:
    layers, memory = len(problem.layers), problem.layer_memory_bytes
    spans: list[Span] = []
    start = 0
    for n, node in enumerate(problem.nodes):
        room = node.memory_bytes - node.headroom_bytes
        stop = start + int(np.searchsorted(np.cumsum(memory[start:]), room, side="right"))
        if n == len(problem.nodes) - 1:
            stop = layers
        if stop > start:
            spans.append(Span(n, start, stop))
        start = stop
    return _with_best_level(problem, spans)


def min_max_split(problem: Problem) -> tuple[Stage, ...]:
    """Minimise the longest occupancy of a stage or link, as PipeDream and EdgeShard do, for the best single level.

    A dynamic programme over (layers placed, last node) that respects memory and may skip nodes. It counts computing and
    transmission alone, of the micro-batches before the last one: no codec seconds, propagation, ingress, egress,
    generation or pins. If no split fits, the result is that of `uniform`.

    Limits that the stages violate are for `evaluate` to report.
    """
    check_kind("problem", problem, Problem)
    return best_uniform(problem, _min_max_split, _best)


def _min_max_split(problem: Problem) -> tuple[Stage, ...]:
    compute = _compute_s(problem)
    ratios = sorted({level.ratio for level in problem.levels}) or [1.0]
    splits = {tuple(spans) for ratio in ratios if (spans := _min_max_spans(problem, compute, ratio))}
    if not splits:
        return _uniform(problem)
    return _best(problem, [stages for spans in sorted(splits) for stages in _with_each_level(problem, spans)])


def single_node(problem: Problem, *, objective: str = "latency") -> tuple[Stage, ...]:
    """Run all layers on one node: the fastest of the nodes that respect the limits, else of all nodes.

    Raises:
        ValueError: There is no such objective (see `SolveOptions`).
    """
    check_kind("problem", problem, Problem)
    check_objective(objective)

    def rank(stages: tuple[Stage, ...]) -> tuple[bool, float]:
        result = evaluate(problem, stages)
        return not result.is_feasible, value_s(result, objective)

    return best_uniform(
        problem, lambda plain: _single_node(plain, objective), lambda _, candidates: min(candidates, key=rank)
    )


def _single_node(problem: Problem, objective: str) -> tuple[Stage, ...]:
    best: tuple[Stage, ...] = ()
    best_rank: tuple[bool, float, int] | None = None
    for node, least_s in fastest_first(problem, objective):
        if best_rank is not None and not best_rank[0] and least_s >= best_rank[1]:
            break
        result = evaluate(problem, (Stage(node, 0, len(problem.layers)),))
        rank = (not result.is_feasible, value_s(result, objective), node)
        if best_rank is None or rank < best_rank:
            best, best_rank = (Stage(node, 0, len(problem.layers)),), rank
    return best


def alternatives(problem: Problem, *, tied_bytes: TiedBytes = 0) -> tuple[Alternative, ...]:
    """Score the alternatives to a plan; those that violate a limit are scored too.

    They are the best plan without compression, the heuristic baselines, and all layers on each single node (see
    `unsplit`), which holds the `tied_bytes` that the first and the last layer share once.

    Raises:
        ValueError: `tied_bytes` is negative, or more than the last layer has.
        TypeError: An argument has another type.
    """
    check_kind("problem", problem, Problem)
    check_tied_bytes(problem, tied_bytes)
    return (
        uncompressed(problem),
        *heuristic_baselines(problem),
        *(on_one_node(problem, node, tied_bytes) for node in range(len(problem.nodes))),
    )


def heuristic_baselines(problem: Problem, objective: str = "latency") -> tuple[Alternative, ...]:
    """Score the heuristic baselines."""
    return (
        scored(problem, "uniform", uniform(problem), objective),
        scored(problem, "proportional to speed", proportional(problem), objective),
        scored(problem, "proportional to memory", proportional(problem, to="memory"), objective),
        scored(problem, "filled in order", fill_in_order(problem), objective),
        scored(problem, "min-max split", min_max_split(problem), objective),
    )


def scored(problem: Problem, name: str, stages: Sequence[Stage], objective: str = "latency") -> Alternative:
    """Return stages as an alternative, with their seconds and violations."""
    result = evaluate(problem, stages)
    return Alternative(name, _finite(value_s(result, objective)), "; ".join(result.violations))


def on_one_node(problem: Problem, node: int, tied_bytes: TiedBytes) -> Alternative:
    """Return all layers on one node as an alternative, with the nodes that relay its input."""
    return unsplit_alternative(problem, unsplit(problem, node, tied_bytes=tied_bytes))


def unsplit_alternative(problem: Problem, found: Unsplit) -> Alternative:
    """Return an unsplit plan as an alternative."""
    relays = ", ".join(problem.nodes[relay].name for relay in found.path[:-1])
    name = f"all on {problem.nodes[found.node].name}" + (f", input relayed by {relays}" if relays else "")
    return Alternative(name, _finite(found.total_s), "; ".join(found.violations))


def without_compression(problem: Problem) -> Problem:
    """Return the problem with only its levels of ratio 1."""
    raw = [k for k, level in enumerate(problem.levels) if level.ratio == 1]
    return replace(problem, levels=tuple(problem.levels[k] for k in raw), loss=problem.loss[:, raw])


def uncompressed(problem: Problem) -> Alternative:
    """Return the best plan without compression."""
    bare = without_compression(problem)
    best = solve(bare)
    if not best.stages:
        return Alternative(WITHOUT_COMPRESSION, None, best.reason or "")
    return scored(bare, WITHOUT_COMPRESSION, best.stages)


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _shares(work: Array, share: Array) -> list[Span]:
    """Return spans whose work is in proportion to the nodes' shares; every node gets at least one layer."""
    layers, nodes = len(work), min(len(share), len(work))
    targets = np.cumsum(share[:nodes])[:-1] / share[:nodes].sum() * work.sum()
    bounds = [0]
    for k, cut in enumerate(np.searchsorted(np.cumsum(work) - work / 2, targets), start=1):
        bounds.append(int(np.clip(cut, bounds[-1] + 1, layers - (nodes - k))))
    return [Span(k, start, stop) for k, (start, stop) in enumerate(pairwise([*bounds, layers]))]


def _with_best_level(problem: Problem, spans: Sequence[Span]) -> tuple[Stage, ...]:
    return _best(problem, _with_each_level(problem, spans))


def _with_each_level(problem: Problem, spans: Sequence[Span]) -> list[tuple[Stage, ...]]:
    last = Stage(*spans[-1])
    if len(spans) == 1:
        return [(last,)]
    return [(*(Stage(*span, level) for span in spans[:-1]), last) for level in range(len(problem.levels))]


def _best(problem: Problem, candidates: Sequence[tuple[Stage, ...]]) -> tuple[Stage, ...]:
    """Return the fastest that respects all limits, else the fastest within the loss budget, else that of least loss.

    Without levels nothing can be cut: all layers are on one node.
    """
    budget = math.inf if problem.loss_budget is None else problem.loss_budget * (1 + 1e-9)

    def rank(stages: tuple[Stage, ...]) -> tuple[bool, bool, float, tuple[Stage, ...]]:
        result = evaluate(problem, stages)
        is_over = result.loss > budget or math.isinf(result.loss)
        return not result.is_feasible, is_over, result.loss if is_over else result.objective_s, stages

    return min(candidates, key=rank) if candidates else _single_node(problem, "latency")


def _compute_s(problem: Problem) -> Array:
    """Return the seconds of a stage [start, stop) on each node (N, start, stop), infinite where it does not fit."""
    layers = len(problem.layers)
    ends = np.zeros((len(problem.nodes), layers + 1))
    ends[:, 1:] = np.cumsum(earlier_time_s(problem), axis=1)
    held = np.concatenate([[0.0], np.cumsum(problem.layer_memory_bytes)])
    room = np.array([node.memory_bytes - node.headroom_bytes for node in problem.nodes])
    fits = (held[None, :] - held[:, None] <= room[:, None, None]) & np.triu(np.ones((layers + 1, layers + 1), bool), 1)
    seconds = ends[:, None, :] - ends[:, :, None] + np.reshape(stage_overhead_s(problem), (-1, 1, 1))
    return np.where(fits, seconds, math.inf)


def _min_max_spans(problem: Problem, compute: Array, ratio: float) -> list[Span]:
    """Return the split of smallest bottleneck if every cut is compressed by `ratio`, [] if none fits."""
    nodes, ends = len(problem.nodes), len(problem.layers) + 1
    busiest = np.full((nodes, ends), math.inf)  # by last node and layers placed
    came_from = np.zeros((nodes, ends, 2), dtype=np.int64)  # the previous node, and the layers before it
    compressed = np.concatenate([[0.0], problem.cut_bytes / ratio, [0.0]])
    for m in range(nodes):
        arrival = np.full(ends, math.inf)
        arrival[0] = 0
        sender = np.full(ends, -1)
        for n in range(m):
            if problem.bandwidth_bytes_per_s[n, m] > 0:
                sent = np.maximum(busiest[n], compressed / problem.bandwidth_bytes_per_s[n, m])
                sender = np.where(sent < arrival, n, sender)
                arrival = np.minimum(arrival, sent)
        joined = np.maximum(arrival[:, None], compute[m])
        start = joined.argmin(axis=0)
        busiest[m] = joined[start, np.arange(ends)]
        came_from[m, :, 0], came_from[m, :, 1] = sender[start], start
    node = int(busiest[:, -1].argmin())
    return _walk_back(came_from, node) if busiest[node, -1] < math.inf else []


def _walk_back(came_from: NDArray[np.int64], node: int) -> list[Span]:
    spans: list[Span] = []
    stop = came_from.shape[1] - 1
    while stop > 0:
        before, start = (int(value) for value in came_from[node, stop])
        spans.insert(0, Span(node, start, stop))
        node, stop = before, start
    return spans
