"""Best-first search over labels, as in cpp/src/planner/search.cpp: the same labels in the same order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.jit import inlined, jit

from .cost import NO_LEVEL
from .cost_to_go import is_blocked, with_node
from .labels import (
    ARRIVED,
    BACK,
    BOUNDARY,
    DEAD,
    FIRST,
    LABELS,
    LEVEL,
    LOSS,
    MAX,
    OPEN,
    OPENS,
    PARENT,
    PAST,
    PLACE,
    PREFILL,
    SUM,
    TOKEN,
    Pruning,
    Store,
    grown,
    has_stage_on,
    heap_pop,
    make_pruning,
    new_store,
    push,
)
from .root import ROUNDING, Clock, Explorer
from .tables import Floats, Metric, PhaseTables, Tables, Tracks

# What a slice of the search ends with.
EXHAUSTED, SLICE_DONE, POOL_FULL, LABELS_REACHED = range(4)

_SLICE = 256
_FIRST_CAPACITY = 4096


class SearchResult(NamedTuple):
    """Whether the search ended by itself, the bound it reached, and what stopped it."""

    is_complete: bool
    lower_bound_s: float
    labels: int
    stopped_by: str


def search(t: Tables, metrics: list[Metric], root: Explorer, clock: Clock, max_labels: int) -> SearchResult:
    """Improve the root's incumbent until it is proven best or a limit is reached."""
    least = root.least.arrive
    p = make_pruning(t, metrics, root.intervals)
    floor = 0.0
    if t.tracks.max and metrics[0].decode_max == 0 and root.intervals[0]:
        floor = root.intervals[0][0].low / metrics[0].prefill_max
    most_children = _most_children(t)
    store = new_store(max(_FIRST_CAPACITY, 4 * most_children), root.incumbent.objective_s, root.incumbent.gap)
    _start(t, p, store, floor)
    end = SLICE_DONE
    while end not in (EXHAUSTED, LABELS_REACHED):
        end = _run(t, p, least, store, max_labels, most_children)
        if end == POOL_FULL:
            store = grown(store)
        if end == SLICE_DONE and clock.is_over():
            break
    if store.goal[0] >= 0:
        root.incumbent.objective_s = float(store.objective[0])
        root.incumbent.stages = _stages_of(t, store)
    stopped_by = {EXHAUSTED: "", LABELS_REACHED: "labels"}.get(end, "time")
    lower = float(store.heap_bound[0]) if store.counters[OPENS] else math.inf
    return SearchResult(not stopped_by, lower, int(store.counters[LABELS]), stopped_by)


def _most_children(t: Tables) -> int:
    return max(t.layers, int(np.diff(t.neighbour_start).max()) * t.levels, t.nodes) + 1


def _start(t: Tables, p: Pruning, store: Store, floor: float) -> None:
    for n in np.flatnonzero(t.can_start & (t.start_place >= 0)):
        new = store.counters[LABELS]
        number, tag = store.numbers[new], store.indices[new]
        number[:] = 0.0
        number[PREFILL + SUM] = t.ingress[n] + t.ingress_delay[n] if t.tracks.sum else 0.0
        number[PREFILL + MAX] = max(floor, t.ingress[n]) if t.tracks.max else 0.0
        tag[:] = 0
        tag[PARENT], tag[LEVEL], tag[ARRIVED] = -1, NO_LEVEL, 1
        tag[PLACE], tag[FIRST] = t.start_place[n], n
        tag[PAST] = (0 if t.tracked_bit[n] < 0 else 1 << int(t.tracked_bit[n])) + t.count_step
        store.used[new] = t.mark[n] if t.is_free else 0
        push(p, store)


@inlined
def _work(t: Tables, phase: PhaseTables, tracks: Tracks, place: tuple[int, int, int], load: Floats) -> None:
    node, start, stop = place
    busy = phase.compute[node, stop] - phase.compute[node, start]
    if tracks.sum:
        load[SUM] += busy
    if tracks.max:
        load[OPEN] += busy
        load[MAX] = max(load[MAX], load[OPEN])


@inlined
def _close(load: Floats, half_duplex: bool, encode: float, link: float) -> None:
    if half_duplex:
        load[MAX] = max(load[MAX], load[OPEN] + encode + link)
    else:
        load[MAX] = max(load[MAX], load[OPEN] + encode)
        load[MAX] = max(load[MAX], link)


@inlined
def _transfer(
    t: Tables, phase: PhaseTables, tracks: Tracks, way: tuple[int, int], at: tuple[int, int], load: Floats
) -> None:
    node, link = way
    encode = phase.encode[at]
    sending = phase.packed[at] / t.bandwidth[link]
    delay = t.latency[link]
    if t.latency_occupies:
        sending += delay
        delay = 0.0
    if tracks.sum:
        load[SUM] += encode + sending + delay + phase.decode[at]
    if tracks.max:
        _close(load, t.half_duplex[node], encode, sending)
        load[OPEN] = phase.decode[at]


@inlined
def _copy(store: Store, parent: int) -> int:
    """Copy a label to the place after the last one."""
    new = store.counters[LABELS]
    store.numbers[new] = store.numbers[parent]
    store.indices[new] = store.indices[parent]
    store.used[new] = store.used[parent]
    store.indices[new, PARENT] = parent
    store.indices[new, DEAD] = 0
    return int(new)


