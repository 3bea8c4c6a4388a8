"""Cost-to-go bounds and the plans that attain them, as in cpp/src/planner/cost_to_go.hpp, which has the proofs.

A relaxation's values are indexed by (visited set, boundary, vertex).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from orbitsplit._numba.jit import inlined, jit, slices
from orbitsplit._numba.time_limit import TimeLimit

from .metrics import Metric
from .tables import Floats, Ints, Tables


class Relaxation(NamedTuple):
    """Cost-to-go under a limit on single resources and a Lagrange multiplier on the loss.

    `to_go_departed` holds it after the stage that ends at a boundary on a vertex, `to_go_arrived` before the stage that
    starts there, `root` of the whole problem.
    """

    limit: float
    multiplier: float
    root: float
    to_go_departed: Floats
    to_go_arrived: Floats


def relax(t: Tables, metric: Metric, limit: float, multiplier: float, time_limit: TimeLimit) -> Relaxation:
    """Run one backward dynamic programme. If it must end early, its bounds are all 0: they hold."""
    stages = _best_stages(t, metric, limit, multiplier, time_limit)
    shape = (t.visited_sets, t.layers + 1, len(t.node_of))
    to_go_departed, to_go_arrived = np.full(shape, math.inf), np.full(shape, math.inf)
    transfers = _best_levels(t, metric, limit, multiplier, time_limit)
    for start, stop in slices((t.visited_sets - t.count_step) * t.layers, _row_operations(t)):
        if time_limit.must_end():
            return Relaxation(limit, multiplier, 0.0, np.zeros(shape), np.zeros(shape))
        _fill(t, metric, transfers, stages, (limit, multiplier), to_go_departed, to_go_arrived, start, stop)
    weights, at = _starts(t, metric, limit)
    return Relaxation(limit, multiplier, float((weights + to_go_arrived[at]).min()), to_go_departed, to_go_arrived)


def least_loss(t: Tables, time_limit: TimeLimit) -> Relaxation:
    """Return the relaxation whose only cost is loss: the least loss of any completion."""
    return relax(t, without_time(t), math.inf, 1.0, time_limit)


def without_time(t: Tables) -> Metric:
    """Return the metric that counts nothing: what is left is the loss."""
    levels = np.zeros((t.layers + 1, t.levels))
    compute = np.zeros((t.nodes * t.weight_levels, t.layers + 1))
    node = np.zeros(t.nodes)
    return Metric(
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, compute, compute, compute, compute, levels, levels, levels, levels,
        np.zeros(t.layers + 1), np.zeros((t.layers + 1, t.nodes)), node, node, node, node,
    )  # fmt: skip


@inlined
def with_node(t: Tables, visited: int, node: int) -> int:
    """Return the visited set after one more stage."""
    return (visited if t.ng_bit[node] < 0 else visited | (1 << t.ng_bit[node])) + t.count_step


@inlined
def has_visited(t: Tables, visited: int, node: int) -> bool:
    """Return whether a visited set contains the node, which must be in the ng-set for that."""
    return bool(t.ng_bit[node] >= 0 and (visited >> t.ng_bit[node]) & 1 != 0)


@inlined
def is_blocked(t: Tables, visited: int, node: int) -> bool:
    """Return whether a visited set rules out a stage on the node."""
    return bool(has_visited(t, visited, node) or (visited >> t.ng_size) >= t.most_stages)


@inlined
def _transfer_weight(t: Tables, m: Metric, limit: float, node: int, link: int, at: tuple[int, int]) -> float:
    busy = m.compressed_max[at] * t.s_per_byte[link] + m.latency_max * t.latency[link]
    encode = m.encode_max[at]
    if t.half_duplex[node]:
        if encode + busy > limit:
            return np.inf
    elif encode > limit or busy > limit:
        return np.inf
    return float(m.compressed_sum[at] * t.s_per_byte[link] + m.latency_sum * t.latency[link] + m.code_sum[at])


@inlined
def _may_end(t: Tables, m: Metric, limit: float, visited: int, node: int) -> bool:
    if not t.can_end[node] or (visited & t.required_ng) != t.required_ng:
        return False
    return bool(t.half_duplex[node] or m.egress_max[node] <= limit)


def _best_levels(t: Tables, m: Metric, limit: float, multiplier: float, time_limit: TimeLimit) -> Floats:
    """Return the value of the best level of every link (boundaries x links): no visited set changes it.

    If it must end early, so must what asked for it.
    """
    best = np.full((t.layers, len(t.neighbour)), np.inf)
    for start, stop in slices(t.layers, len(t.neighbour) * t.levels):
        if time_limit.must_end():
            break
        _fill_best_levels(t, m, limit, multiplier, best, start, stop)
    return best


@jit
def _fill_best_levels(
    t: Tables, m: Metric, limit: float, multiplier: float, best: Floats, start: int, stop: int
) -> None:
    for i in range(start, stop):
        for v in range(len(t.node_of)):
            for e in range(t.neighbour_start[v], t.neighbour_start[v + 1]):
                for k in range(t.levels):
                    if t.loss[i, k] == np.inf:  # 0 times infinity is no number
                        continue
                    value = _transfer_weight(t, m, limit, t.node_of[v], e, (i, k)) + multiplier * t.loss[i, k]
                    best[i, e] = min(best[i, e], value)


def _best_stages(t: Tables, m: Metric, limit: float, multiplier: float, time_limit: TimeLimit) -> Floats:
    """Return the weight of the best weight level of every stage (nodes x starts x stops): no visited set changes it.

    Empty where that does not pay: without weight levels, or for a single visited set. If it must end early, so must
    what asked for it.
    """
    if not t.has_weight_levels or t.visited_sets == 1:
        return np.zeros((0, 0, 0))
    best = np.full((t.nodes, t.layers + 1, t.layers + 1), np.inf)
    for start, stop in slices(t.layers, t.nodes * t.weight_levels * t.layers):
        if time_limit.must_end():
            break
        _fill_best_stages(t, m, limit, multiplier, best, start, stop)
    return best


@jit
def _fill_best_stages(
    t: Tables, m: Metric, limit: float, multiplier: float, best: Floats, first: int, end: int
) -> None:
    for i in range(first, end):
        for lane in range(t.nodes * t.weight_levels):
            n = lane // t.weight_levels
            for stop in range(i + 1, t.max_stop[lane, i] + 1):
                busy = m.compute_max[lane, stop] - m.start_max[lane, i]
                if not busy + m.open_max[i] + m.close_max[stop, n] > limit:
                    weight = m.compute_sum[lane, stop] - m.start_sum[lane, i]
                    weight += multiplier * t.stage_loss[lane % t.weight_levels, i, stop]
                    best[n, i, stop] = min(best[n, i, stop], weight)


def _starts(t: Tables, m: Metric, limit: float) -> tuple[Floats, tuple[Ints, int, Ints]]:
    """Return by node the weight of reaching a chain's first stage, or infinity, and the index of its state."""
    is_open = t.can_start & (m.ingress_max <= limit) & (t.start_vertex >= 0)
    visited = np.where(t.ng_bit < 0, 0, 1 << np.maximum(t.ng_bit, 0)) + t.count_step
    return np.where(is_open, m.ingress_sum, math.inf), (visited, 0, t.start_vertex)


