"""Best-first search over labels, as in cpp/src/planner/search.cpp: the same labels in the same order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.jit import inlined, jit
from orbitsplit._numba.time_limit import TimeLimit

from .cost import NO_LEVEL
from .cost_to_go import is_blocked, with_node
from .label import (
    ARRIVED,
    BOUNDARY,
    DOMINATED,
    FIRST,
    LEVEL,
    LOSS,
    MAX,
    OPEN,
    PARENT,
    PREFILL,
    RETURN,
    SUM,
    TOKEN,
    VERTEX,
    VISITED,
)
from .label_bounds import Pruning, make_pruning
from .label_pool import LABELS, OPENS, LabelPool, grown, has_stage_on, heap_pop, new_pool, push
from .metrics import Metric
from .root import ROUNDING, Root
from .tables import Floats, PhaseTables, Tables, Tracks

# What a slice of the search ends with.
EXHAUSTED, SLICE_DONE, POOL_FULL, LABELS_REACHED = range(4)

# Expansions in a slice, and the children after which it ends earlier.
_SLICE = 256
_SLICE_CHILDREN = 20_000
_FIRST_CAPACITY = 4096


class SearchResult(NamedTuple):
    """The outcome of a search.

    `is_complete`: every label that could lead to a better plan was expanded. `lower_bound_s`: of plans better than the
    incumbent, infinite when complete. `stopped_by`: the limit that ended the search, in a word, or "".
    """

    is_complete: bool
    lower_bound_s: float
    labels: int
    stopped_by: str


def search(t: Tables, metrics: list[Metric], root: Root, time_limit: TimeLimit, max_labels: int) -> SearchResult:
    """Improve the root's incumbent until it is proven best or a limit is reached."""
    least_to_go = root.least.to_go_departed, root.least.to_go_arrived
    p = make_pruning(t, metrics, root.intervals, time_limit)
    if p is None:
        return SearchResult(False, 0.0, 0, "time")
    # Every better plan has a maximum of at least the lowest interval's end: below it labels do not differ.
    floor = 0.0
    if t.tracks.max and metrics[0].decode_max == 0 and root.intervals[0]:
        floor = root.intervals[0][0].low / metrics[0].prefill_max
    most_children = _most_children(t)
    pool = new_pool(max(_FIRST_CAPACITY, 4 * most_children), root.incumbent.objective_s, root.incumbent.gap)
    _start(t, p, pool, floor)
    end, growing_s = SLICE_DONE, 0.0
    while end not in (EXHAUSTED, LABELS_REACHED):
        end = _run(t, p, least_to_go, pool, max_labels, most_children)
        # Twice the room takes about twice the time that it took the last time.
        if time_limit.remaining_s() <= (2 * growing_s if end == POOL_FULL else 0.0) and end in (POOL_FULL, SLICE_DONE):
            break
        if end == POOL_FULL:
            begun_s = time_limit.seconds()
            pool = grown(pool)
            growing_s = time_limit.seconds() - begun_s
    if pool.incumbent_parent[0] >= 0:
        root.incumbent.objective_s = float(pool.objective[0])
        root.incumbent.stages = _stages_of(t, pool)
    stopped_by = {EXHAUSTED: "", LABELS_REACHED: "labels"}.get(end, "time")
    lower = float(pool.heap_bound[0]) if pool.counters[OPENS] else math.inf
    return SearchResult(not stopped_by, lower, int(pool.counters[LABELS]), stopped_by)


def _most_children(t: Tables) -> int:
    return max(t.layers * t.weight_levels, int(np.diff(t.neighbour_start).max()) * t.levels, t.nodes) + 1


def _start(t: Tables, p: Pruning, pool: LabelPool, floor: float) -> None:
    for n in np.flatnonzero(t.can_start & (t.start_vertex >= 0)):
        new = pool.counters[LABELS]
        number, tag = pool.numbers[new], pool.indices[new]
        number[:] = 0.0
        number[PREFILL + SUM] = t.ingress[n] + t.ingress_delay[n] if t.tracks.sum else 0.0
        number[PREFILL + MAX] = max(floor, t.ingress[n]) if t.tracks.max else 0.0
        tag[:] = 0
        tag[PARENT], tag[LEVEL], tag[ARRIVED] = -1, NO_LEVEL, 1
        tag[VERTEX], tag[FIRST] = t.start_vertex[n], n
        tag[VISITED] = (0 if t.ng_bit[n] < 0 else 1 << int(t.ng_bit[n])) + t.count_step
        pool.set_key[new] = t.node_key[n] if t.is_free else 0
        push(p, pool)


@inlined
def _busy(phase: PhaseTables, compute: Floats, lane: int, start: int, stop: int) -> float:
    """Return the seconds of a stage, by prefix sums of its lane."""
    return compute[lane, stop] - compute[lane, start] + phase.stage[lane]


