"""Everything on one node: the answer "do not split", with the raw input relayed to that node where that pays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .objective import value_s
from .problem import Level, Pins, Problem, Stage, evaluate
from .shortest_path import shortest_path_to, transmission_s
from .tied_weights import with_tied_weights


@dataclass(frozen=True, slots=True)
class Unsplit:
    """Everything on `node`: `path` has the nodes that the raw input passes, `node` last.

    `total_s` is what the objective counts, infinite where the input cannot get there; `violations` as in an
    `Evaluation`.
    """

    node: int
    path: tuple[int, ...]
    total_s: float
    violations: tuple[str, ...]


def unsplit(problem: Problem, node: int, *, objective: str = "latency", tied_bytes: float = 0) -> Unsplit:
    """Score the plan that splits nothing: send the raw input to `node`, run every layer there.

    With the ground server as `node` this is ground-only execution. The input arrives by the ingress of the
    problem: straight to the node, or at another one and from there over links, uncompressed, whichever is
    sooner; every hop is one more resource of the pipeline. Without an ingress the data are at the node. The
    `tied_bytes` that first and last layer share are held once. `objective` as in `solve`. Raises ValueError for a
    node that does not exist.
    """
    if not 0 <= node < len(problem.nodes):
        raise ValueError(f"node is {node}, the nodes are 0 to {len(problem.nodes) - 1}")
    whole = with_tied_weights(problem, tied_bytes)
    direct = evaluate(whole, (Stage(node, 0, len(problem.layers)),))
    ways = [Unsplit(node, (node,), value_s(direct, objective), direct.violations)]
    if problem.ingress is not None:
        paths = [path for path in _paths(problem, node, direct.stage_s[0]) if len(path) > 1]
        ways += [_relayed(whole, path, objective) for path in paths]
    return min(ways, key=lambda way: (way.total_s, len(way.path)))


def best_unsplit(problem: Problem, *, objective: str = "latency", tied_bytes: float = 0) -> Unsplit:
    """Return the best node for everything: the soonest of those that keep the limits, else of all."""
    best: Unsplit | None = None
    for node, least_s in quickest_first(problem, objective):
        if best is not None and not best.violations and least_s >= best.total_s:
            break
        way = unsplit(problem, node, objective=objective, tied_bytes=tied_bytes)
        if best is None or _rank(way) < _rank(best):
            best = way
    assert best is not None
    return best


def quickest_first(problem: Problem, objective: str = "latency") -> list[tuple[int, float]]:
    """Return the nodes, each with what it at least takes to run everything, the quickest first.

    Input, result and tokens only add to the computing of the micro-batches.
    """
    if objective == "latency":
        least_s = problem.layer_time_s.sum(axis=1) * problem.micro_batches
    else:
        least_s = np.zeros(len(problem.nodes))
    return [(int(node), float(least_s[node])) for node in np.argsort(least_s, kind="stable")]


def _rank(way: Unsplit) -> tuple[bool, float, int]:
    return bool(way.violations), way.total_s, way.node


def _relayed(problem: Problem, path: tuple[int, ...], objective: str) -> Unsplit:
    """Score one way of the input: each relay is a stage of one layer that costs nothing, its cut the raw input.

    Tokens stay on the last node, whatever way the input took.
    """
    node, hops, layers = path[-1], len(path) - 1, len(problem.layers)
    stages = [Stage(relay, k, k + 1, len(problem.levels)) for k, relay in enumerate(path[:-1])]
    prefill = evaluate(_with_relays(problem, hops), (*stages, Stage(node, hops, hops + layers)))
    alone = evaluate(replace(problem, ingress=None, egress=None), (Stage(node, 0, layers),))
    if objective == "latency":
        total_s = prefill.objective_s + alone.objective_s - alone.prefill_s
    else:
        is_of_tokens = objective == "time_per_token" or (objective == "throughput" and problem.new_tokens >= 2)
        total_s = value_s(alone if is_of_tokens else prefill, objective)
    return Unsplit(node, path, total_s, prefill.violations)


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
    entry = transmission_s(problem.ingress.bytes, problem.ingress.bandwidth_bytes_per_s)
    link = transmission_s(problem.ingress.bytes, problem.bandwidth_bytes_per_s)
    for forbidden in problem.pins.forbidden:
        entry[forbidden] = link[:, forbidden] = math.inf
    entry_total, link_total = entry + problem.ingress.latency_s, link + problem.latency_s
    if problem.latency_occupies_link:
        entry, link = entry_total, link_total
    limit = math.inf
    while path := shortest_path_to(
        np.where(entry < limit, entry_total, math.inf), np.where(link < limit, link_total, math.inf), node
    ):
        yield path
        limit = max(entry[path[0]], *(link[a, b] for a, b in pairwise(path)), 0.0)
        if limit <= stage_s:
            return
