"""The labels of a search: what cpp/src/planner/search.cpp keeps in `pool_`, `heap_` and `states_`.

Arrays of fixed size, because Numba compiles those; they grow between slices of the search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.jit import inlined, jit

from .label import ARRIVED, BOUND, BOUNDARY, DOMINATED, FIRST, NEXT, PARENT, VERTEX, dominates
from .label_bounds import Pruning, bound
from .root import ROUNDING
from .tables import Floats, Ints

# Counters of a pool.
LABELS, OPENS = range(2)


class LabelPool(NamedTuple):
    """The labels, a heap of the open ones, and the hash table of their states.

    The arrays of one element are those that compiled code writes: the incumbent and the counters.
    """

    numbers: Floats
    indices: Ints
    set_key: NDArray[np.uint64]
    heap_bound: Floats
    heap_label: Ints
    state_position: Ints  # slots: arrived or not, boundary, node, first node; -1: free slot
    state_set_key: NDArray[np.uint64]  # slots
    head: Ints  # slots: the last label of the state; NEXT leads to the others
    counters: Ints
    incumbent_parent: Ints  # parent of the incumbent's last stage, or -1
    incumbent_weight_level: Ints  # of the incumbent's last stage
    objective: Floats  # of the incumbent
    cutoff_factor: Floats  # a bound must stay below this part of the objective: 1 - gap


def new_pool(capacity: int, objective: float, gap: float) -> LabelPool:
    """Return an empty pool with room for `capacity` labels."""
    return LabelPool(
        numbers=np.zeros((capacity, 9)),
        indices=np.zeros((capacity, 9), dtype=np.int64),
        set_key=np.zeros(capacity, dtype=np.uint64),
        heap_bound=np.zeros(capacity),
        heap_label=np.zeros(capacity, dtype=np.int64),
        state_position=np.full(_slots(capacity), -1, dtype=np.int64),
        state_set_key=np.zeros(_slots(capacity), dtype=np.uint64),
        head=np.full(_slots(capacity), -1, dtype=np.int64),
        counters=np.zeros(3, dtype=np.int64),
        incumbent_parent=np.full(1, -1, dtype=np.int64),
        incumbent_weight_level=np.zeros(1, dtype=np.int64),
        objective=np.array([objective]),
        cutoff_factor=np.array([1 - max(gap, ROUNDING)]),
    )


def _slots(capacity: int) -> int:
    """Return a power of two that keeps the table at most half full: every state has a label."""
    return 1 << (2 * capacity - 1).bit_length()


def grown(pool: LabelPool) -> LabelPool:
    """Return the pool with twice the room."""
    old = len(pool.set_key)
    shared = ("counters", "incumbent_parent", "incumbent_weight_level", "objective", "cutoff_factor")
    larger = new_pool(2 * old, 0.0, 0.0)._replace(**{name: getattr(pool, name) for name in shared})
    for name in ("numbers", "indices", "set_key", "heap_bound", "heap_label"):
        getattr(larger, name)[:old] = getattr(pool, name)
    _rehash(pool, larger)
    return larger


@jit
def _rehash(pool: LabelPool, larger: LabelPool) -> None:
    for i in range(len(pool.head)):
        if pool.state_position[i] >= 0:
            slot = _slot(larger, pool.state_position[i], pool.state_set_key[i])
            larger.state_position[slot] = pool.state_position[i]
            larger.state_set_key[slot] = pool.state_set_key[i]
            larger.head[slot] = pool.head[i]


@jit
def _slot(pool: LabelPool, position: int, set_key: np.uint64) -> int:
    """Find the slot of a state, or the free one where it belongs."""
    mixed = (np.uint64(position) ^ set_key * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xD6E8FEB86659FD93)
    last = len(pool.head) - 1
    slot = np.int64(mixed >> np.uint64(20)) & last
    positions, set_keys = pool.state_position, pool.state_set_key
    while positions[slot] >= 0 and (positions[slot] != position or set_keys[slot] != set_key):
        slot = (slot + 1) & last
    return int(slot)


@inlined
def _position(p: Pruning, tag: Ints) -> int:
    position = tag[ARRIVED] * (p.layers + 1) + tag[BOUNDARY]
    position = position * p.nodes + p.node_of[tag[VERTEX]]
    return int(position * p.nodes + (tag[FIRST] if p.keeps_first else 0))


@inlined
def has_stage_on(p: Pruning, pool: LabelPool, label: int, node: int) -> bool:
    """Return whether a label's chain has a stage on a node, its last one included."""
    if p.keys_are_exact:
        return bool((pool.set_key[label] >> np.uint64(node)) & np.uint64(1) != np.uint64(0))
    at = label
    while at >= 0 and p.node_of[pool.indices[at, VERTEX]] != node:
        at = pool.indices[at, PARENT]
    return bool(at >= 0)


