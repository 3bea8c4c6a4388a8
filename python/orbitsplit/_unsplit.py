"""Everything on one node: the answer "do not split", with the raw input relayed to that node where that pays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ._one_copy import with_one_copy
from ._paths import quickest_path, sending_s
from ._problem import Level, Pins, Problem, Stage, evaluate


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


def _paths(problem: Problem, node: int, stage_s: float) -> Iterator[tuple[int, ...]]:
    """Yield the quickest path of the input, then the quickest whose slowest hop is quicker, and so on.

    The best path is among them: the pipeline's delay grows with the sum of the hops and with the slowest alone,
    and the slowest does not matter once the stage itself is slower.
    """
    assert problem.ingress is not None
    entry = sending_s(problem.ingress.bytes, problem.ingress.bandwidth_bytes_per_s)
    link = sending_s(problem.ingress.bytes, problem.bandwidth_bytes_per_s)
    for forbidden in problem.pins.forbidden:
        entry[forbidden] = link[:, forbidden] = math.inf
    entry_total, link_total = entry + problem.ingress.latency_s, link + problem.latency_s
    if problem.latency_occupies_link:
        entry, link = entry_total, link_total
    limit = math.inf
    while path := quickest_path(
        np.where(entry < limit, entry_total, math.inf), np.where(link < limit, link_total, math.inf), node
    ):
        yield path
        limit = max(entry[path[0]], *(link[a, b] for a, b in pairwise(path)), 0.0)
        if limit <= stage_s or problem.micro_batches == 1:
            return
