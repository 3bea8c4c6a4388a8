"""Everything on one node: the answer "do not split", with the raw input relayed to that node where that pays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ._one_copy import with_one_copy
from ._problem import Level, Pins, Problem, Stage, evaluate
from ._typed import Array


@dataclass(frozen=True, slots=True)
class Unsplit:
    """Everything on `node`: `path` has the nodes that the raw input passes, `node` last.

    `total_s` is infinite where the input cannot get there; `violations` as in an `Evaluation`.
    """

    node: int
    path: tuple[int, ...]
    total_s: float
    violations: tuple[str, ...]


def unsplit(problem: Problem, node: int, *, tied_bytes: float = 0) -> Unsplit:
    """Score the plan that splits nothing: send the raw input to `node`, run every layer there.

    With the ground server as `node` this is ground-only execution. The input arrives by the ingress of the
    problem: straight to the node, or at another one and from there over links, uncompressed, whichever is
    sooner; every hop is one more resource of the pipeline. Without an ingress the data are at the node. The
    `tied_bytes` that first and last layer share are held once. Raises ValueError for a node that does not exist.
    """
    if not 0 <= node < len(problem.nodes):
        raise ValueError(f"node is {node}, the nodes are 0 to {len(problem.nodes) - 1}")
    whole = with_one_copy(problem, tied_bytes)
    direct = evaluate(whole, (Stage(node, 0, len(problem.layers)),))
    ways = [Unsplit(node, (node,), direct.objective_s, direct.violations)]
    if problem.ingress is not None:
        ways += [_relayed(whole, path) for path in _paths(problem, node, direct.stage_s[0]) if len(path) > 1]
    return min(ways, key=lambda way: (way.total_s, len(way.path)))


def best_unsplit(problem: Problem, *, tied_bytes: float = 0) -> Unsplit:
    """Return the best node for everything: the soonest of those that keep the limits, else of all."""
    computing_s = problem.layer_time_s.sum(axis=1) * problem.micro_batches
    best: Unsplit | None = None
    for node in np.argsort(computing_s, kind="stable"):
        # Input and result only add to the computing.
        if best is not None and not best.violations and computing_s[node] >= best.total_s:
            break
        way = unsplit(problem, int(node), tied_bytes=tied_bytes)
        if best is None or _rank(way) < _rank(best):
            best = way
    assert best is not None
    return best


def _rank(way: Unsplit) -> tuple[bool, float, int]:
    return bool(way.violations), way.total_s, way.node


def _relayed(problem: Problem, path: tuple[int, ...]) -> Unsplit:
    """Score one way of the input: each relay is a stage of one layer that costs nothing, its cut the raw input."""
    hops = len(path) - 1
    stages = [Stage(node, k, k + 1, len(problem.levels)) for k, node in enumerate(path[:-1])]
    prefill = evaluate(_with_relays(problem, hops), (*stages, Stage(path[-1], hops, hops + len(problem.layers))))
    total_s = prefill.objective_s + _generation_s(problem, path[-1])
    return Unsplit(path[-1], path, total_s, prefill.violations)


def _generation_s(problem: Problem, node: int) -> float:
    """Return the seconds after prefill: tokens stay on the node, whatever way the input took."""
    alone = evaluate(replace(problem, ingress=None, egress=None), (Stage(node, 0, len(problem.layers)),))
    return alone.objective_s - alone.prefill_s


def _with_relays(problem: Problem, hops: int) -> Problem:
    assert problem.ingress is not None
    nodes, cuts = len(problem.nodes), len(problem.cut_bytes)
    loss = np.zeros((hops + cuts, len(problem.levels) + 1))
    loss[hops:, :-1] = problem.loss
    pins = problem.pins
    return replace(
        problem,
        layers=(*(f"relay {k}" for k in range(hops)), *problem.layers),
        layer_memory_bytes=np.concatenate([np.zeros(hops), problem.layer_memory_bytes]),
        layer_time_s=np.hstack([np.zeros((nodes, hops)), problem.layer_time_s]),
        cut_bytes=np.concatenate([np.full(hops, problem.ingress.bytes), problem.cut_bytes]),
        levels=(*problem.levels, Level(name="input", ratio=1)),
        loss=loss,
        layer_decode_time_s=None,
        cut_decode_bytes=None,
        new_tokens=0,
        order="free",
        pins=Pins(
            layers={layer + hops: host for layer, host in pins.layers.items()},
            required=pins.required,
            forbidden=pins.forbidden,
        ),
    )


@dataclass(frozen=True)
class _Hops:
    """Seconds that the raw input occupies the ingress to each node and each link, and all that it takes."""

    entry_s: Array
    entry_total_s: Array
    link_s: Array
    link_total_s: Array


def _hops(problem: Problem) -> _Hops:
    assert problem.ingress is not None
    ingress = problem.ingress
    entry = _occupancy(ingress.bytes, ingress.bandwidth_bytes_per_s)
    link = _occupancy(ingress.bytes, problem.bandwidth_bytes_per_s)
    for forbidden in problem.pins.forbidden:
        entry[forbidden] = link[:, forbidden] = math.inf
    entry_total, link_total = entry + ingress.latency_s, link + problem.latency_s
    if problem.latency_occupies_link:
        return _Hops(entry_total, entry_total, link_total, link_total)
    return _Hops(entry, entry_total, link, link_total)


def _occupancy(size: float, bandwidth: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bandwidth > 0, size / bandwidth, math.inf)


def _paths(problem: Problem, node: int, stage_s: float) -> Iterator[tuple[int, ...]]:
    """Yield the quickest path of the input, then the quickest whose slowest hop is quicker, and so on.

    The best path is among them: the pipeline's delay grows with the sum of the hops and with the slowest alone,
    and the slowest does not matter once the stage itself is slower.
    """
    hops = _hops(problem)
    limit = math.inf
    while path := _quickest_path(hops, node, limit):
        yield path
        limit = max(hops.entry_s[path[0]], *(hops.link_s[a, b] for a, b in pairwise(path)), 0.0)
        if limit <= stage_s or problem.micro_batches == 1:
            return


def _quickest_path(hops: _Hops, node: int, limit: float) -> tuple[int, ...]:
    """Return the nodes of the quickest way whose hops each occupy less than `limit` (Dijkstra), () if none."""
    distance = np.where(hops.entry_s < limit, hops.entry_total_s, math.inf)
    before = np.full(len(distance), -1)
    is_open = np.ones(len(distance), dtype=bool)
    while True:
        at = int(np.argmin(np.where(is_open, distance, math.inf)))
        if not is_open[at] or distance[at] == math.inf:
            return ()
        if at == node:
            break
        is_open[at] = False
        reached = np.where(hops.link_s[at] < limit, distance[at] + hops.link_total_s[at], math.inf)
        sooner = is_open & (reached < distance)
        distance[sooner] = reached[sooner]
        before[sooner] = at
    path = [node]
    while before[path[0]] >= 0:
        path.insert(0, int(before[path[0]]))
    return tuple(path)
