"""Best-first search over labels, as in cpp/src/planner/search.cpp: the same labels in the same order.

A label is a row of numbers and a row of indices in arrays that grow between slices of the search.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._bounds import Relaxation, with_node
from ._cost import NO_LEVEL
from ._jit import inlined, jit
from ._root import ROUNDING, Clock, Interval, Root
from ._tables import Floats, Ints, Metric, PhaseTables, Tables

# Columns of a label's numbers: two loads of (sum, max, open), then the rest.
SUM, MAX, OPEN = 0, 1, 2
PREFILL, TOKEN = 0, 3
LOSS, BACK, BOUND = 6, 7, 8
# Columns of its indices.
PARENT, NEXT, BOUNDARY, NODE, FIRST, LEVEL, MASK, ARRIVED, DEAD = range(9)
# Counters of a search.
LABELS, OPENS, STATES = range(3)
# What a slice of the search ends with.
EXHAUSTED, SLICE_DONE, POOL_FULL, LABELS_REACHED = range(4)

_SLICE = 256
_FIRST_CAPACITY = 4096


class Bands(NamedTuple):
    """The intervals of all metrics: columns first..stop of the rows hold the relaxations of a band."""

    metric: Ints
    low: Floats
    first: Ints
    stop: Ints
    prices: Floats  # columns
    decode_sum: Floats  # metrics
    prefill_max: Floats  # metrics
    decode_max: Floats  # metrics
    depart: Floats  # tracked masks x boundaries x nodes x columns
    arrive: Floats


class Store(NamedTuple):
    """The labels, the open ones as a heap, and the hash table of their states."""

    numbers: Floats
    indices: Ints
    used: NDArray[np.uint64]
    heap_bound: Floats
    heap_label: Ints
    key_place: Ints  # -1: free slot
    key_used: NDArray[np.uint64]
    head: Ints
    counters: Ints
    goal: Ints  # parent of the incumbent's last stage, or -1
    objective: Floats  # of the incumbent


class SearchResult(NamedTuple):
    """Whether the search ended by itself, the bound it reached, and what stopped it."""

    is_complete: bool
    lower_bound_s: float
    labels: int
    stopped_by: str


def search(t: Tables, metrics: list[Metric], root: Root, clock: Clock, max_labels: int) -> SearchResult:
    """Improve the root's incumbent until it is proven best or a limit is reached."""
    least = root.least.arrive
    bands = _bands(metrics, root.intervals)
    floor = 0.0
    if t.tracks_max and root.intervals[0]:
        floor = root.intervals[0][0].low / metrics[0].prefill_max
    store = _new_store(max(_FIRST_CAPACITY, 4 * _most_children(t)), root.incumbent.objective_s)
    _start(t, bands, store, floor)
    end = SLICE_DONE
    while end not in (EXHAUSTED, LABELS_REACHED):
        end = _run(t, bands, least, store, max_labels, _SLICE)
        if end == POOL_FULL:
            store = _grown(store)
        if end == SLICE_DONE and clock.is_over():
            break
    if store.goal[0] >= 0:
        root.incumbent.objective_s = float(store.objective[0])
        root.incumbent.stages = _stages_of(store, t.layers)
    stopped_by = {EXHAUSTED: "", LABELS_REACHED: "labels"}.get(end, "time")
    lower = float(store.heap_bound[0]) if store.counters[OPENS] else math.inf
    return SearchResult(not stopped_by, lower, int(store.counters[LABELS]), stopped_by)


def _bands(metrics: list[Metric], intervals: list[list[Interval]]) -> Bands:
    columns: list[Relaxation] = []
    metric, low, first, stop = [], [], [], []
    for a, of_metric in enumerate(intervals):
        for interval in of_metric:
            metric.append(a)
            low.append(interval.low)
            first.append(len(columns))
            columns += interval.relaxations
            stop.append(len(columns))
    empty = np.zeros((0, 0, 0, 0))
    return Bands(
        metric=np.array(metric, dtype=np.int64),
        low=np.array(low, dtype=np.float64),
        first=np.array(first, dtype=np.int64),
        stop=np.array(stop, dtype=np.int64),
        prices=np.array([r.price for r in columns], dtype=np.float64),
        decode_sum=np.array([m.decode_sum for m in metrics]),
        prefill_max=np.array([m.prefill_max for m in metrics]),
        decode_max=np.array([m.decode_max for m in metrics]),
        depart=np.ascontiguousarray(np.stack([r.depart for r in columns], axis=-1)) if columns else empty,
        arrive=np.ascontiguousarray(np.stack([r.arrive for r in columns], axis=-1)) if columns else empty,
    )


