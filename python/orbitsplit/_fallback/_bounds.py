"""Relaxations and their walks, as in cpp/src/planner/bounds.hpp, which proves what they bound.

A relaxation's values are indexed by (tracked nodes used, boundary, node).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._cost import NO_LEVEL
from ._jit import jit
from ._tables import Floats, Metric, Tables, without_time


class Relaxation(NamedTuple):
    """Least values of completions under a limit on single resources and a price on loss."""

    limit: float
    price: float
    root: float
    depart: Floats
    arrive: Floats


class Walk(NamedTuple):
    """Rows of (node, start, stop, level), none where the walk ended in a blind alley, and their loss."""

    stages: NDArray[np.int32]
    loss: float


def relax(t: Tables, metric: Metric, limit: float, price: float) -> Relaxation:
    """Solve one backward dynamic programme."""
    shape = (1 << t.tracked, t.layers + 1, t.nodes)
    depart, arrive = np.full(shape, math.inf), np.full(shape, math.inf)
    root = _relax(t, metric, limit, price, depart, arrive)
    return Relaxation(limit, price, root, depart, arrive)


def least_loss(t: Tables) -> Relaxation:
    """Return the relaxation that counts loss alone."""
    return relax(t, without_time(t), math.inf, 1.0)


def follow(t: Tables, metric: Metric, relaxation: Relaxation) -> Walk:
    """Return the relaxed optimum, in which untracked nodes may repeat."""
    return _walked(t, metric, relaxation, relaxation, is_plan=False)


def dive(t: Tables, metric: Metric, relaxation: Relaxation, least: Relaxation) -> Walk:
    """Walk without repeating a node and without leaving the loss budget."""
    return _walked(t, metric, relaxation, least, is_plan=True)


def _walked(t: Tables, metric: Metric, r: Relaxation, least: Relaxation, *, is_plan: bool) -> Walk:
    stages = np.empty((t.layers, 4), dtype=np.int32)
    count, loss = _walk(t, metric, r, least, is_plan, stages)
    return Walk(stages[:count], loss)


@jit
def with_node(t: Tables, mask: int, node: int) -> int:
    """Return the tracked nodes used after one more."""
    return mask if t.tracked_bit[node] < 0 else mask | (1 << t.tracked_bit[node])


@jit
def is_blocked(t: Tables, mask: int, node: int) -> bool:
    """Return whether a tracked node is used."""
    return t.tracked_bit[node] >= 0 and (mask >> t.tracked_bit[node]) & 1 != 0


@jit
def _stage_weight(t: Tables, m: Metric, limit: float, node: int, start: int, stop: int) -> float:
    busy = m.compute_max[node, stop] - m.compute_max[node, start]
    if busy + m.open_max[start] + m.close_max[stop, node] > limit:
        return np.inf
    return m.compute_sum[node, stop] - m.compute_sum[node, start]


@jit
def _transfer_weight(t: Tables, m: Metric, limit: float, ends: tuple[int, int], i: int, k: int) -> float:
    link = m.packed_max[i, k] * t.pace[ends] + m.latency_max * t.latency[ends]
    encode = m.encode_max[i, k]
    if t.half_duplex[ends[0]]:
        if encode + link > limit:
            return np.inf
    elif encode > limit or link > limit:
        return np.inf
    return m.packed_sum[i, k] * t.pace[ends] + m.latency_sum * t.latency[ends] + m.code_sum[i, k]


@jit
def _may_end(t: Tables, m: Metric, limit: float, mask: int, node: int) -> bool:
    if not t.can_end[node] or (mask & t.required_tracked) != t.required_tracked:
        return False
    return t.half_duplex[node] or m.egress_max[node] <= limit


@jit
def _best_stage(t: Tables, m: Metric, limit: float, depart: Floats, mask: int, start: int, node: int) -> float:
    best = np.inf
    for stop in range(start + 1, t.max_stop[node, start] + 1):
        rest = depart[mask, stop, node]
        if rest >= best:
            continue
        value = _stage_weight(t, m, limit, node, start, stop) + rest
        if value < best:
            best = value
    return best


@jit
def _best_transfer(
    t: Tables, m: Metric, limit: float, price: float, arrive: Floats, mask: int, i: int, node: int
) -> float:
    best = np.inf
    for e in range(t.neighbour_start[node], t.neighbour_start[node + 1]):
        to = t.neighbour[e]
        if is_blocked(t, mask, to):
            continue
        rest = arrive[with_node(t, mask, to), i, to]
        if rest >= best:
            continue
        for k in range(t.levels):
            value = _transfer_weight(t, m, limit, (node, to), i, k) + price * t.loss[i, k] + rest
            if value < best:
                best = value
    return best


@jit
def _start_value(t: Tables, m: Metric, limit: float, arrive: Floats, node: int) -> float:
    if not t.can_start[node] or m.ingress_max[node] > limit:
        return np.inf
    return m.ingress_sum[node] + arrive[with_node(t, 0, node), 0, node]


@jit
def _relax(t: Tables, m: Metric, limit: float, price: float, depart: Floats, arrive: Floats) -> float:
    for mask in range((1 << t.tracked) - 1, -1, -1):
        for n in range(t.nodes):
            is_state = t.tracked_bit[n] < 0 or is_blocked(t, mask, n)
            if is_state and _may_end(t, m, limit, mask, n):
                depart[mask, t.layers, n] = m.egress_sum[n]
        for i in range(t.layers - 1, -1, -1):
            for n in range(t.nodes):
                if t.tracked_bit[n] < 0 or is_blocked(t, mask, n):
                    arrive[mask, i, n] = _best_stage(t, m, limit, depart, mask, i, n)
            for n in range(t.nodes):
                if i > 0 and (t.tracked_bit[n] < 0 or is_blocked(t, mask, n)):
                    depart[mask, i, n] = _best_transfer(t, m, limit, price, arrive, mask, i, n)
    root = np.inf
    for n in range(t.nodes):
        root = min(root, _start_value(t, m, limit, arrive, n))
    return root


@jit
def _pick_start(t: Tables, m: Metric, r: Relaxation, least: Relaxation, is_plan: bool) -> int:
    choice, best = -1, np.inf
    for n in range(t.nodes):
        value = _start_value(t, m, r.limit, r.arrive, n)
        if value < best and (not is_plan or least.arrive[with_node(t, 0, n), 0, n] <= t.loss_limit):
            choice, best = n, value
    return choice


@jit
def _pick_stop(
    t: Tables,
    m: Metric,
    r: Relaxation,
    least: Relaxation,
    is_plan: bool,
    mask: int,
    place: tuple[int, int],
    loss: float,
) -> int:
    start, node = place
    choice, best = -1, np.inf
    for stop in range(start + 1, t.max_stop[node, start] + 1):
        value = _stage_weight(t, m, r.limit, node, start, stop) + r.depart[mask, stop, node]
        if value < best and (not is_plan or loss + 0.0 + least.depart[mask, stop, node] <= t.loss_limit):
            choice, best = stop, value
    return choice


@jit
def _pick_transfer(
    t: Tables, m: Metric, r: Relaxation, least: Relaxation, used: NDArray[np.bool_], is_plan: bool,
    mask: int, place: tuple[int, int], loss: float,
) -> tuple[int, int]:  # fmt: skip
    i, node = place
    choice, level, best = -1, 0, np.inf
    for e in range(t.neighbour_start[node], t.neighbour_start[node + 1]):
        to = t.neighbour[e]
        if is_blocked(t, mask, to) or (is_plan and used[to]):
            continue
        after = with_node(t, mask, to)
        for k in range(t.levels):
            weight = _transfer_weight(t, m, r.limit, (node, to), i, k)
            value = weight + r.price * t.loss[i, k] + r.arrive[after, i, to]
            fits = not is_plan or loss + t.loss[i, k] + least.arrive[after, i, to] <= t.loss_limit
            if value < best and fits:
                choice, level, best = to, k, value
    return choice, level


@jit
def _walk(
    t: Tables, m: Metric, r: Relaxation, least: Relaxation, is_plan: bool, stages: NDArray[np.int32]
) -> tuple[int, float]:
    used = np.zeros(t.nodes, dtype=np.bool_)
    count, mask, boundary, loss = 0, 0, 0, 0.0
    node = _pick_start(t, m, r, least, is_plan)
    while node >= 0:
        mask = with_node(t, mask, node)
        used[node] = True
        stop = _pick_stop(t, m, r, least, is_plan, mask, (boundary, node), loss)
        if stop < 0:
            break
        stages[count] = (node, boundary, stop, NO_LEVEL)
        count += 1
        boundary = stop
        if stop == t.layers:
            return count, loss
        node, level = _pick_transfer(t, m, r, least, used, is_plan, mask, (boundary, node), loss)
        if node >= 0:
            loss += t.loss[boundary, level]
            stages[count - 1, 3] = level
    return 0, 0.0