def _row_operations(t: Tables) -> int:
    """Return an upper bound of the operations of a relaxation for one visited set at one boundary."""
    return len(t.neighbour) + len(t.node_of) * t.layers * t.weight_levels


@inlined
def _is_state(t: Tables, visited: int, vertex: int) -> bool:
    """Return whether chains with this visited set can be at a vertex."""
    bit = t.ng_bit[t.node_of[vertex]]
    if bit >= 0 and (visited >> bit) & 1 == 0:
        return False
    if t.count_step == 0:
        return True
    stages, remembered = visited >> t.ng_size, t.remembered[vertex]
    return bool(stages == remembered if remembered < t.k_cycle else stages >= remembered)


@jit
def _fill(
    t: Tables,
    m: Metric,
    transfers: Floats,
    stages: Floats,
    priced: tuple[float, float],
    to_go_departed: Floats,
    to_go_arrived: Floats,
    start: int,
    end: int,
) -> None:
    """Fill rows, one for each visited set and boundary, from the last of both to the first."""
    # Arrays are read from their tuples once: inside the loops that costs more than the loops themselves.
    ng_bit, max_stop, start_of, neighbour = t.ng_bit, t.max_stop, t.neighbour_start, t.neighbour
    compute_sum, compute_max, open_max, close_max = m.compute_sum, m.compute_max, m.open_max, m.close_max
    start_sum, start_max = m.start_sum, m.start_max
    node_of, vertices = t.node_of, len(t.node_of)
    layers, step, ng_size, most_stages = t.layers, t.count_step, t.ng_size, t.most_stages
    weight_levels, has_weight_levels, stage_loss = t.weight_levels, t.has_weight_levels, t.stage_loss
    limit, multiplier = priced
    for row in range(start, end):
        visited, i = t.visited_sets - 1 - row // layers, layers - 1 - row % layers
        may_send = visited >> ng_size < most_stages
        for v in range(vertices if i == layers - 1 else 0):
            if _is_state(t, visited, v) and _may_end(t, m, limit, visited, node_of[v]):
                to_go_departed[visited, layers, v] = m.egress_sum[node_of[v]]
        for v in range(vertices):
            if not _is_state(t, visited, v):
                continue
            best = np.inf
            n = node_of[v]
            for stop in range(i + 1, layers + 1 if len(stages) else 0):
                best = min(best, stages[n, i, stop] + to_go_departed[visited, stop, v])
            for w in range(0 if len(stages) else weight_levels):
                lane = n * weight_levels + w
                for stop in range(i + 1, max_stop[lane, i] + 1):
                    rest = to_go_departed[visited, stop, v]
                    busy = compute_max[lane, stop] - start_max[lane, i]
                    if rest < best and not busy + open_max[i] + close_max[stop, n] > limit:
                        weight = compute_sum[lane, stop] - start_sum[lane, i]
                        if has_weight_levels:
                            weight += multiplier * stage_loss[w, i, stop]
                        best = min(best, weight + rest)
            to_go_arrived[visited, i, v] = best
        for v in range(vertices):
            if i == 0 or not may_send or not _is_state(t, visited, v):
                continue
            best = np.inf
            for e in range(start_of[v], start_of[v + 1]):
                next_vertex, next_visited = neighbour[e], visited
                bit = ng_bit[node_of[next_vertex]]
                if bit >= 0:
                    next_visited = visited | (1 << bit)
                    if next_visited == visited:
                        continue
                best = min(best, transfers[i, e] + to_go_arrived[next_visited + step, i, next_vertex])
            to_go_departed[visited, i, v] = best


