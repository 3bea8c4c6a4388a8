"""Plans along a relaxation's choices, as in cpp/src/planner/relaxed_walk.hpp."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cost import NO_LEVEL
from .cost_to_go import Relaxation, without_time
from .metrics import Metric
from .tables import Floats, Ints, Tables


class Walk(NamedTuple):
    """Rows of (node, start, stop, level, weight level) and their loss; no rows if the walk reached a dead end."""

    stages: NDArray[np.int32]
    loss: float


def relaxed_optimum(t: Tables, metric: Metric, relaxation: Relaxation) -> Walk:
    """Return the relaxed optimum, in which nodes outside the ng-set may repeat."""
    return _Walker(t, metric, relaxation, None).run()


def diving_heuristic(t: Tables, metric: Metric, relaxation: Relaxation, least: Relaxation) -> Walk:
    """Follow the relaxation without repeating a node or exceeding the loss budget."""
    return _Walker(t, metric, relaxation, least).run()


def diving_heuristic_for_loss(t: Tables, least: Relaxation) -> Walk:
    """Follow the least loss, whatever the time."""
    return diving_heuristic(t, without_time(t), least, least)


class _Walker:
    """One walk along a relaxation's choices: the diving heuristic with a least-loss relaxation, else a relaxed plan."""

    def __init__(self, t: Tables, m: Metric, r: Relaxation, least: Relaxation | None) -> None:
        self.t = t
        self.m = m
        self.r = r
        self.least = least
        self.used = np.zeros(t.nodes, dtype=np.bool_)
        self.visited = 0
        self.loss = 0.0

    def run(self) -> Walk:
        vertex, boundary = self.pick_start(), 0
        rows = []
        while vertex >= 0:
            node = int(self.t.node_of[vertex])
            self.visited = self.visited_with(np.array([node]))[0]
            self.used[node] = True
            stop, weight_level = self.pick_stage(boundary, vertex)
            if stop < 0:
                break
            if self.t.has_weight_levels:
                self.loss += self.t.stage_loss[weight_level, boundary, stop]
            next_vertex, level = self.pick_transfer(stop, vertex) if stop < self.t.layers else (-1, NO_LEVEL)
            rows.append((node, boundary, stop, level, weight_level if self.t.has_weight_levels else NO_LEVEL))
            if stop == self.t.layers:
                return Walk(np.array(rows, dtype=np.int32), float(self.loss))  # which overflows silently
            if next_vertex >= 0:
                self.loss += self.t.loss[stop, level]
            vertex, boundary = next_vertex, stop
        return Walk(np.empty((0, 5), dtype=np.int32), 0.0)

    def visited_with(self, nodes: Ints) -> Ints:
        """Return the visited set after a stage on each of the nodes."""
        bits = self.t.ng_bit[nodes]
        return np.where(bits < 0, self.visited, self.visited | 1 << np.maximum(bits, 0)) + self.t.count_step

    def affordable(self, values: Floats, loss: Floats | float, to_come: Floats | None) -> Floats:
        """Return the values, infinite where the loss budget is exceeded."""
        if to_come is None:
            return values
        return np.where(self.loss + loss + to_come <= self.t.loss_limit, values, math.inf)

    def choose(self, values: Floats, loss: Floats | float, to_come: Floats | None) -> int:
        """Return the index of the first least value within the loss budget, or -1."""
        values = self.affordable(values, loss, to_come)
        if not values.size or not values.min() < math.inf:
            return -1
        return int(values.argmin())

    def pick_start(self) -> int:
        t, m, nodes = self.t, self.m, np.arange(self.t.nodes)
        at = (self.visited_with(nodes), 0, t.start_vertex)
        is_open = t.can_start & (m.ingress_max <= self.r.limit) & (t.start_vertex >= 0)
        values = np.where(is_open, m.ingress_sum + self.r.to_go_arrived[at], math.inf)
        choice = self.choose(values, 0.0, None if self.least is None else self.least.to_go_arrived[at])
        return choice if choice < 0 else int(t.start_vertex[choice])

    def pick_stage(self, start: int, vertex: int) -> tuple[int, int]:
        """Return where the stage stops, -1 if there is none, and its weight level."""
        t, m, node = self.t, self.m, self.t.node_of[vertex]
        choice, best = (-1, NO_LEVEL), math.inf
        for w in range(t.weight_levels):
            lane = node * t.weight_levels + w
            stops = slice(start + 1, t.max_stop[lane, start] + 1)
            busy = m.compute_max[lane, stops] - m.start_max[lane, start]
            fits = busy + m.open_max[start] + m.close_max[stops, node] <= self.r.limit
            stage = m.compute_sum[lane, stops] - m.start_sum[lane, start]
            values = np.where(fits, stage, math.inf)
            loss: Floats | float = 0.0
            if t.has_weight_levels:
                loss = t.stage_loss[w, start, stops]
                values += self.r.multiplier * loss
            at = (self.visited, stops, vertex)
            to_come = None if self.least is None else self.least.to_go_departed[at]
            values = self.affordable(values + self.r.to_go_departed[at], loss, to_come)
            if values.size and values.min() < best:
                best, choice = values.min(), (start + 1 + int(values.argmin()), w)
        return choice

    def pick_transfer(self, i: int, vertex: int) -> tuple[int, int]:
        t, m, node = self.t, self.m, self.t.node_of[vertex]
        links = np.arange(t.neighbour_start[vertex], t.neighbour_start[vertex + 1])
        nodes = t.node_of[t.neighbour[links]]
        bits = t.ng_bit[nodes]
        is_blocked = (bits >= 0) & (self.visited >> np.maximum(bits, 0) & 1 != 0)
        is_blocked |= self.visited >> t.ng_size >= t.most_stages
        links = links[~is_blocked] if self.least is None else links[~is_blocked & ~self.used[nodes]]
        next_vertex = t.neighbour[links]
        s_per_byte, latency = t.s_per_byte[links, np.newaxis], t.latency[links, np.newaxis]
        link = m.compressed_max[i] * s_per_byte + m.latency_max * latency
        encode = m.encode_max[i]
        if t.half_duplex[node]:
            fits = encode + link <= self.r.limit
        else:
            fits = (encode <= self.r.limit) & (link <= self.r.limit)
        weight = m.compressed_sum[i] * s_per_byte + m.latency_sum * latency + m.code_sum[i]
        at = (self.visited_with(t.node_of[next_vertex]), i, next_vertex)
        to_go = self.r.to_go_arrived[at][:, np.newaxis]
        has_level = t.loss[i] < math.inf  # 0 times infinity is no number
        loss = np.where(has_level, t.loss[i], 0.0)
        values = np.where(fits & has_level, weight, math.inf) + self.r.multiplier * loss + to_go
        to_come = None if self.least is None else self.least.to_go_arrived[at][:, np.newaxis]
        choice = self.choose(values, loss, to_come)
        return (-1, NO_LEVEL) if choice < 0 else (int(next_vertex[choice // t.levels]), choice % t.levels)
