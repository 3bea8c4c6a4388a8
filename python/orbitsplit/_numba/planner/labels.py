"""Labels, the heap of open ones and the table of their states, as in cpp/src/planner/{label,label_bounds}.hpp.

A label is a row of numbers and a row of indices, in arrays that grow between slices of the search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.jit import inlined, jit

from .cost_to_go import Relaxation
from .root import ROUNDING, Interval
from .tables import Floats, Ints, Metric, Tables

# Columns of a label's numbers: two loads of (sum, max, open), then the rest.
SUM, MAX, OPEN = 0, 1, 2
PREFILL, TOKEN = 0, 3
LOSS, BACK, BOUND = 6, 7, 8
# Columns of its indices.
PARENT, NEXT, BOUNDARY, PLACE, FIRST, LEVEL, PAST, ARRIVED, DEAD = range(9)
# Counters of a store.
LABELS, OPENS = range(2)


class Pruning(NamedTuple):
    """What rules labels out: the intervals of all metrics, and how much an open stage may still grow.

    Columns first..stop of the rows hold the relaxations of one interval.
    """

    layers: int
    nodes: int
    node_of: Ints  # places
    compares_nodes: bool  # sets of used nodes of equal marks may differ
    marks_are_exact: bool
    keeps_first: bool
    loss_limit: float
    growth: Floats  # boundaries x nodes
    token_growth: Floats  # boundaries x nodes
    metric: Ints  # intervals
    low: Floats  # intervals
    first: Ints  # intervals
    stop: Ints  # intervals
    prices: Floats  # columns
    decode_sum: Floats  # metrics
    prefill_max: Floats  # metrics
    decode_max: Floats  # metrics
    depart: Floats  # pasts x boundaries x places x columns
    arrive: Floats


class Store(NamedTuple):
    """The labels, the open ones as a heap, and the hash table of their states."""

    numbers: Floats
    indices: Ints
    used: NDArray[np.uint64]
    heap_bound: Floats
    heap_label: Ints
    key_stand: Ints  # -1: free slot
    key_used: NDArray[np.uint64]
    head: Ints
    counters: Ints
    goal: Ints  # parent of the incumbent's last stage, or -1
    objective: Floats  # of the incumbent
    keep: Floats  # the part of the objective that a bound must stay below: 1 less the gap


def make_pruning(t: Tables, metrics: list[Metric], intervals: list[list[Interval]]) -> Pruning:
    """Lay the relaxations out so that those of one state lie next to each other."""
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
    return Pruning(
        layers=t.layers,
        nodes=t.nodes,
        node_of=t.node_of,
        compares_nodes=t.is_free and not t.marks_are_exact,
        marks_are_exact=t.marks_are_exact,
        keeps_first=t.keeps_first,
        loss_limit=t.loss_limit,
        growth=t.prefill.growth,
        token_growth=t.token.growth,
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


def new_store(capacity: int, objective: float, gap: float) -> Store:
    """Return an empty store with room for so many labels."""
    return Store(
        numbers=np.zeros((capacity, 9)),
        indices=np.zeros((capacity, 9), dtype=np.int64),
        used=np.zeros(capacity, dtype=np.uint64),
        heap_bound=np.zeros(capacity),
        heap_label=np.zeros(capacity, dtype=np.int64),
        key_stand=np.full(_slots(capacity), -1, dtype=np.int64),
        key_used=np.zeros(_slots(capacity), dtype=np.uint64),
        head=np.full(_slots(capacity), -1, dtype=np.int64),
        counters=np.zeros(3, dtype=np.int64),
        goal=np.full(1, -1, dtype=np.int64),
        objective=np.array([objective]),
        keep=np.array([1 - max(gap, ROUNDING)]),
    )


def _slots(capacity: int) -> int:
    """Return a power of two that keeps the table at most half full: every state has a label."""
    return 1 << (2 * capacity - 1).bit_length()


def grown(store: Store) -> Store:
    """Return the store with twice the room."""
    old = len(store.used)
    larger = new_store(2 * old, 0.0, 0.0)._replace(
        counters=store.counters, goal=store.goal, objective=store.objective, keep=store.keep
    )
    for name in ("numbers", "indices", "used", "heap_bound", "heap_label"):
        getattr(larger, name)[:old] = getattr(store, name)
    _rehash(store, larger)
    return larger


@jit
def _rehash(store: Store, larger: Store) -> None:
    for i in range(len(store.head)):
        if store.key_stand[i] >= 0:
            slot = _slot(larger, store.key_stand[i], store.key_used[i])
            larger.key_stand[slot] = store.key_stand[i]
            larger.key_used[slot] = store.key_used[i]
            larger.head[slot] = store.head[i]


@jit
def _slot(store: Store, stand: int, used: np.uint64) -> int:
    """Find the slot of a state, or the free one where it belongs."""
    mixed = (np.uint64(stand) ^ used * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xD6E8FEB86659FD93)
    last = len(store.head) - 1
    slot = np.int64(mixed >> np.uint64(20)) & last
    while store.key_stand[slot] >= 0 and (store.key_stand[slot] != stand or store.key_used[slot] != used):
        slot = (slot + 1) & last
    return int(slot)


@inlined
def _stand(p: Pruning, tag: Ints) -> int:
    stand = tag[ARRIVED] * (p.layers + 1) + tag[BOUNDARY]
    stand = stand * p.nodes + p.node_of[tag[PLACE]]
    return int(stand * p.nodes + (tag[FIRST] if p.keeps_first else 0))


@inlined
def has_stage_on(p: Pruning, store: Store, label: int, node: int) -> bool:
    """Return whether a label's chain has a stage on a node, its last one included."""
    if p.marks_are_exact:
        return bool((store.used[label] >> np.uint64(node)) & np.uint64(1) != np.uint64(0))
    at = label
    while at >= 0 and p.node_of[store.indices[at, PLACE]] != node:
        at = store.indices[at, PARENT]
    return bool(at >= 0)


