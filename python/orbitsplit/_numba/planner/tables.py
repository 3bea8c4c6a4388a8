"""What the planner derives from a problem once: the arrays of cpp/src/planner/tables.hpp, which explains them.

A lane is a node at a weight level; without weight levels lanes are nodes.

Boundaries are numbered 0..layers: boundary i lies before layer i. Vertices are nodes together with the last nodes that
a chain visited before them. The arrays are in named tuples because Numba compiles those.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.jit import jit, slices
from orbitsplit._numba.time_limit import TimeLimit

from .cost import by_weight_level, generates, group_count, loss_limit, token_steps, usable_memory_bytes
from .options import Options
from .problem import ExternalLink, Problem
from .visited_sets import make_visited_sets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Operations that one relaxation may take: they limit the ng-set.
QUICK_OPERATIONS = 5e5
THOROUGH_OPERATIONS = 1.5e8


class PhaseTables(NamedTuple):
    """One phase's occupancies: micro-batches, or token steps."""

    compute: Floats  # lanes x boundaries, prefix sums
    compute_max: Floats  # the same of the micro-batches before the last, for the maximum; one array if all are alike
    stage: Floats  # lanes, what a stage takes in addition to its layers
    compressed: Floats  # boundaries x levels, bytes
    encode: Floats  # boundaries x levels
    decode: Floats  # boundaries x levels
    growth: Floats  # boundaries x nodes: the most that sending adds to the stage before


class Weights(NamedTuple):
    """The objective as weights of a plan's sums and maxima.

    prefill_sum * sum + prefill_max * max + max(round_trip * sum', bottleneck * max'), primes for a token step.
    """

    prefill_sum: float
    prefill_max: float
    round_trip: float
    bottleneck: float


class Tracks(NamedTuple):
    """What labels keep of a phase: only what has weight in the objective."""

    sum: bool
    max: bool


class Tables(NamedTuple):
    """What the inner loops read."""

    layers: int
    nodes: int
    levels: int
    weight_levels: int
    has_weight_levels: bool  # else there is one, and weights lose nothing
    generates: bool
    is_free: bool
    needs_return: bool  # for some pair of last and first node there is no direct link to return tokens
    most_return_s: Floats  # nodes: the slowest direct return to this first node, infinite if one is absent
    keeps_first: bool  # the first node is part of a label's state: tokens return to it
    weights: Weights
    tracks: Tracks
    token_tracks: Tracks
    latency_occupies_link: bool
    loss_limit: float  # without a budget all finite losses are 0
    loss: Floats  # boundaries x levels; infinite: the boundary does not have the level
    stage_loss: Floats  # weight levels x starts x stops; without weight levels a single 0
    max_stop: Ints  # lanes x boundaries: where the longest stage from here stops
    k_cycle: int  # a vertex remembers at most this many nodes, its own included
    node_of: Ints  # vertices
    remembered: Ints  # vertices: nodes remembered; fewer than k_cycle only at a chain's start
    oldest: Ints  # vertices: the first node remembered
    start_vertex: Ints  # nodes, -1 where no chain starts
    neighbour_start: Ints  # vertices + 1
    neighbour: Ints  # vertices that may follow, in increasing index of their nodes
    bandwidth: Floats  # of the links to the neighbours, in the same order
    s_per_byte: Floats  # of these links, 1 / bandwidth
    latency: Floats  # of these links
    bandwidth_bytes_per_s: Floats  # nodes x nodes, of the problem
    latency_s: Floats  # nodes x nodes, of the problem
    half_duplex: NDArray[np.bool_]  # nodes
    can_start: NDArray[np.bool_]  # nodes
    can_end: NDArray[np.bool_]  # nodes
    ingress: Floats  # nodes, occupancy
    ingress_delay: Floats  # nodes, propagation
    egress: Floats  # nodes
    egress_delay: Floats  # nodes
    node_key: NDArray[np.uint64]  # free order, nodes: a set of nodes has the sum of their keys
    keys_are_exact: bool  # one bit for each node; else different sets may have equal keys
    required: Ints  # free order: nodes that must be used
    ng_bit: Ints  # nodes: bit in the bounds' visited set, -1 if not in the ng-set
    ng_size: int
    required_ng: int  # the required nodes in the ng-set, as a visited set
    most_stages: int  # max_nodes if that limits plans, else unreachable
    count_step: int  # what one more stage adds to a visited set; 0 if stages are not counted
    visited_sets: int  # their number
    prefill: PhaseTables
    token: PhaseTables