@inlined
def _finish(t: Tables, p: Pruning, store: Store, new: int) -> None:
    """Score a label that has placed every layer, and keep it if it is the best plan."""
    number, tag = store.numbers[new], store.indices[new]
    n = t.node_of[tag[PLACE]]
    if not t.can_end[n]:
        return
    for required in t.required:
        if not has_stage_on(p, store, new, required):
            return
    if t.tracks.sum:
        number[PREFILL + SUM] += t.egress[n] + t.egress_delay[n]
    if t.tracks.max:
        _close(number[PREFILL : PREFILL + 3], t.half_duplex[n], 0.0, t.egress[n])
    lap = number[TOKEN + SUM]
    if t.generates and n != tag[FIRST]:
        is_direct = t.all_bandwidth[n, tag[FIRST]] > 0
        back = t.all_latency[n, tag[FIRST]] if is_direct else number[BACK]
        if back == np.inf:
            return
        lap += back
    w = t.weights
    objective = w.prefill_sum * number[PREFILL + SUM] + w.prefill_max * number[PREFILL + MAX]
    objective += max(w.lap * lap, w.busiest * number[TOKEN + MAX])
    if objective < store.objective[0] * (1 - ROUNDING):
        store.objective[0] = objective
        store.goal[0] = tag[PARENT]


@inlined
def _compute(t: Tables, p: Pruning, store: Store, parent: int) -> None:
    """Append every stage that fits the node."""
    node, start = t.node_of[store.indices[parent, PLACE]], store.indices[parent, BOUNDARY]
    for stop in range(start + 1, t.max_stop[node, start] + 1):
        new = _copy(store, parent)
        number = store.numbers[new]
        store.indices[new, BOUNDARY] = stop
        store.indices[new, ARRIVED] = 0
        _work(t, t.prefill, t.tracks, (node, start, stop), number[PREFILL : PREFILL + 3])
        if t.generates:
            _work(t, t.token, t.token_tracks, (node, start, stop), number[TOKEN : TOKEN + 3])
        if stop == t.layers:
            _finish(t, p, store, new)
        else:
            push(p, store)


@inlined
def _send(t: Tables, p: Pruning, least: Floats, store: Store, parent: int) -> None:
    """Send the last stage's activation to every node that may follow, at every level."""
    place, i = store.indices[parent, PLACE], store.indices[parent, BOUNDARY]
    node = t.node_of[place]
    for e in range(t.neighbour_start[place], t.neighbour_start[place + 1]):
        next_place = t.neighbour[e]
        to = t.node_of[next_place]
        if is_blocked(t, store.indices[parent, PAST], to) or (t.is_free and has_stage_on(p, store, parent, to)):
            continue
        past = with_node(t, store.indices[parent, PAST], to)
        for k in range(t.levels):
            loss = store.numbers[parent, LOSS] + t.loss[i, k]
            if loss + least[past, i, next_place] > t.loss_limit:
                continue
            new = _copy(store, parent)
            number, tag = store.numbers[new], store.indices[new]
            tag[PLACE], tag[ARRIVED], tag[PAST], tag[LEVEL] = next_place, 1, past, k
            if t.is_free:
                store.used[new] += t.mark[to]
            number[LOSS] = loss
            if t.needs_back:
                weighed = t.all_latency[to, node] if t.token_tracks.sum else 0.0
                number[BACK] += weighed if t.all_bandwidth[to, node] > 0 else np.inf
            _transfer(t, t.prefill, t.tracks, (node, e), (i, k), number[PREFILL : PREFILL + 3])
            if t.generates:
                _transfer(t, t.token, t.token_tracks, (node, e), (i, k), number[TOKEN : TOKEN + 3])
            push(p, store)


@jit
def _run(t: Tables, p: Pruning, least: Floats, store: Store, max_labels: int, most_children: int) -> int:
    """Expand labels until the search ends, the slice is done or the store is full."""
    room = len(store.used) - most_children
    for _ in range(_SLICE):
        while store.counters[OPENS] > 0 and store.indices[store.heap_label[0], DEAD]:
            heap_pop(store)
        if store.counters[OPENS] == 0 or store.heap_bound[0] >= store.objective[0] * store.keep[0]:
            return EXHAUSTED
        if store.counters[LABELS] >= max_labels:
            return LABELS_REACHED
        if store.counters[LABELS] >= room:
            return POOL_FULL
        label = heap_pop(store)
        if store.indices[label, ARRIVED]:
            _compute(t, p, store, label)
        else:
            _send(t, p, least, store, label)
    return SLICE_DONE


def _stages_of(t: Tables, store: Store) -> NDArray[np.int32]:
    """Return the incumbent as rows of (node, start, stop, level)."""
    rows = []
    stop, level, arrival = t.layers, NO_LEVEL, int(store.goal[0])
    while True:
        tag = store.indices[arrival]
        rows.append((t.node_of[tag[PLACE]], tag[BOUNDARY], stop, level))
        stop, level = tag[BOUNDARY], tag[LEVEL]
        if tag[PARENT] < 0:
            break
        arrival = int(store.indices[tag[PARENT], PARENT])
    return np.array(rows[::-1], dtype=np.int32)