def _most_children(t: Tables) -> int:
    return max(t.layers, t.nodes * t.levels) + 1


def _new_store(capacity: int, objective: float) -> Store:
    return Store(
        numbers=np.zeros((capacity, 9)),
        indices=np.zeros((capacity, 9), dtype=np.int64),
        used=np.zeros(capacity, dtype=np.uint64),
        heap_bound=np.zeros(capacity),
        heap_label=np.zeros(capacity, dtype=np.int64),
        key_place=np.full(_slots(capacity), -1, dtype=np.int64),
        key_used=np.zeros(_slots(capacity), dtype=np.uint64),
        head=np.full(_slots(capacity), -1, dtype=np.int64),
        counters=np.zeros(3, dtype=np.int64),
        goal=np.full(1, -1, dtype=np.int64),
        objective=np.array([objective]),
    )


def _slots(capacity: int) -> int:
    """Return a power of two that keeps the table at most half full: every state has a label."""
    return 1 << (2 * capacity - 1).bit_length()


def _grown(store: Store) -> Store:
    """Return the store with twice the room."""
    old = len(store.used)
    larger = _new_store(2 * old, 0.0)._replace(counters=store.counters, goal=store.goal, objective=store.objective)
    for name in ("numbers", "indices", "used", "heap_bound", "heap_label"):
        getattr(larger, name)[:old] = getattr(store, name)
    _rehash(store, larger)
    return larger


@jit
def _rehash(store: Store, larger: Store) -> None:
    for i in range(len(store.head)):
        if store.key_place[i] >= 0:
            slot = _slot(larger, store.key_place[i], store.key_used[i])
            larger.key_place[slot] = store.key_place[i]
            larger.key_used[slot] = store.key_used[i]
            larger.head[slot] = store.head[i]


@jit
def _slot(store: Store, place: int, used: np.uint64) -> int:
    """Find the slot of a state, or the free one where it belongs."""
    mixed = (np.uint64(place) ^ used * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xD6E8FEB86659FD93)
    last = len(store.head) - 1
    slot = np.int64(mixed >> np.uint64(20)) & last
    while store.key_place[slot] >= 0 and (store.key_place[slot] != place or store.key_used[slot] != used):
        slot = (slot + 1) & last
    return int(slot)


@inlined
def _place(t: Tables, tag: Ints) -> int:
    place = tag[ARRIVED] * (t.layers + 1) + tag[BOUNDARY]
    place = place * t.nodes + tag[NODE]
    return int(place * t.nodes + (tag[FIRST] if t.generates else 0))


@jit
def _comes_first(store: Store, a: int, b: int) -> bool:
    """Smallest bound first, then the label with fewer layers left, then the older one. a, b: heap positions."""
    if store.heap_bound[a] != store.heap_bound[b]:
        return bool(store.heap_bound[a] < store.heap_bound[b])
    label_a, label_b = store.heap_label[a], store.heap_label[b]
    placed_a, placed_b = store.indices[label_a, BOUNDARY], store.indices[label_b, BOUNDARY]
    if placed_a != placed_b:
        return bool(placed_a > placed_b)
    return bool(label_a < label_b)


@inlined
def _swap(store: Store, a: int, b: int) -> None:
    store.heap_bound[a], store.heap_bound[b] = store.heap_bound[b], store.heap_bound[a]
    store.heap_label[a], store.heap_label[b] = store.heap_label[b], store.heap_label[a]