class _Links(NamedTuple):
    k_cycle: int
    node_of: Ints
    remembered: Ints
    oldest: Ints
    start_vertex: Ints
    neighbour_start: Ints
    neighbour: Ints
    bandwidth: Floats
    s_per_byte: Floats
    latency: Floats
    can_start: NDArray[np.bool_]
    can_end: NDArray[np.bool_]


class _External(NamedTuple):
    ingress: Floats
    ingress_delay: Floats
    egress: Floats
    egress_delay: Floats


def make_tables(
    problem: Problem,
    options: Options,
    time_limit: TimeLimit,
    memory_relief_bytes: float = 0.0,
    most_operations: float = QUICK_OPERATIONS,
) -> Tables:
    """Return the tables; `memory_relief_bytes` is added to the memory of every node.

    If it must end early, growth is left infinite, which prunes less.
    """
    weights = _weights(problem, options.objective)
    token_tracks = Tracks(weights.round_trip > 0, weights.bottleneck > weights.round_trip)
    links = _links(problem)
    external = _External(
        *_occupancy_and_delay(problem, problem.ingress, links.can_start),
        *_occupancy_and_delay(problem, problem.egress, links.can_end),
    )
    of_prefill = problem.layer_time_s, problem.stage_overhead_s
    prefill = _phase(problem, of_prefill, problem.cut_bytes, links, external.egress, time_limit)
    if problem.layer_earlier_time_s is not None:
        prefill = prefill._replace(compute_max=_prefix_sums(problem, problem.layer_earlier_time_s))
    has_tokens = generates(problem)
    most_return_s = _most_return_s(problem, links, token_tracks)
    needs_return = has_tokens and bool(np.isinf(most_return_s).any())
    max_stop = _max_stop(problem, memory_relief_bytes)
    lanes = len(problem.nodes), max(1, len(problem.weight_levels)), len(problem.layers) + 1
    longest = int((max_stop.reshape(lanes).max(axis=1) - np.arange(len(problem.layers) + 1)).sum())
    least_s = (prefill.compute[:, -1] + prefill.stage).reshape(lanes[:2]).min(axis=1)
    return Tables(
        layers=len(problem.layers),
        nodes=len(problem.nodes),
        levels=len(problem.levels),
        weight_levels=lanes[1],
        has_weight_levels=bool(problem.weight_levels),
        generates=has_tokens,
        is_free=problem.order == "free",
        needs_return=needs_return,
        most_return_s=most_return_s,
        keeps_first=has_tokens and (needs_return or token_tracks.sum),
        weights=weights,
        tracks=Tracks(weights.prefill_sum > 0, weights.prefill_max > 0),
        token_tracks=token_tracks,
        latency_occupies_link=problem.latency_occupies_link,
        loss_limit=0.0 if problem.loss_budget is None else loss_limit(problem),
        loss=_loss(problem),
        stage_loss=_stage_loss(problem),
        max_stop=max_stop,
        **links._asdict(),
        bandwidth_bytes_per_s=problem.bandwidth_bytes_per_s,
        latency_s=problem.latency_s,
        half_duplex=np.array([node.half_duplex for node in problem.nodes]),
        **external._asdict(),
        **make_visited_sets(problem, least_s, len(links.neighbour), options, longest, most_operations)._asdict(),
        prefill=prefill,
        token=_token_phase(problem, prefill, links, time_limit),
    )


def _weights(problem: Problem, objective: str) -> Weights:
    # A round trip includes its longest occupancy: unless the maximum has more weight, the round trip is the step.
    more_batches, steps = float(problem.micro_batches - 1), token_steps(problem)
    by_token, groups = 1.0 / float(problem.tokens_per_step), float(group_count(problem))
    if objective == "throughput":
        return Weights(0.0, 0.0, 0.0, by_token) if generates(problem) else Weights(0.0, 1.0, 0.0, 0.0)
    if objective == "time_per_token":
        return Weights(0.0, 0.0, by_token, by_token * groups)
    if objective == "latency" and generates(problem):
        return Weights(1.0, more_batches, steps, steps * groups)
    return Weights(1.0, more_batches, 0.0, 0.0)


