"""All layers on one node: the answer "do not split", with the raw input relayed over links if that is faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from orbitsplit._io.validation import Array, check_is_integer, check_kind

from .objective import value_s
from .problem import Problem, earlier_time_s, evaluate, stage_overhead_s
from .problem_parts import Level, Pins, Stage
from .shortest_path import shortest_path_to, transmission_s
from .tied_weights import TiedBytes, check_tied_bytes, with_tied_weights


@dataclass(frozen=True, slots=True)
class Unsplit:
    """The score of a plan that runs all layers on one node.

    Attributes:
        node: Index of the node.
        path: Indices of the nodes that the raw input passes, `node` last.
        total_s: Seconds of the objective, infinite if the input cannot reach the node.
        violations: One sentence for each violated limit, as in an `Evaluation`.
        weight_level: Index of the weight level, None if the problem has none.
    """

    node: int
    path: tuple[int, ...]
    total_s: float
    violations: tuple[str, ...]
    weight_level: int | None = None


def unsplit(problem: Problem, node: int, *, objective: str = "latency", tied_bytes: TiedBytes = 0) -> Unsplit:
    """Score the plan that does not split: send the raw input to one node and run all layers there.

    With the ground server as `node` this is ground-only execution. The input arrives by the ingress of the problem,
    directly or at another node and from there over links, uncompressed, whichever is faster; every hop is one more
    resource of the pipeline. Without an ingress the input is at the node. Of several weight levels it is the fastest
    that respects the limits, else the fastest.

    Args:
        problem: The problem.
        node: Index of the node.
        objective: As in `SolveOptions`.
        tied_bytes: Bytes of weights that the first and the last layer share, which are held once; with weight levels a
            number for each.

    Raises:
        ValueError: There is no such node or objective, or `tied_bytes` is out of range.
        TypeError: An argument has another type.
    """
    check_kind("problem", problem, Problem)
    check_is_integer("node", node)
    check_tied_bytes(problem, tied_bytes)
    if not 0 <= node < len(problem.nodes):
        raise ValueError(f"node is {node}, the nodes are 0 to {len(problem.nodes) - 1}")
    whole = with_tied_weights(problem, tied_bytes)
    weight_levels = range(len(problem.weight_levels)) if problem.weight_levels else (None,)
    return min((_at_weight_level(whole, node, objective, level) for level in weight_levels), key=_rank)


def _at_weight_level(problem: Problem, node: int, objective: str, weight_level: int | None) -> Unsplit:
    """Return the fastest path of the input at one weight level."""
    direct = evaluate(problem, (Stage(node, 0, len(problem.layers), None, weight_level),))
    found = [Unsplit(node, (node,), value_s(direct, objective), direct.violations, weight_level)]
    if problem.ingress is not None:
        stage_s, *_ = direct.earlier_stage_s or direct.stage_s
        paths = [path for path in _paths(problem, node, stage_s) if len(path) > 1]
        found += [_relayed(problem, path, objective, weight_level) for path in paths]
    return min(found, key=lambda one: (one.total_s, len(one.path)))


def best_unsplit(problem: Problem, *, objective: str = "latency", tied_bytes: TiedBytes = 0) -> Unsplit:
    """Return the best unsplit plan: the fastest of the nodes that respect the limits, else of all nodes."""
    best: Unsplit | None = None
    for node, least_s in fastest_first(problem, objective):
        if best is not None and not best.violations and least_s >= best.total_s:
            break
        found = unsplit(problem, node, objective=objective, tied_bytes=tied_bytes)
        if best is None or _rank(found) < _rank(best):
            best = found
    assert best is not None
    return best


def fastest_first(problem: Problem, objective: str = "latency") -> list[tuple[int, float]]:
    """Return the nodes by a lower bound on the seconds to run all layers, the fastest first.

    The bound is the computing of the micro-batches; input, result and tokens only add to it.
    """
    if objective == "latency":
        last_s, earlier_s = (times.sum(axis=-1) for times in (problem.layer_time_s, earlier_time_s(problem)))
        least_s = last_s + earlier_s * (problem.micro_batches - 1) + stage_overhead_s(problem) * problem.micro_batches
        least_s = least_s.reshape(-1, len(problem.nodes)).min(axis=0)
    else:
        least_s = np.zeros(len(problem.nodes))
    return [(int(node), float(least_s[node])) for node in np.argsort(least_s, kind="stable")]


def _rank(found: Unsplit) -> tuple[bool, float, int]:
    return bool(found.violations), found.total_s, found.node


def _relayed(problem: Problem, path: tuple[int, ...], objective: str, weight_level: int | None) -> Unsplit:
    """Score one path of the input: each relay is a stage of one layer without cost, whose cut is the raw input.

    Tokens stay on the last node, whatever the path.
    """
    node, hops, layers = path[-1], len(path) - 1, len(problem.layers)
    stages = [Stage(relay, k, k + 1, len(problem.levels), weight_level) for k, relay in enumerate(path[:-1])]
    stages.append(Stage(node, hops, hops + layers, None, weight_level))
    prefill = evaluate(_with_relays(problem, hops, node), stages)
    alone = evaluate(replace(problem, ingress=None, egress=None), (Stage(node, 0, layers, None, weight_level),))
    if objective == "latency":
        total_s = prefill.objective_s + alone.objective_s - alone.prefill_s
    else:
        is_of_tokens = objective == "time_per_token" or (objective == "throughput" and problem.new_tokens >= 2)
        total_s = value_s(alone if is_of_tokens else prefill, objective)
    return Unsplit(node, path, total_s, prefill.violations, weight_level)


def _with_relays(problem: Problem, hops: int, node: int) -> Problem:
    """Return the problem with layers for relays before its own, which run on one node."""
    assert problem.ingress is not None
    is_relay = np.arange(len(problem.nodes)) != node
    cuts, losses, earlier = len(problem.cut_bytes), problem.weight_loss, problem.layer_earlier_time_s
    loss = np.zeros((hops + cuts, len(problem.levels) + 1))
    loss[hops:, :-1] = problem.loss
    pins = problem.pins
    return replace(
        problem,
        layers=(*(f"relay {k}" for k in range(hops)), *problem.layers),
        layer_memory_bytes=_with_leading_zeros(problem.layer_memory_bytes, hops),
        layer_time_s=_with_leading_zeros(problem.layer_time_s, hops),
        layer_earlier_time_s=None if earlier is None else _with_leading_zeros(earlier, hops),
        stage_overhead_s=None
        if problem.stage_overhead_s is None
        else np.where(is_relay, 0.0, problem.stage_overhead_s),
        stage_decode_overhead_s=None,
        weight_loss=None if losses is None else _with_leading_zeros(losses, hops),
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


def _with_leading_zeros(values: Array, count: int) -> Array:
    """Return values by layer, the last axis, with as many layers before them for which they are 0."""
    return np.concatenate([np.zeros((*values.shape[:-1], count)), values], axis=-1)


def _paths(problem: Problem, node: int, stage_s: float) -> Iterator[tuple[int, ...]]:
    """Yield the shortest path of the input, then the shortest one whose slowest hop is faster, and so on.

    The best path is among them: the pipeline's delay depends only on the sum of the hops and on the slowest one, and
    not on the slowest one once the stage itself is slower: `stage_s` is what a micro-batch before the last one takes.
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