@jit
def _are_of_same_nodes(p: Pruning, store: Store, a: int, b: int) -> bool:
    """Return whether two chains of the same mark have the same nodes."""
    if not p.compares_nodes:
        return True
    more, at = 0, a
    while at >= 0:
        if not has_stage_on(p, store, b, p.node_of[store.indices[at, PLACE]]):
            return False
        more += store.indices[at, ARRIVED]
        at = store.indices[at, PARENT]
    at = b
    while at >= 0:
        more -= store.indices[at, ARRIVED]
        at = store.indices[at, PARENT]
    return more == 0


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
def heap_pop(store: Store) -> int:
    """Take the open label that comes first."""
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
def _bound(p: Pruning, number: Floats, tag: Ints) -> float:
    most = 0.0
    rows = p.arrive if tag[ARRIVED] else p.depart
    left = p.loss_limit - number[LOSS]
    b = 0
    for a in range(len(p.decode_sum)):
        total = number[PREFILL + SUM] + p.decode_sum[a] * number[TOKEN + SUM]
        busiest = p.prefill_max[a] * number[PREFILL + MAX] + p.decode_max[a] * number[TOKEN + MAX]
        least = np.inf
        while b < len(p.metric) and p.metric[b] == a:
            rest = 0.0
            for c in range(p.first[b], p.stop[b]):
                value = rows[tag[PAST], tag[BOUNDARY], tag[PLACE], c] - p.prices[c] * left
                rest = max(rest, value)
            least = min(least, rest + max(busiest, p.low[b]))
            b += 1
        most = max(most, total + least)
    return most


@inlined
def _is_no_worse(a: Floats, b: Floats, load: int, growth: float) -> bool:
    if a[load + SUM] > b[load + SUM] or a[load + MAX] > b[load + MAX]:
        return False
    return bool(a[load + OPEN] <= b[load + OPEN] or a[load + OPEN] + growth <= b[load + MAX])


@inlined
def _dominates(store: Store, i: int, j: int, growth: float, token_growth: float) -> bool:
    a, b = store.numbers[i], store.numbers[j]
    if a[LOSS] > b[LOSS] or a[BACK] > b[BACK] or store.indices[i, PAST] > store.indices[j, PAST]:
        return False
    return _is_no_worse(a, b, PREFILL, growth) and _is_no_worse(a, b, TOKEN, token_growth)


@jit
def push(p: Pruning, store: Store) -> None:
    """Keep the label after the last one unless its bound or a label of the same state rules it out."""
    new = store.counters[LABELS]
    number, tag = store.numbers[new], store.indices[new]
    number[BOUND] = _bound(p, number, tag)
    if tag[PARENT] >= 0:
        number[BOUND] = max(number[BOUND], store.numbers[tag[PARENT], BOUND])
    if number[BOUND] >= store.objective[0] * store.keep[0]:
        return
    growth = np.inf if tag[ARRIVED] else p.growth[tag[BOUNDARY], p.node_of[tag[PLACE]]]
    token_growth = np.inf if tag[ARRIVED] else p.token_growth[tag[BOUNDARY], p.node_of[tag[PLACE]]]
    stand = _stand(p, tag)
    slot = _slot(store, stand, store.used[new])
    store.key_stand[slot], store.key_used[slot] = stand, store.used[new]
    i = store.head[slot]
    while i >= 0:
        if _dominates(store, i, new, growth, token_growth) and _are_of_same_nodes(p, store, i, new):
            return
        i = store.indices[i, NEXT]
    before, i = -1, store.head[slot]
    while i >= 0:
        after = store.indices[i, NEXT]
        if _dominates(store, new, i, growth, token_growth) and _are_of_same_nodes(p, store, i, new):
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