def _max_stop(problem: Problem, relief: float) -> Ints:
    """Return by lane where the longest stage from each boundary stops, summed as `evaluate` does.

    Memory, pins and absent weight levels limit it.
    """
    layers = len(problem.layers)
    pinned = np.full(layers, -1, dtype=np.int64)
    for layer, node in problem.pins.layers.items():
        pinned[layer] = node
    usable = np.array([usable_memory_bytes(node) + relief for node in problem.nodes])
    memory = by_weight_level(problem, problem.layer_memory_bytes).copy()
    if problem.weight_loss is not None:
        memory[problem.weight_loss == math.inf] = math.inf
    max_stop = np.full((len(problem.nodes) * len(memory), layers + 1), layers, dtype=np.int64)
    for start, stop in slices(layers, len(max_stop) * layers):
        _fill_max_stop(memory, usable, pinned, max_stop, start, stop)
    return max_stop


@jit
def _fill_max_stop(memory: Floats, usable: Floats, pinned: Ints, max_stop: Ints, first: int, end: int) -> None:
    weight_levels, layers = memory.shape
    for start in range(first, end):
        for lane in range(len(max_stop)):
            n, w = lane // weight_levels, lane % weight_levels
            total, stop = 0.0, start
            while stop < layers and (pinned[stop] < 0 or pinned[stop] == n):
                total += memory[w, stop]
                if total > usable[n]:
                    break
                stop += 1
            max_stop[lane, start] = stop


def _links(problem: Problem) -> _Links:
    """Return the links between nodes that may follow each other. In fixed order no required node may be skipped."""
    nodes, is_free = len(problem.nodes), problem.order == "free"
    allowed = np.array([n not in problem.pins.forbidden for n in range(nodes)])
    required = np.array([n in problem.pins.required for n in range(nodes)])
    required_before = np.concatenate([[0], np.cumsum(required)])
    is_link = (problem.bandwidth_bytes_per_s > 0) & allowed & allowed[:, np.newaxis]
    np.fill_diagonal(is_link, False)
    if not is_free:
        is_link &= required_before[:-1] == required_before[1:, np.newaxis]
        is_link = np.triu(is_link, 1)
    source, destination = np.nonzero(is_link)
    bandwidth = problem.bandwidth_bytes_per_s[source, destination]
    with np.errstate(over="ignore"):
        s_per_byte = np.minimum(1 / bandwidth, np.finfo(np.float64).max)
    return _Links(
        k_cycle=1,
        node_of=np.arange(nodes),
        remembered=np.ones(nodes, dtype=np.int64),
        oldest=np.arange(nodes),
        start_vertex=np.arange(nodes),
        neighbour_start=np.searchsorted(source, np.arange(nodes + 1)).astype(np.int64),
        neighbour=destination.astype(np.int64),
        bandwidth=bandwidth,
        s_per_byte=s_per_byte,
        latency=problem.latency_s[source, destination],
        can_start=allowed & (is_free | (required_before[:-1] == 0)),
        can_end=allowed & (is_free | (required_before[-1] == required_before[1:])),
    )