@inlined
def _work(phase: PhaseTables, tracks: Tracks, stage: tuple[int, int, int], load: Floats) -> None:
    lane, start, stop = stage
    if tracks.sum:
        load[SUM] += _busy(phase, phase.compute, lane, start, stop)
    if tracks.max:
        load[OPEN] += _busy(phase, phase.compute_max, lane, start, stop)
        load[MAX] = max(load[MAX], load[OPEN])


@inlined
def _close(load: Floats, half_duplex: bool, encode: float, link_s: float) -> None:
    """Add the last stage, which is complete, and its link to the maximum."""
    if half_duplex:
        load[MAX] = max(load[MAX], load[OPEN] + encode + link_s)
    else:
        load[MAX] = max(load[MAX], load[OPEN] + encode)
        load[MAX] = max(load[MAX], link_s)


@inlined
def _transfer(
    t: Tables, phase: PhaseTables, tracks: Tracks, sender: tuple[int, int], cut: tuple[int, int], load: Floats
) -> None:
    source, link = sender
    encode = phase.encode[cut]
    link_s = phase.compressed[cut] / t.bandwidth[link]
    delay = t.latency[link]
    if t.latency_occupies_link:
        link_s += delay
        delay = 0.0
    if tracks.sum:
        load[SUM] += encode + link_s + delay + phase.decode[cut]
    if tracks.max:
        _close(load, t.half_duplex[source], encode, link_s)
        load[OPEN] = phase.decode[cut]


@inlined
def _copy(pool: LabelPool, parent: int) -> int:
    """Append a copy of a label, which counts once `push` keeps it."""
    new = pool.counters[LABELS]
    pool.numbers[new] = pool.numbers[parent]
    pool.indices[new] = pool.indices[parent]
    pool.set_key[new] = pool.set_key[parent]
    pool.indices[new, PARENT] = parent
    pool.indices[new, DOMINATED] = 0
    return int(new)


@inlined
def _latency_back(t: Tables, source: int, destination: int) -> float:
    """Return the latency of a token over one link, infinite without the link."""
    if t.bandwidth_bytes_per_s[source, destination] <= 0:
        return np.inf
    return float(t.latency_s[source, destination]) if t.token_tracks.sum else 0.0


@inlined
def _finish(t: Tables, p: Pruning, pool: LabelPool, new: int) -> None:
    """Score a label that has placed every layer, and make it the incumbent if it is the best plan."""
    number, tag = pool.numbers[new], pool.indices[new]
    n = t.node_of[tag[VERTEX]]
    if not t.can_end[n]:
        return
    for required in t.required:
        if not has_stage_on(p, pool, new, required):
            return
    if t.tracks.sum:
        number[PREFILL + SUM] += t.egress[n] + t.egress_delay[n]
    if t.tracks.max:
        _close(number[PREFILL : PREFILL + 3], t.half_duplex[n], 0.0, t.egress[n])
    round_trip = number[TOKEN + SUM]
    if t.generates and n != tag[FIRST]:
        back = min(_latency_back(t, n, tag[FIRST]), number[RETURN])
        if back == np.inf:
            return
        round_trip += back
    w = t.weights
    objective = w.prefill_sum * number[PREFILL + SUM] + w.prefill_max * number[PREFILL + MAX]
    objective += max(w.round_trip * round_trip, w.bottleneck * number[TOKEN + MAX])
    if objective < pool.objective[0] * (1 - ROUNDING):
        pool.objective[0] = objective
        pool.incumbent_parent[0] = tag[PARENT]
        pool.incumbent_weight_level[0] = tag[LEVEL]


@inlined
def _is_useful(t: Tables, stage: tuple[int, int, int, int]) -> bool:
    """Return whether a stage fits the node at a weight level, and none at another one is as fast with as little loss.

    Of equal ones the first is useful.
    """
    node, start, stop, weight_level = stage
    lane = node * t.weight_levels + weight_level
    is_useful = stop <= t.max_stop[lane, start]
    for w in range(t.weight_levels if is_useful else 0):
        other = node * t.weight_levels + w
        if w == weight_level or stop > t.max_stop[other, start]:
            continue
        loss = t.stage_loss[w, start, stop] - t.stage_loss[weight_level, start, stop]
        prefill = _busy(t.prefill, t.prefill.compute, other, start, stop)
        prefill -= _busy(t.prefill, t.prefill.compute, lane, start, stop)
        earlier = _busy(t.prefill, t.prefill.compute_max, other, start, stop)
        earlier -= _busy(t.prefill, t.prefill.compute_max, lane, start, stop)
        token = _busy(t.token, t.token.compute, other, start, stop)
        token -= _busy(t.token, t.token.compute, lane, start, stop)
        least, most = min(loss, prefill, earlier, token), max(loss, prefill, earlier, token)
        if most <= 0 and (w < weight_level or least < 0):
            is_useful = False
    return bool(is_useful)