def bounds_through(t: Tables, metric: Metric, relaxation: Relaxation, time_limit: TimeLimit) -> Floats:
    """Return by vertex the least (sum + multiplier * loss) of any relaxed plan through it, 0 if it must end early."""
    arrived = np.full(relaxation.to_go_arrived.shape, math.inf)
    departed = arrived.copy()
    transfers = _best_levels(t, metric, relaxation.limit, relaxation.multiplier, time_limit)
    weights, at = _starts(t, metric, relaxation.limit)
    is_open = weights < math.inf
    arrived[at[0][is_open], 0, at[2][is_open]] = weights[is_open]
    best = np.full(len(t.node_of), math.inf)
    for start, end in slices(t.layers, t.visited_sets * _row_operations(t)):
        if time_limit.must_end():
            return np.zeros(len(t.node_of))
        _forward_pass(t, metric, relaxation, transfers, arrived, departed, best, start, end)
    return best


@jit
def _forward_pass(
    t: Tables,
    m: Metric,
    r: Relaxation,
    transfers: Floats,
    arrived: Floats,
    departed: Floats,
    best: Floats,
    start: int,
    end: int,
) -> None:
    """Fill the least cost of getting to a state, before and after its stage; with the cost-to-go it bounds plans."""
    vertices, node_of, neighbour, max_stop = len(t.node_of), t.node_of, t.neighbour, t.max_stop
    for i in range(start, end):
        # Stages that end at a boundary were computed before; what arrives there must be sent first.
        for visited in range(t.visited_sets if i > 0 else 0):
            for v in range(vertices):
                so_far = departed[visited, i, v]
                if so_far == np.inf:
                    continue
                for e in range(t.neighbour_start[v], t.neighbour_start[v + 1]):
                    next_vertex = neighbour[e]
                    if not is_blocked(t, visited, node_of[next_vertex]):
                        at = with_node(t, visited, node_of[next_vertex]), i, next_vertex
                        arrived[at] = min(arrived[at], so_far + transfers[i, e])
        for visited in range(t.visited_sets):
            for v in range(vertices):
                so_far, n = arrived[visited, i, v], node_of[v]
                if so_far == np.inf:
                    continue
                best[v] = min(best[v], so_far + r.to_go_arrived[visited, i, v])
                for w in range(t.weight_levels):
                    lane = n * t.weight_levels + w
                    for stop in range(i + 1, max_stop[lane, i] + 1):
                        busy = m.compute_max[lane, stop] - m.start_max[lane, i]
                        if not busy + m.open_max[i] + m.close_max[stop, n] > r.limit:
                            stage = m.compute_sum[lane, stop] - m.start_sum[lane, i]
                            if t.has_weight_levels:
                                stage += r.multiplier * t.stage_loss[w, i, stop]
                            departed[visited, stop, v] = min(departed[visited, stop, v], so_far + stage)