def _occupancy_and_delay(
    problem: Problem, link: ExternalLink | None, is_open: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return occupancy and propagation by node; closes the nodes that the link does not reach."""
    occupancy, delay = np.zeros(len(is_open)), np.zeros(len(is_open))
    if link is None:
        return occupancy, delay
    reached = link.bandwidth_bytes_per_s > 0
    is_open &= reached
    occupancy[reached] = float(link.bytes) / link.bandwidth_bytes_per_s[reached]
    delayed = occupancy if problem.latency_occupies_link else delay
    delayed[reached] += link.latency_s[reached]
    return occupancy, delay


def _prefix_sums(problem: Problem, layer_time_s: Floats) -> Floats:
    """Return the sums of the times of the layers before each boundary, by lane."""
    layers = len(problem.layers)
    times = by_weight_level(problem, layer_time_s).swapaxes(0, 1).reshape(-1, layers)
    sums = np.zeros((len(times), layers + 1))
    np.cumsum(times, axis=1, out=sums[:, 1:])
    return sums


def _stage(problem: Problem, stage_overhead_s: Floats | None) -> Floats:
    """Return what a stage takes in addition to its layers, by lane."""
    if stage_overhead_s is None:
        return np.zeros(len(problem.nodes) * max(1, len(problem.weight_levels)))
    return by_weight_level(problem, stage_overhead_s).T.flatten()


def _phase(
    problem: Problem,
    times: tuple[Floats, Floats | None],
    cut_bytes: Floats,
    links: _Links,
    egress: Floats,
    time_limit: TimeLimit,
) -> PhaseTables:
    nodes, layers, levels = len(problem.nodes), len(problem.layers), len(problem.levels)
    layer_time_s, stage_overhead_s = times
    compute, stage = _prefix_sums(problem, layer_time_s), _stage(problem, stage_overhead_s)
    compressed, encode, decode = (np.zeros((layers + 1, levels)) for _ in range(3))
    for k, level in enumerate(problem.levels):
        compressed[1:layers, k] = cut_bytes / float(level.ratio)
        encode[1:layers, k] = float(level.encode_s_per_byte) * cut_bytes
        decode[1:layers, k] = float(level.decode_s_per_byte) * cut_bytes
    half_duplex = np.array([node.half_duplex for node in problem.nodes])
    occupying = links.latency if problem.latency_occupies_link else np.zeros_like(links.latency)
    growth = np.zeros((layers + 1, nodes))
    growth[1:layers] = math.inf
    growth[layers] = np.where(half_duplex, egress, 0.0)
    loss = _loss(problem)
    for start, stop in slices(layers - 1, (len(links.neighbour) + nodes) * levels):
        if time_limit.must_end():
            break
        _fill_growth(loss, encode, compressed, links, occupying, half_duplex, growth, start + 1, stop + 1)
    return PhaseTables(compute, compute, stage, compressed, encode, decode, growth)


@jit
def _fill_growth(
    loss: Floats,
    encode: Floats,
    compressed: Floats,
    links: _Links,
    occupying: Floats,
    half_duplex: NDArray[np.bool_],
    growth: Floats,
    start: int,
    stop: int,
) -> None:
    """Fill the most that encoding, and on a half-duplex node sending, can add to a stage that ends at a boundary."""
    for i in range(start, stop):
        for n in range(len(half_duplex)):
            growth[i, n] = 0.0
            for k in range(loss.shape[1]):
                if loss[i, k] == np.inf:
                    continue
                growth[i, n] = max(growth[i, n], encode[i, k])
                for e in range(links.neighbour_start[n], links.neighbour_start[n + 1] if half_duplex[n] else 0):
                    sending = compressed[i, k] / links.bandwidth[e] + occupying[e]
                    growth[i, n] = max(growth[i, n], encode[i, k] + sending)


def _most_return_s(problem: Problem, links: _Links, tracks: Tracks) -> Floats:
    """Return by first node the slowest direct return, infinite if one is absent: tokens then return along the chain."""
    latency = problem.latency_s if tracks.sum else np.zeros_like(problem.latency_s)
    direct = np.where(problem.bandwidth_bytes_per_s > 0, latency, math.inf)
    np.fill_diagonal(direct, 0.0)
    is_pair = links.can_end[:, np.newaxis] & links.can_start[np.newaxis, :]
    return np.asarray(np.where(is_pair, direct, 0.0).max(axis=0))


def _token_phase(problem: Problem, prefill: PhaseTables, links: _Links, time_limit: TimeLimit) -> PhaseTables:
    times, sizes = problem.layer_decode_time_s, problem.cut_decode_bytes
    if not generates(problem) or times is None:
        return PhaseTables(*(np.zeros_like(values) for values in prefill))
    no_egress = np.zeros(len(problem.nodes))
    of_token = times, problem.stage_decode_overhead_s
    return _phase(problem, of_token, np.zeros(0) if sizes is None else sizes, links, no_egress, time_limit)


def _loss(problem: Problem) -> Floats:
    """Return the loss by boundary and level; without a budget every finite loss is 0."""
    loss = np.zeros((len(problem.layers) + 1, len(problem.levels)))
    loss[1:-1] = problem.loss
    return loss if problem.loss_budget is not None else np.where(loss < math.inf, 0.0, math.inf)


def _stage_loss(problem: Problem) -> Floats:
    """Return the loss of the weights of stages; without a budget every finite loss is 0.

    Summed from the start of the stage: losses may differ by so much that differences of prefix sums would be wrong.
    """
    if problem.weight_loss is None:
        return np.zeros((1, 1, 1))
    losses = problem.weight_loss
    if problem.loss_budget is None:
        losses = np.where(losses < math.inf, 0.0, math.inf)
    weight_levels, layers = losses.shape
    summed = np.zeros((weight_levels, layers + 1, layers + 1))
    for start in range(layers):
        np.cumsum(losses[:, start:], axis=1, out=summed[:, start, start + 1 :])
    return summed