@jit
def _heap_push(store: Store, label: int) -> None:
    at = store.counters[OPENS]
    store.heap_bound[at], store.heap_label[at] = store.numbers[label, BOUND], label
    store.counters[OPENS] += 1
    while at > 0 and _comes_first(store, at, (at - 1) // 2):
        _swap(store, at, (at - 1) // 2)
        at = (at - 1) // 2


@jit
def _heap_pop(store: Store) -> int:
    label = store.heap_label[0]
    store.counters[OPENS] -= 1
    count = store.counters[OPENS]
    _swap(store, 0, count)
    at = 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and _comes_first(store, child + 1, child):
            child += 1
        if not _comes_first(store, child, at):
            break
        _swap(store, at, child)
        at = child
    return int(label)


@inlined
def _bound(t: Tables, bands: Bands, number: Floats, tag: Ints) -> float:
    most = 0.0
    rows = bands.arrive if tag[ARRIVED] else bands.depart
    left = t.loss_limit - number[LOSS]
    b = 0
    for a in range(len(bands.decode_sum)):
        total = number[PREFILL + SUM] + bands.decode_sum[a] * number[TOKEN + SUM]
        busiest = bands.prefill_max[a] * number[PREFILL + MAX] + bands.decode_max[a] * number[TOKEN + MAX]
        least = np.inf
        while b < len(bands.metric) and bands.metric[b] == a:
            rest = 0.0
            for c in range(bands.first[b], bands.stop[b]):
                value = rows[tag[MASK], tag[BOUNDARY], tag[NODE], c] - bands.prices[c] * left
                rest = max(rest, value)
            least = min(least, rest + max(busiest, bands.low[b]))
            b += 1
        most = max(most, total + least)
    return most


@inlined
def _is_no_worse(a: Floats, b: Floats, load: int, growth: float) -> bool:
    if a[load + SUM] > b[load + SUM] or a[load + MAX] > b[load + MAX]:
        return False
    return bool(a[load + OPEN] <= b[load + OPEN] or a[load + OPEN] + growth <= b[load + MAX])


@inlined
def _dominates(a: Floats, b: Floats, growth: float, token_growth: float) -> bool:
    if a[LOSS] > b[LOSS] or a[BACK] > b[BACK]:
        return False
    return _is_no_worse(a, b, PREFILL, growth) and _is_no_worse(a, b, TOKEN, token_growth)


@jit
def _push(t: Tables, bands: Bands, store: Store) -> None:
    """Keep the label after the last one unless its bound or a label of the same state rules it out."""
    new = store.counters[LABELS]
    number, tag = store.numbers[new], store.indices[new]
    number[BOUND] = _bound(t, bands, number, tag)
    if tag[PARENT] >= 0:
        number[BOUND] = max(number[BOUND], store.numbers[tag[PARENT], BOUND])
    if number[BOUND] >= store.objective[0] * (1 - ROUNDING):
        return
    growth = np.inf if tag[ARRIVED] else t.prefill.growth[tag[BOUNDARY], tag[NODE]]
    token_growth = np.inf if tag[ARRIVED] else t.token.growth[tag[BOUNDARY], tag[NODE]]
    place = _place(t, tag)
    slot = _slot(store, place, store.used[new])
    store.key_place[slot], store.key_used[slot] = place, store.used[new]
    i = store.head[slot]
    while i >= 0:
        if _dominates(store.numbers[i], number, growth, token_growth):
            return
        i = store.indices[i, NEXT]
    before, i = -1, store.head[slot]
    while i >= 0:
        after = store.indices[i, NEXT]
        if _dominates(number, store.numbers[i], growth, token_growth):
            store.indices[i, DEAD] = 1
            if before < 0:
                store.head[slot] = after
            else:
                store.indices[before, NEXT] = after
        else:
            before = i
        i = after
    tag[NEXT] = store.head[slot]
    store.head[slot] = new
    store.counters[LABELS] += 1
    _heap_push(store, new)


def _start(t: Tables, bands: Bands, store: Store, floor: float) -> None:
    for n in np.flatnonzero(t.can_start):
        new = store.counters[LABELS]
        number, tag = store.numbers[new], store.indices[new]
        number[:] = 0.0
        number[PREFILL + SUM] = t.ingress[n] + t.ingress_delay[n]
        number[PREFILL + MAX] = max(floor, t.ingress[n]) if t.tracks_max else 0.0
        tag[:] = 0
        tag[PARENT], tag[LEVEL], tag[ARRIVED] = -1, NO_LEVEL, 1
        tag[NODE], tag[FIRST] = n, n
        tag[MASK] = 0 if t.tracked_bit[n] < 0 else 1 << int(t.tracked_bit[n])
        store.used[new] = 1 << int(n) if t.is_free else 0
        _push(t, bands, store)


@inlined
def _work(t: Tables, phase: PhaseTables, tracks_max: bool, place: tuple[int, int, int], load: Floats) -> None:
    node, start, stop = place
    busy = phase.compute[node, stop] - phase.compute[node, start]
    load[SUM] += busy
    if tracks_max:
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
    t: Tables, phase: PhaseTables, tracks_max: bool, ends: tuple[int, int], i: int, k: int, load: Floats
) -> None:
    encode = phase.encode[i, k]
    link = phase.packed[i, k] / t.bandwidth[ends]
    delay = t.latency[ends]
    if t.latency_occupies:
        link += delay
        delay = 0.0
    load[SUM] += encode + link + delay + phase.decode[i, k]
    if tracks_max:
        _close(load, t.half_duplex[ends[0]], encode, link)
        load[OPEN] = phase.decode[i, k]


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
def _finish(t: Tables, store: Store, new: int) -> None:
    """Score a label that has placed every layer, and keep it if it is the best plan."""
    number, tag = store.numbers[new], store.indices[new]
    n = tag[NODE]
    if not t.can_end[n] or (store.used[new] & t.required) != t.required:
        return
    number[PREFILL + SUM] += t.egress[n] + t.egress_delay[n]
    if t.tracks_max:
        _close(number[PREFILL : PREFILL + 3], t.half_duplex[n], 0.0, t.egress[n])
    lap = number[TOKEN + SUM]
    if t.generates and n != tag[FIRST]:
        is_direct = t.bandwidth[n, tag[FIRST]] > 0
        back = t.latency[n, tag[FIRST]] if is_direct else number[BACK]
        if back == np.inf:
            return
        lap += back
    objective = number[PREFILL + SUM] + t.more_batches * number[PREFILL + MAX]
    if t.generates:
        busiest = t.groups * number[TOKEN + MAX]
        objective += t.more_tokens * (lap if lap > busiest else busiest)
    if objective < store.objective[0] * (1 - ROUNDING):
        store.objective[0] = objective
        store.goal[0] = tag[PARENT]


@inlined
def _compute(t: Tables, bands: Bands, store: Store, parent: int) -> None:
    """Append every stage that fits the node."""
    node, start = store.indices[parent, NODE], store.indices[parent, BOUNDARY]
    for stop in range(start + 1, t.max_stop[node, start] + 1):
        new = _copy(store, parent)
        number = store.numbers[new]
        store.indices[new, BOUNDARY] = stop
        store.indices[new, ARRIVED] = 0
        _work(t, t.prefill, t.tracks_max, (node, start, stop), number[PREFILL : PREFILL + 3])
        if t.generates:
            _work(t, t.token, t.tracks_token_max, (node, start, stop), number[TOKEN : TOKEN + 3])
        if stop == t.layers:
            _finish(t, store, new)
        else:
            _push(t, bands, store)


@inlined
def _send(t: Tables, bands: Bands, least: Floats, store: Store, parent: int) -> None:
    """Send the last stage's activation to every node that may follow, at every level."""
    node, i = store.indices[parent, NODE], store.indices[parent, BOUNDARY]
    used = store.used[parent]
    for e in range(t.neighbour_start[node], t.neighbour_start[node + 1]):
        to = t.neighbour[e]
        bit = np.uint64(1) << np.uint64(to) if t.is_free else np.uint64(0)
        if used & bit != np.uint64(0):
            continue
        mask = with_node(t, store.indices[parent, MASK], to)
        for k in range(t.levels):
            loss = store.numbers[parent, LOSS] + t.loss[i, k]
            if loss + least[mask, i, to] > t.loss_limit:
                continue
            new = _copy(store, parent)
            number, tag = store.numbers[new], store.indices[new]
            tag[NODE], tag[ARRIVED], tag[MASK], tag[LEVEL] = to, 1, mask, k
            store.used[new] = used | bit
            number[LOSS] = loss
            if t.needs_back:
                number[BACK] += t.latency[to, node] if t.bandwidth[to, node] > 0 else np.inf
            ends = (node, to)
            _transfer(t, t.prefill, t.tracks_max, ends, i, k, number[PREFILL : PREFILL + 3])
            if t.generates:
                _transfer(t, t.token, t.tracks_token_max, ends, i, k, number[TOKEN : TOKEN + 3])
            _push(t, bands, store)


@jit
def _run(t: Tables, bands: Bands, least: Floats, store: Store, max_labels: int, count: int) -> int:
    """Expand labels until the search ends, the slice is done or the store is full."""
    room = len(store.used) - max(t.layers, t.nodes * t.levels) - 1
    for _ in range(count):
        while store.counters[OPENS] > 0 and store.indices[store.heap_label[0], DEAD]:
            _heap_pop(store)
        if store.counters[OPENS] == 0 or store.heap_bound[0] >= store.objective[0] * (1 - ROUNDING):
            return EXHAUSTED
        if store.counters[LABELS] >= max_labels:
            return LABELS_REACHED
        if store.counters[LABELS] >= room:
            return POOL_FULL
        label = _heap_pop(store)
        if store.indices[label, ARRIVED]:
            _compute(t, bands, store, label)
        else:
            _send(t, bands, least, store, label)
    return SLICE_DONE


def _stages_of(store: Store, layers: int) -> NDArray[np.int32]:
    """Return the incumbent as rows of (node, start, stop, level)."""
    rows = []
    stop, level, arrival = layers, NO_LEVEL, int(store.goal[0])
    while True:
        tag = store.indices[arrival]
        rows.append((tag[NODE], tag[BOUNDARY], stop, level))
        stop, level = tag[BOUNDARY], tag[LEVEL]
        if tag[PARENT] < 0:
            break
        arrival = int(store.indices[tag[PARENT], PARENT])
    return np.array(rows[::-1], dtype=np.int32)