@inlined
def _compute(t: Tables, p: Pruning, least_to_go: tuple[Floats, Floats], pool: LabelPool, parent: int) -> None:
    """Append every stage that fits the node, at every weight level that no other one makes useless."""
    node, start = t.node_of[pool.indices[parent, VERTEX]], pool.indices[parent, BOUNDARY]
    for choice in range(t.weight_levels * (t.layers - start)):
        stop, w = start + 1 + choice // t.weight_levels, choice % t.weight_levels
        if not _is_useful(t, (node, start, stop, w)):
            continue
        loss = pool.numbers[parent, LOSS]
        if t.has_weight_levels:
            loss += t.stage_loss[w, start, stop]
            to_go = least_to_go[0][pool.indices[parent, VISITED], stop, pool.indices[parent, VERTEX]]
            if loss + to_go > t.loss_limit:
                continue
        new = _copy(pool, parent)
        number = pool.numbers[new]
        pool.indices[new, BOUNDARY] = stop
        pool.indices[new, ARRIVED] = 0
        pool.indices[new, LEVEL] = w
        number[LOSS] = loss
        lane = node * t.weight_levels + w
        _work(t.prefill, t.tracks, (lane, start, stop), number[PREFILL : PREFILL + 3])
        if t.generates:
            _work(t.token, t.token_tracks, (lane, start, stop), number[TOKEN : TOKEN + 3])
        if stop == t.layers:
            _finish(t, p, pool, new)
        else:
            push(p, pool)


@inlined
def _send(t: Tables, p: Pruning, least_to_go: tuple[Floats, Floats], pool: LabelPool, parent: int) -> None:
    """Send the last stage's activation to every node that may follow, at every level."""
    vertex, i = pool.indices[parent, VERTEX], pool.indices[parent, BOUNDARY]
    source = t.node_of[vertex]
    for e in range(t.neighbour_start[vertex], t.neighbour_start[vertex + 1]):
        next_vertex = t.neighbour[e]
        destination = t.node_of[next_vertex]
        visited = pool.indices[parent, VISITED]
        if is_blocked(t, visited, destination) or (t.is_free and has_stage_on(p, pool, parent, destination)):
            continue
        visited = with_node(t, visited, destination)
        for k in range(t.levels):
            loss = pool.numbers[parent, LOSS] + t.loss[i, k]
            if loss + least_to_go[1][visited, i, next_vertex] > t.loss_limit:
                continue
            new = _copy(pool, parent)
            number, tag = pool.numbers[new], pool.indices[new]
            tag[VERTEX], tag[ARRIVED], tag[VISITED], tag[LEVEL] = next_vertex, 1, visited, k
            if t.is_free:
                pool.set_key[new] += t.node_key[destination]
            number[LOSS] = loss
            if t.generates:
                longer = number[RETURN] + _latency_back(t, destination, source)
                number[RETURN] = min(longer, t.most_return_s[tag[FIRST]])
            _transfer(t, t.prefill, t.tracks, (source, e), (i, k), number[PREFILL : PREFILL + 3])
            if t.generates:
                _transfer(t, t.token, t.token_tracks, (source, e), (i, k), number[TOKEN : TOKEN + 3])
            push(p, pool)


@jit
def _run(
    t: Tables, p: Pruning, least_to_go: tuple[Floats, Floats], pool: LabelPool, max_labels: int, most_children: int
) -> int:
    """Expand labels until the search ends, the slice is done or the pool is full."""
    room = len(pool.set_key) - most_children
    for _ in range(min(_SLICE, max(1, _SLICE_CHILDREN // most_children))):
        while pool.counters[OPENS] > 0 and pool.indices[pool.heap_label[0], DOMINATED]:
            heap_pop(pool)
        if pool.counters[OPENS] == 0 or pool.heap_bound[0] >= pool.objective[0] * pool.cutoff_factor[0]:
            return EXHAUSTED
        if pool.counters[LABELS] >= max_labels:
            return LABELS_REACHED
        if pool.counters[LABELS] >= room:
            return POOL_FULL
        label = heap_pop(pool)
        if pool.indices[label, ARRIVED]:
            _compute(t, p, least_to_go, pool, label)
        else:
            _send(t, p, least_to_go, pool, label)
    return SLICE_DONE


def _stages_of(t: Tables, pool: LabelPool) -> NDArray[np.int32]:
    """Return the incumbent as rows of (node, start, stop, level, weight level)."""
    rows = []
    stop, level, arrival = t.layers, NO_LEVEL, int(pool.incumbent_parent[0])
    weight_level = int(pool.incumbent_weight_level[0])
    while True:
        tag = pool.indices[arrival]
        chosen = weight_level if t.has_weight_levels else NO_LEVEL
        rows.append((t.node_of[tag[VERTEX]], tag[BOUNDARY], stop, level, chosen))
        stop, level = tag[BOUNDARY], tag[LEVEL]
        if tag[PARENT] < 0:
            break
        weight_level = int(pool.indices[tag[PARENT], LEVEL])
        arrival = int(pool.indices[tag[PARENT], PARENT])
    return np.array(rows[::-1], dtype=np.int32)
