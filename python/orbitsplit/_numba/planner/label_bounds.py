"""The bounds of cost_to_go.py on labels, as in cpp/src/planner/label_bounds.hpp."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orbitsplit._numba.jit import inlined
from orbitsplit._numba.time_limit import TimeLimit

from .cost_to_go import Relaxation
from .label import ARRIVED, BOUNDARY, LOSS, MAX, PREFILL, SUM, TOKEN, VERTEX, VISITED
from .metrics import Metric
from .root import Interval
from .tables import Floats, Ints, Tables


class Pruning(NamedTuple):
    """The bounds of all metrics on labels, and what tells the labels' states apart.

    Columns first..stop of the cost-to-go hold the relaxations of one interval, side by side for each state.
    """

    layers: int
    nodes: int
    node_of: Ints  # vertices
    compares_nodes: bool  # different sets of nodes may have equal keys
    keys_are_exact: bool
    keeps_first: bool
    loss_limit: float
    growth: Floats  # boundaries x nodes
    token_growth: Floats  # boundaries x nodes
    metric: Ints  # intervals
    low: Floats  # intervals
    first: Ints  # intervals
    stop: Ints  # intervals
    multipliers: Floats  # columns
    decode_sum: Floats  # metrics
    prefill_max: Floats  # metrics
    decode_max: Floats  # metrics
    to_go_departed: Floats  # visited sets x boundaries x vertices x columns
    to_go_arrived: Floats  # the same


def make_pruning(
    t: Tables, metrics: list[Metric], intervals: list[list[Interval]], time_limit: TimeLimit
) -> Pruning | None:
    """Return the bounds with the relaxations of one state next to each other in memory, None if it must end early."""
    columns: list[Relaxation] = []
    metric, low, first, stop = [], [], [], []
    for a, of_metric in enumerate(intervals):
        for interval in of_metric:
            metric.append(a)
            low.append(interval.low)
            first.append(len(columns))
            columns += interval.relaxations
            stop.append(len(columns))
    shape = (t.visited_sets, t.layers + 1, len(t.node_of), len(columns))
    departed, arrived = np.empty(shape), np.empty(shape)
    for c, relaxation in enumerate(columns):
        if time_limit.must_end():
            return None
        departed[..., c], arrived[..., c] = relaxation.to_go_departed, relaxation.to_go_arrived
    return Pruning(
        layers=t.layers,
        nodes=t.nodes,
        node_of=t.node_of,
        compares_nodes=t.is_free and not t.keys_are_exact,
        keys_are_exact=t.keys_are_exact,
        keeps_first=t.keeps_first,
        loss_limit=t.loss_limit,
        growth=t.prefill.growth,
        token_growth=t.token.growth,
        metric=np.array(metric, dtype=np.int64),
        low=np.array(low, dtype=np.float64),
        first=np.array(first, dtype=np.int64),
        stop=np.array(stop, dtype=np.int64),
        multipliers=np.array([r.multiplier for r in columns], dtype=np.float64),
        decode_sum=np.array([m.decode_sum for m in metrics]),
        prefill_max=np.array([m.prefill_max for m in metrics]),
        decode_max=np.array([m.decode_max for m in metrics]),
        to_go_departed=departed,
        to_go_arrived=arrived,
    )


@inlined
def bound(p: Pruning, number: Floats, tag: Ints) -> float:
    """Return the least objective of a plan that extends the label and improves on the incumbent."""
    most = 0.0
    rows = p.to_go_arrived if tag[ARRIVED] else p.to_go_departed
    left = p.loss_limit - number[LOSS]
    b = 0
    for a in range(len(p.decode_sum)):
        total = number[PREFILL + SUM] + p.decode_sum[a] * number[TOKEN + SUM]
        busiest = p.prefill_max[a] * number[PREFILL + MAX] + p.decode_max[a] * number[TOKEN + MAX]
        least = np.inf
        while b < len(p.metric) and p.metric[b] == a:
            rest = 0.0
            for c in range(p.first[b], p.stop[b]):
                value = rows[tag[VISITED], tag[BOUNDARY], tag[VERTEX], c] - p.multipliers[c] * left
                rest = max(rest, value)
            least = min(least, rest + max(busiest, p.low[b]))
            b += 1
        most = max(most, total + least)
    return most