@jit
def _is_of_same_nodes(p: Pruning, pool: LabelPool, a: int, b: int) -> bool:
    """Return whether two chains of the same key have the same nodes."""
    if not p.compares_nodes:
        return True
    more, at = 0, a
    while at >= 0:
        if not has_stage_on(p, pool, b, p.node_of[pool.indices[at, VERTEX]]):
            return False
        more += pool.indices[at, ARRIVED]
        at = pool.indices[at, PARENT]
    at = b
    while at >= 0:
        more -= pool.indices[at, ARRIVED]
        at = pool.indices[at, PARENT]
    return more == 0


@jit
def _comes_first(pool: LabelPool, a: int, b: int) -> bool:
    """Smallest bound first, then the label with fewer layers left, then the older one. a, b: heap positions."""
    if pool.heap_bound[a] != pool.heap_bound[b]:
        return bool(pool.heap_bound[a] < pool.heap_bound[b])
    label_a, label_b = pool.heap_label[a], pool.heap_label[b]
    placed_a, placed_b = pool.indices[label_a, BOUNDARY], pool.indices[label_b, BOUNDARY]
    if placed_a != placed_b:
        return bool(placed_a > placed_b)
    return bool(label_a < label_b)


@inlined
def _swap(pool: LabelPool, a: int, b: int) -> None:
    pool.heap_bound[a], pool.heap_bound[b] = pool.heap_bound[b], pool.heap_bound[a]
    pool.heap_label[a], pool.heap_label[b] = pool.heap_label[b], pool.heap_label[a]


@jit
def _heap_push(pool: LabelPool, label: int) -> None:
    at = pool.counters[OPENS]
    pool.heap_bound[at], pool.heap_label[at] = pool.numbers[label, BOUND], label
    pool.counters[OPENS] += 1
    while at > 0 and _comes_first(pool, at, (at - 1) // 2):
        _swap(pool, at, (at - 1) // 2)
        at = (at - 1) // 2


@jit
def heap_pop(pool: LabelPool) -> int:
    """Remove the open label that comes first and return it."""
    label = pool.heap_label[0]
    pool.counters[OPENS] -= 1
    count = pool.counters[OPENS]
    _swap(pool, 0, count)
    at = 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and _comes_first(pool, child + 1, child):
            child += 1
        if not _comes_first(pool, child, at):
            break
        _swap(pool, at, child)
        at = child
    return int(label)


@jit
def push(p: Pruning, pool: LabelPool) -> None:
    """Keep the label after the last one unless its bound reaches the cutoff or one of the same state dominates it.

    Drops those of the same state that it dominates.
    """
    new = pool.counters[LABELS]
    number, tag = pool.numbers[new], pool.indices[new]
    number[BOUND] = bound(p, number, tag)
    if tag[PARENT] >= 0:
        number[BOUND] = max(number[BOUND], pool.numbers[tag[PARENT], BOUND])
    if number[BOUND] >= pool.objective[0] * pool.cutoff_factor[0]:
        return
    growth = np.inf, np.inf
    if not tag[ARRIVED]:
        at = tag[BOUNDARY], p.node_of[tag[VERTEX]]
        growth = p.growth[at], p.token_growth[at]
    position = _position(p, tag)
    slot = _slot(pool, position, pool.set_key[new])
    pool.state_position[slot], pool.state_set_key[slot] = position, pool.set_key[new]
    i = pool.head[slot]
    while i >= 0:
        if dominates(pool.numbers, pool.indices, i, new, growth) and _is_of_same_nodes(p, pool, i, new):
            return
        i = pool.indices[i, NEXT]
    before, i = -1, pool.head[slot]
    while i >= 0:
        after = pool.indices[i, NEXT]
        if dominates(pool.numbers, pool.indices, new, i, growth) and _is_of_same_nodes(p, pool, i, new):
            pool.indices[i, DOMINATED] = 1
            if before < 0:
                pool.head[slot] = after
            else:
                pool.indices[before, NEXT] = after
        else:
            before = i
        i = after
    tag[NEXT] = pool.head[slot]
    pool.head[slot] = new
    pool.counters[LABELS] += 1
    _heap_push(pool, new)
