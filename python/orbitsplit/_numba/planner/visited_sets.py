"""The sets of visited nodes that labels and bounds tell apart: a part of the tables (cpp/src/planner/tables.hpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .options import Options
from .problem import Floats, Problem

Ints = NDArray[np.int64]

_UNREACHABLE = 2**31


class VisitedSets(NamedTuple):
    """What tells sets of nodes apart, for labels and for bounds; the fields are those of `Tables`."""

    node_key: NDArray[np.uint64]
    keys_are_exact: bool
    required: Ints
    ng_bit: Ints
    ng_size: int
    required_ng: int
    most_stages: int
    count_step: int
    visited_sets: int


def make_visited_sets(
    problem: Problem, total_s: Floats, links: int, options: Options, longest: int, most_operations: float
) -> VisitedSets:
    """Return the sets: `total_s` is a node's least time for all layers, `longest` the sum of all longest stages."""
    nodes, layers, is_free = len(problem.nodes), len(problem.layers), problem.order == "free"
    is_limited = options.max_nodes is not None and options.max_nodes < min(nodes, layers)
    most_stages = options.max_nodes if is_limited and options.max_nodes is not None else _UNREACHABLE
    is_exact = nodes <= options.max_bitset_nodes or not is_free
    required = sorted(set(problem.pins.required if is_free else ()))
    operations = float(layers) * float(links) + float(longest)
    if is_limited:
        operations *= most_stages
    max_ng_size = options.max_ng_size if is_free and is_exact else 0
    ng_bit = _choose_ng_set(total_s, required, max_ng_size, operations, most_operations)
    ng_size = int(ng_bit.max(initial=-1)) + 1
    return VisitedSets(
        node_key=_node_keys(nodes, is_exact) if is_free else np.zeros(0, dtype=np.uint64),
        keys_are_exact=is_exact,
        required=np.array(required, dtype=np.int64),
        ng_bit=ng_bit,
        ng_size=ng_size,
        required_ng=sum(1 << int(ng_bit[n]) for n in required if ng_bit[n] >= 0),
        most_stages=most_stages,
        count_step=(1 << ng_size) * is_limited,
        visited_sets=(1 << ng_size) * (1 + most_stages * is_limited),
    )


def _choose_ng_set(
    total_s: Floats, required: Sequence[int], max_ng_size: int, operations: float, most_operations: float
) -> Ints:
    """Return the nodes' bits in the ng-set, -1 outside it; each node in it doubles the operations.

    Required nodes come first, then the fastest, which a relaxation would repeat most often.
    """
    total = total_s.tolist()
    ng_bit = np.full(len(total), -1, dtype=np.int64)
    ranked = sorted(range(len(total)), key=lambda n: (n not in required, total[n], n))
    for bit, n in enumerate(ranked[:max_ng_size]):
        operations *= 2
        if operations > most_operations:
            break
        ng_bit[n] = bit
    return ng_bit


def _node_keys(nodes: int, is_exact: bool) -> NDArray[np.uint64]:
    """Return the keys that tell sets of nodes apart by one word: a bit for each node, or random ones of many nodes.

    Random keys are summed (Zobrist hashing, with a sum instead of XOR) and drawn by splitmix64 (Steele, Lea, Flood,
    OOPSLA 2014).
    """
    word, keys, drawn = 2**64 - 1, [], 0
    for n in range(nodes):
        drawn = drawn + 0x9E3779B97F4A7C15 & word
        mixed = (drawn ^ drawn >> 30) * 0xBF58476D1CE4E5B9 & word
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & word
        keys.append(1 << n if is_exact else mixed ^ mixed >> 31)
    return np.array(keys, dtype=np.uint64)
