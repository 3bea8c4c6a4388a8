"""Relaxations and their walks, as in cpp/src/planner/bounds.hpp, which proves what they bound.

A relaxation's values are indexed by (past, boundary, place).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._cost import NO_LEVEL
from ._jit import inlined, jit, slices
from ._tables import Floats, Ints, Metric, Tables, without_time


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
    shape = (t.pasts, t.layers + 1, len(t.node_of))
    depart, arrive = np.full(shape, math.inf), np.full(shape, math.inf)
    transfers = _best_levels(t, metric, limit, price)
    for start, stop in slices((t.pasts - t.count_step) * t.layers, _row_operations(t)):
        _fill(t, metric, transfers, limit, depart, arrive, start, stop)
    weights, at = _starts(t, metric, limit)
    return Relaxation(limit, price, float((weights + arrive[at]).min()), depart, arrive)


def least_loss(t: Tables) -> Relaxation:
    """Return the relaxation that counts loss alone."""
    return relax(t, without_time(t), math.inf, 1.0)


def follow(t: Tables, metric: Metric, relaxation: Relaxation) -> Walk:
    """Return the relaxed optimum, in which untracked nodes may repeat."""
    return _Walker(t, metric, relaxation, None).run()


def dive(t: Tables, metric: Metric, relaxation: Relaxation, least: Relaxation) -> Walk:
    """Walk without repeating a node and without leaving the loss budget."""
    return _Walker(t, metric, relaxation, least).run()


def dive_for_loss(t: Tables, least: Relaxation) -> Walk:
    """Dive along the least loss, whatever it costs."""
    return dive(t, without_time(t), least, least)


class _Walker:
    """One walk along a relaxation's choices; with the least loss it makes a plan, else a relaxed one."""

    def __init__(self, t: Tables, m: Metric, r: Relaxation, least: Relaxation | None) -> None:
        self.t = t
        self.m = m
        self.r = r
        self.least = least
        self.used = np.zeros(t.nodes, dtype=np.bool_)
        self.past = 0
        self.loss = 0.0

    def run(self) -> Walk:
        place, boundary = self.pick_start(), 0
        rows = []
        while place >= 0:
            node = int(self.t.node_of[place])
            self.past = self.pasts_with(np.array([node]))[0]
            self.used[node] = True
            stop = self.pick_stop(boundary, place)
            if stop < 0:
                break
            to, level = self.pick_transfer(stop, place) if stop < self.t.layers else (-1, NO_LEVEL)
            rows.append((node, boundary, stop, level))
            if stop == self.t.layers:
                return Walk(np.array(rows, dtype=np.int32), float(self.loss))  # which overflows silently
            if to >= 0:
                self.loss += self.t.loss[stop, level]
            place, boundary = to, stop
        return Walk(np.empty((0, 4), dtype=np.int32), 0.0)

    def pasts_with(self, nodes: Ints) -> Ints:
        """Return the past after a stage on each of the nodes."""
        bits = self.t.tracked_bit[nodes]
        return np.where(bits < 0, self.past, self.past | 1 << np.maximum(bits, 0)) + self.t.count_step

    def choose(self, values: Floats, loss: Floats, to_come: Floats | None) -> int:
        """Return the first of the least values that keep the loss budget, or -1."""
        if to_come is not None:
            values = np.where(self.loss + loss + to_come <= self.t.loss_limit, values, math.inf)
        if not values.size or not values.min() < math.inf:
            return -1
        return int(values.argmin())

    def pick_start(self) -> int:
        t, m, nodes = self.t, self.m, np.arange(self.t.nodes)
        at = (self.pasts_with(nodes), 0, t.start_place)
        is_open = t.can_start & (m.ingress_max <= self.r.limit) & (t.start_place >= 0)
        values = np.where(is_open, m.ingress_sum + self.r.arrive[at], math.inf)
        choice = self.choose(values, np.zeros(1), None if self.least is None else self.least.arrive[at])
        return choice if choice < 0 else int(t.start_place[choice])

    def pick_stop(self, start: int, place: int) -> int:
        t, m, node = self.t, self.m, self.t.node_of[place]
        stops = slice(start + 1, t.max_stop[node, start] + 1)
        busy = m.compute_max[node, stops] - m.compute_max[node, start]
        fits = busy + m.open_max[start] + m.close_max[stops, node] <= self.r.limit
        weight = np.where(fits, m.compute_sum[node, stops] - m.compute_sum[node, start], math.inf)
        at = (self.past, stops, place)
        to_come = None if self.least is None else self.least.depart[at]
        choice = self.choose(weight + self.r.depart[at], np.zeros(1), to_come)
        return choice if choice < 0 else start + 1 + choice

    def pick_transfer(self, i: int, place: int) -> tuple[int, int]:
        t, m, node = self.t, self.m, self.t.node_of[place]
        links = np.arange(t.neighbour_start[place], t.neighbour_start[place + 1])
        nodes = t.node_of[t.neighbour[links]]
        bits = t.tracked_bit[nodes]
        is_blocked = (bits >= 0) & (self.past >> np.maximum(bits, 0) & 1 != 0)
        is_blocked |= self.past >> t.tracked >= t.most_stages
        links = links[~is_blocked] if self.least is None else links[~is_blocked & ~self.used[nodes]]
        to = t.neighbour[links]
        pace, latency = t.pace[links, np.newaxis], t.latency[links, np.newaxis]
        link = m.packed_max[i] * pace + m.latency_max * latency
        encode = m.encode_max[i]
        if t.half_duplex[node]:
            fits = encode + link <= self.r.limit
        else:
            fits = (encode <= self.r.limit) & (link <= self.r.limit)
        weight = m.packed_sum[i] * pace + m.latency_sum * latency + m.code_sum[i]
        at = (self.pasts_with(t.node_of[to]), i, to)
        values = np.where(fits, weight, math.inf) + self.r.price * t.loss[i] + self.r.arrive[at][:, np.newaxis]
        to_come = None if self.least is None else self.least.arrive[at][:, np.newaxis]
        choice = self.choose(values, t.loss[i], to_come)
        return (-1, NO_LEVEL) if choice < 0 else (int(to[choice // t.levels]), choice % t.levels)


@inlined
def with_node(t: Tables, past: int, node: int) -> int:
    """Return the past after one more stage."""
    return (past if t.tracked_bit[node] < 0 else past | (1 << t.tracked_bit[node])) + t.count_step


@inlined
def _has_used(t: Tables, past: int, node: int) -> bool:
    return bool(t.tracked_bit[node] >= 0 and (past >> t.tracked_bit[node]) & 1 != 0)


@inlined
def is_blocked(t: Tables, past: int, node: int) -> bool:
    """Return whether a past rules a stage on the node out."""
    return bool(_has_used(t, past, node) or (past >> t.tracked) >= t.most_stages)


@inlined
def _transfer_weight(t: Tables, m: Metric, limit: float, node: int, link: int, at: tuple[int, int]) -> float:
    busy = m.packed_max[at] * t.pace[link] + m.latency_max * t.latency[link]
    encode = m.encode_max[at]
    if t.half_duplex[node]:
        if encode + busy > limit:
            return np.inf
    elif encode > limit or busy > limit:
        return np.inf
    return float(m.packed_sum[at] * t.pace[link] + m.latency_sum * t.latency[link] + m.code_sum[at])


@inlined
def _may_end(t: Tables, m: Metric, limit: float, past: int, node: int) -> bool:
    if not t.can_end[node] or (past & t.required_tracked) != t.required_tracked:
        return False
    return bool(t.half_duplex[node] or m.egress_max[node] <= limit)


def _best_levels(t: Tables, m: Metric, limit: float, price: float) -> Floats:
    """Transfers do not depend on the past: return the best level of every link, boundaries x links."""
    best = np.full((t.layers, len(t.neighbour)), np.inf)
    for start, stop in slices(t.layers, len(t.neighbour) * t.levels):
        _fill_best_levels(t, m, limit, price, best, start, stop)
    return best


@jit
def _fill_best_levels(t: Tables, m: Metric, limit: float, price: float, best: Floats, start: int, stop: int) -> None:
    for i in range(start, stop):
        for p in range(len(t.node_of)):
            for e in range(t.neighbour_start[p], t.neighbour_start[p + 1]):
                for k in range(t.levels):
                    value = _transfer_weight(t, m, limit, t.node_of[p], e, (i, k)) + price * t.loss[i, k]
                    best[i, e] = min(best[i, e], value)


def _starts(t: Tables, m: Metric, limit: float) -> tuple[Floats, tuple[Ints, int, Ints]]:
    """Return by node the weight of reaching a chain's first stage, or infinity, and the index of its state."""
    is_open = t.can_start & (m.ingress_max <= limit) & (t.start_place >= 0)
    pasts = np.where(t.tracked_bit < 0, 0, 1 << np.maximum(t.tracked_bit, 0)) + t.count_step
    return np.where(is_open, m.ingress_sum, math.inf), (pasts, 0, t.start_place)


def _row_operations(t: Tables) -> int:
    """Operations of a relaxation for one past at one boundary, at most."""
    return len(t.neighbour) + len(t.node_of) * t.layers


@inlined
def _is_state(t: Tables, past: int, place: int) -> bool:
    """Return whether chains with such a past can be at a place."""
    bit = t.tracked_bit[t.node_of[place]]
    if bit >= 0 and (past >> bit) & 1 == 0:
        return False
    if t.count_step == 0:
        return True
    stages, remembered = past >> t.tracked, t.remembered[place]
    return bool(stages == remembered if remembered < t.memory else stages >= remembered)


@jit
def _fill(
    t: Tables,
    m: Metric,
    transfers: Floats,
    limit: float,
    depart: Floats,
    arrive: Floats,
    start: int,
    end: int,
) -> None:
    """Fill rows, one for each past and boundary, from the last past and boundary to the first."""
    # Arrays are taken out of their tuples once: in a loop that costs more than what the loop does.
    tracked_bit, max_stop, start_of, neighbour = t.tracked_bit, t.max_stop, t.neighbour_start, t.neighbour
    compute_sum, compute_max, open_max, close_max = m.compute_sum, m.compute_max, m.open_max, m.close_max
    node_of, places = t.node_of, len(t.node_of)
    layers, step, tracked, most_stages = t.layers, t.count_step, t.tracked, t.most_stages
    for row in range(start, end):
        past, i = t.pasts - 1 - row // layers, layers - 1 - row % layers
        may_send = past >> tracked < most_stages
        for p in range(places if i == layers - 1 else 0):
            if _is_state(t, past, p) and _may_end(t, m, limit, past, node_of[p]):
                depart[past, layers, p] = m.egress_sum[node_of[p]]
        for p in range(places):
            if not _is_state(t, past, p):
                continue
            best = np.inf
            n = node_of[p]
            for stop in range(i + 1, max_stop[n, i] + 1):
                rest = depart[past, stop, p]
                busy = compute_max[n, stop] - compute_max[n, i]
                if rest < best and not busy + open_max[i] + close_max[stop, n] > limit:
                    best = min(best, compute_sum[n, stop] - compute_sum[n, i] + rest)
            arrive[past, i, p] = best
        for p in range(places):
            if i == 0 or not may_send or not _is_state(t, past, p):
                continue
            best = np.inf
            for e in range(start_of[p], start_of[p + 1]):
                to, next_past = neighbour[e], past
                bit = tracked_bit[node_of[to]]
                if bit >= 0:
                    next_past = past | (1 << bit)
                    if next_past == past:
                        continue
                best = min(best, transfers[i, e] + arrive[next_past + step, i, to])
            depart[past, i, p] = best


def through(t: Tables, metric: Metric, relaxation: Relaxation) -> Floats:
    """Return by place the least value of any relaxed plan that goes through it."""
    reach = np.full(relaxation.arrive.shape, math.inf)
    depart = np.full(relaxation.arrive.shape, math.inf)
    transfers = _best_levels(t, metric, relaxation.limit, relaxation.price)
    weights, at = _starts(t, metric, relaxation.limit)
    is_open = weights < math.inf
    reach[at[0][is_open], 0, at[2][is_open]] = weights[is_open]
    best = np.full(len(t.node_of), math.inf)
    for start, end in slices(t.layers, t.pasts * _row_operations(t)):
        _through(t, metric, transfers, relaxation.limit, relaxation.arrive, reach, depart, best, start, end)
    return best


@jit
def _through(
    t: Tables,
    m: Metric,
    transfers: Floats,
    limit: float,
    arrive: Floats,
    reach: Floats,
    depart: Floats,
    best: Floats,
    start: int,
    end: int,
) -> None:
    places, node_of, neighbour, max_stop = len(t.node_of), t.node_of, t.neighbour, t.max_stop
    for i in range(start, end):
        for past in range(t.pasts if i > 0 else 0):
            for p in range(places):
                if depart[past, i, p] == np.inf:
                    continue
                for e in range(t.neighbour_start[p], t.neighbour_start[p + 1]):
                    to = neighbour[e]
                    if not is_blocked(t, past, node_of[to]):
                        after = with_node(t, past, node_of[to])
                        reach[after, i, to] = min(reach[after, i, to], depart[past, i, p] + transfers[i, e])
        for past in range(t.pasts):
            for p in range(places):
                value, n = reach[past, i, p], node_of[p]
                if value == np.inf:
                    continue
                best[p] = min(best[p], value + arrive[past, i, p])
                for stop in range(i + 1, max_stop[n, i] + 1):
                    busy = m.compute_max[n, stop] - m.compute_max[n, i]
                    if not busy + m.open_max[i] + m.close_max[stop, n] > limit:
                        stage = m.compute_sum[n, stop] - m.compute_sum[n, i]
                        depart[past, stop, p] = min(depart[past, stop, p], value + stage)
