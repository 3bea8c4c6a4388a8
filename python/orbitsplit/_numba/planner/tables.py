"""What the planner derives from a problem once; the arrays of cpp/src/planner/tables.hpp.

Boundaries are numbered 0..layers: boundary i lies before layer i. NamedTuples of arrays, because Numba takes them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cost import generates, group_count, loss_limit, usable_memory_bytes
from .problem import ExternalLink, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What one relaxation may cost: tracked nodes are chosen by it.
QUICK_OPERATIONS = 2e6
THOROUGH_OPERATIONS = 1.5e8
_UNREACHABLE = 2**31


class Options(NamedTuple):
    """The options of `solve`."""

    objective: str
    max_nodes: int | None
    gap: float
    time_limit_s: float
    max_labels: int
    max_bytes: int
    incumbent: NDArray[np.int32]
    max_tracked: int
    max_bits: int


class Metric(NamedTuple):
    """A linear form under which prefill and decode become one (sum, max) pair."""

    prefill_sum: float
    decode_sum: float
    prefill_max: float
    decode_max: float
    latency_sum: float
    latency_max: float
    compute_sum: Floats  # nodes x boundaries, prefix sums
    compute_max: Floats  # nodes x boundaries
    packed_sum: Floats  # boundaries x levels
    packed_max: Floats  # boundaries x levels
    code_sum: Floats  # boundaries x levels
    encode_max: Floats  # boundaries x levels
    open_max: Floats  # boundaries
    close_max: Floats  # boundaries x nodes
    ingress_sum: Floats  # nodes
    ingress_max: Floats  # nodes
    egress_sum: Floats  # nodes
    egress_max: Floats  # nodes


class PhaseTables(NamedTuple):
    """One phase's occupancies: micro-batches, or token steps."""

    compute: Floats  # nodes x boundaries, prefix sums
    packed: Floats  # boundaries x levels
    encode: Floats  # boundaries x levels
    decode: Floats  # boundaries x levels
    growth: Floats  # boundaries x nodes


class Weights(NamedTuple):
    """The objective as weights of a plan's sums and maxima; of lap and busiest the larger one counts."""

    prefill_sum: float
    prefill_max: float
    lap: float
    busiest: float


class Tracks(NamedTuple):
    """What labels keep of a phase: that which the objective weighs."""

    sum: bool
    max: bool


class Tables(NamedTuple):
    """What the inner loops read."""

    layers: int
    nodes: int
    levels: int
    generates: bool
    is_free: bool
    needs_back: bool
    keeps_first: bool
    weights: Weights
    tracks: Tracks
    token_tracks: Tracks
    latency_occupies: bool
    loss_limit: float
    loss: Floats  # boundaries x levels
    max_stop: Ints  # nodes x boundaries
    memory: int
    node_of: Ints  # places
    remembered: Ints  # places
    oldest: Ints  # places
    start_place: Ints  # nodes, -1 where no chain starts
    neighbour_start: Ints  # places + 1
    neighbour: Ints  # places that may follow
    bandwidth: Floats  # links to the neighbours
    pace: Floats  # of these links
    latency: Floats  # of these links
    all_bandwidth: Floats  # nodes x nodes
    all_latency: Floats  # nodes x nodes
    half_duplex: NDArray[np.bool_]  # nodes
    can_start: NDArray[np.bool_]  # nodes
    can_end: NDArray[np.bool_]  # nodes
    ingress: Floats  # nodes
    ingress_delay: Floats  # nodes
    egress: Floats  # nodes
    egress_delay: Floats  # nodes
    mark: NDArray[np.uint64]  # nodes
    marks_are_exact: bool
    required: Ints
    tracked_bit: Ints  # nodes, -1 where the bounds let the node repeat
    tracked: int
    required_tracked: int
    most_stages: int
    count_step: int
    pasts: int
    prefill: PhaseTables
    token: PhaseTables


class _Tracking(NamedTuple):
    mark: NDArray[np.uint64]
    marks_are_exact: bool
    required: Ints
    tracked_bit: Ints
    tracked: int
    required_tracked: int
    most_stages: int
    count_step: int
    pasts: int


class _Links(NamedTuple):
    neighbour_start: Ints
    neighbour: Ints
    bandwidth: Floats
    pace: Floats
    latency: Floats
    can_start: NDArray[np.bool_]
    can_end: NDArray[np.bool_]


def make_tables(
    problem: Problem,
    options: Options,
    memory_relief_bytes: float = 0.0,
    most_operations: float = QUICK_OPERATIONS,
) -> Tables:
    """Return the tables; `memory_relief_bytes` is added to what every node can hold."""
    weights = _weights(problem, options.objective)
    token_tracks = Tracks(weights.lap > 0, weights.busiest > weights.lap)
    links = _links(problem)
    ingress, ingress_delay = _external(problem, problem.ingress, links.can_start)
    egress, egress_delay = _external(problem, problem.egress, links.can_end)
    prefill = _phase(problem, problem.layer_time_s, problem.cut_bytes, links, egress)
    needs_back = generates(problem) and _lacks_return(problem, links)
    max_stop = _max_stop(problem, memory_relief_bytes)
    longest = int((max_stop - np.arange(len(problem.layers) + 1)).sum())
    return Tables(
        layers=len(problem.layers),
        nodes=len(problem.nodes),
        levels=len(problem.levels),
        generates=generates(problem),
        is_free=problem.order == "free",
        needs_back=needs_back,
        keeps_first=generates(problem) and (needs_back or token_tracks.sum),
        weights=weights,
        tracks=Tracks(weights.prefill_sum > 0, weights.prefill_max > 0),
        token_tracks=token_tracks,
        latency_occupies=problem.latency_occupies_link,
        loss_limit=0.0 if problem.loss_budget is None else loss_limit(problem),
        loss=_loss(problem),
        max_stop=max_stop,
        memory=1,
        node_of=np.arange(len(problem.nodes)),
        remembered=np.ones(len(problem.nodes), dtype=np.int64),
        oldest=np.arange(len(problem.nodes)),
        start_place=np.arange(len(problem.nodes)),
        **links._asdict(),
        all_bandwidth=problem.bandwidth_bytes_per_s,
        all_latency=problem.latency_s,
        half_duplex=np.array([node.half_duplex for node in problem.nodes]),
        ingress=ingress,
        ingress_delay=ingress_delay,
        egress=egress,
        egress_delay=egress_delay,
        **_tracking(problem, prefill, links, options, longest, most_operations)._asdict(),
        prefill=prefill,
        token=_token_phase(problem, prefill, links),
    )


def make_metrics(t: Tables) -> list[Metric]:
    """Return the forms that bound the objective: by the lap and, with several groups, by the busiest resource."""
    metrics = []
    if t.token_tracks.sum or not t.token_tracks.max:
        metrics.append(_metric(t, t.weights.lap, 0.0))
    if t.token_tracks.max:
        metrics.append(_metric(t, 0.0, t.weights.busiest))
    return metrics


def _weights(problem: Problem, objective: str) -> Weights:
    # A lap contains its longest occupancy: where the maximum weighs no more, the lap alone decides the step.
    more_batches, more_tokens = float(problem.micro_batches - 1), float(problem.new_tokens - 1)
    groups = float(group_count(problem))
    if objective == "throughput":
        return Weights(0.0, 0.0, 0.0, 1.0) if generates(problem) else Weights(0.0, 1.0, 0.0, 0.0)
    if objective == "time_per_token":
        return Weights(0.0, 0.0, 1.0, groups)
    if objective == "latency" and generates(problem):
        return Weights(1.0, more_batches, more_tokens, more_tokens * groups)
    return Weights(1.0, more_batches, 0.0, 0.0)


def _metric(t: Tables, decode_sum: float, decode_max: float) -> Metric:
    prefill_sum, prefill_max = t.weights.prefill_sum, t.weights.prefill_max

    def in_sum(prefill: Floats, token: Floats) -> Floats:
        return prefill_sum * prefill + decode_sum * token if t.generates else prefill_sum * prefill

    def in_max(prefill: Floats, token: Floats) -> Floats:
        return prefill_max * prefill + decode_max * token if t.generates else prefill_max * prefill

    latency_max = prefill_max + decode_max if t.latency_occupies else 0.0
    packed_max = in_max(t.prefill.packed, t.token.packed)
    encode_max = in_max(t.prefill.encode, t.token.encode)
    egress_max = prefill_max * t.egress
    decodes = in_max(t.prefill.decode, t.token.decode)
    open_max = np.zeros(t.layers + 1)
    open_max[1 : t.layers] = decodes[1 : t.layers].min(axis=1, initial=math.inf)
    return Metric(
        prefill_sum=prefill_sum,
        decode_sum=decode_sum,
        prefill_max=prefill_max,
        decode_max=decode_max,
        latency_sum=prefill_sum + decode_sum,
        latency_max=latency_max,
        compute_sum=in_sum(t.prefill.compute, t.token.compute),
        compute_max=in_max(t.prefill.compute, t.token.compute),
        packed_sum=in_sum(t.prefill.packed, t.token.packed),
        packed_max=packed_max,
        code_sum=in_sum(t.prefill.encode, t.token.encode) + in_sum(t.prefill.decode, t.token.decode),
        encode_max=encode_max,
        open_max=open_max,
        close_max=_close_max(t, packed_max, encode_max, egress_max, latency_max),
        ingress_sum=prefill_sum * (t.ingress + t.ingress_delay),
        ingress_max=prefill_max * t.ingress,
        egress_sum=prefill_sum * (t.egress + t.egress_delay),
        egress_max=egress_max,
    )


def _close_max(t: Tables, packed_max: Floats, encode_max: Floats, egress_max: Floats, latency_max: float) -> Floats:
    """Return the least that leaving adds to a stage: encoding, and sending from a half-duplex node."""
    close = np.full((t.layers + 1, t.nodes), math.inf)
    for n in range(t.nodes):
        if not t.half_duplex[n]:
            close[1 : t.layers, n] = encode_max[1 : t.layers].min(axis=1, initial=math.inf)
            close[t.layers, n] = 0.0
            continue
        close[t.layers, n] = egress_max[n]
        for e in range(t.neighbour_start[n], t.neighbour_start[n + 1]):
            added = encode_max + packed_max * t.pace[e] + latency_max * t.latency[e]
            least = added[1 : t.layers].min(axis=1, initial=math.inf)
            close[1 : t.layers, n] = np.minimum(close[1 : t.layers, n], least)
    return close


def without_time(t: Tables) -> Metric:
    """Return the form that counts nothing: what is left is the loss."""
    levels = np.zeros((t.layers + 1, t.levels))
    compute = np.zeros((t.nodes, t.layers + 1))
    node = np.zeros(t.nodes)
    return Metric(
        0.0, 0.0, 0.0, 0.0, 0.0, 0.0, compute, compute, levels, levels, levels, levels,
        np.zeros(t.layers + 1), np.zeros((t.layers + 1, t.nodes)), node, node, node, node,
    )  # fmt: skip


def _max_stop(problem: Problem, relief: float) -> Ints:
    layers = len(problem.layers)
    memory = problem.layer_memory_bytes.tolist()
    max_stop = np.full((len(problem.nodes), layers + 1), layers, dtype=np.int64)
    for n, node in enumerate(problem.nodes):
        usable = usable_memory_bytes(node) + relief
        for start in range(layers):
            total, stop = 0.0, start
            while stop < layers and problem.pins.layers.get(stop, n) == n:
                total += memory[stop]
                if total > usable:
                    break
                stop += 1
            max_stop[n, start] = stop
    return max_stop


def _links(problem: Problem) -> _Links:
    nodes, is_free = len(problem.nodes), problem.order == "free"
    allowed = np.array([n not in problem.pins.forbidden for n in range(nodes)])
    required = np.array([n in problem.pins.required for n in range(nodes)])
    required_before = np.concatenate([[0], np.cumsum(required)])
    is_link = (problem.bandwidth_bytes_per_s > 0) & allowed & allowed[:, np.newaxis]
    np.fill_diagonal(is_link, False)
    if not is_free:
        is_link &= required_before[:-1] == required_before[1:, np.newaxis]
        is_link = np.triu(is_link, 1)
    origin, neighbour = np.nonzero(is_link)
    bandwidth = problem.bandwidth_bytes_per_s[origin, neighbour]
    with np.errstate(over="ignore"):
        pace = np.minimum(1 / bandwidth, np.finfo(np.float64).max)
    return _Links(
        neighbour_start=np.searchsorted(origin, np.arange(nodes + 1)).astype(np.int64),
        neighbour=neighbour.astype(np.int64),
        bandwidth=bandwidth,
        pace=pace,
        latency=problem.latency_s[origin, neighbour],
        can_start=allowed & (is_free | (required_before[:-1] == 0)),
        can_end=allowed & (is_free | (required_before[-1] == required_before[1:])),
    )


def _external(problem: Problem, link: ExternalLink | None, is_open: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return occupancy and propagation by node; closes the nodes that the link does not reach."""
    occupancy, delay = np.zeros(len(is_open)), np.zeros(len(is_open))
    if link is None:
        return occupancy, delay
    reached = link.bandwidth_bytes_per_s > 0
    is_open &= reached
    occupancy[reached] = float(link.bytes) / link.bandwidth_bytes_per_s[reached]
    target = occupancy if problem.latency_occupies_link else delay
    target[reached] += link.latency_s[reached]
    return occupancy, delay


def _phase(problem: Problem, layer_time_s: Floats, cut_bytes: Floats, links: _Links, egress: Floats) -> PhaseTables:
    nodes, layers, levels = len(problem.nodes), len(problem.layers), len(problem.levels)
    compute = np.zeros((nodes, layers + 1))
    np.cumsum(layer_time_s, axis=1, out=compute[:, 1:])
    packed, encode, decode = (np.zeros((layers + 1, levels)) for _ in range(3))
    for k, level in enumerate(problem.levels):
        packed[1:layers, k] = cut_bytes / float(level.ratio)
        encode[1:layers, k] = float(level.encode_s_per_byte) * cut_bytes
        decode[1:layers, k] = float(level.decode_s_per_byte) * cut_bytes
    growth = np.zeros((layers + 1, nodes))
    growth[1:layers] = encode[1:layers].max(axis=1, initial=0.0)[:, np.newaxis]
    for n, node in enumerate(problem.nodes):
        if not node.half_duplex:
            continue
        growth[layers, n] = egress[n]
        for e in range(links.neighbour_start[n], links.neighbour_start[n + 1]):
            sending = packed[1:layers] / links.bandwidth[e]
            if problem.latency_occupies_link:
                sending = sending + links.latency[e]
            most = (encode[1:layers] + sending).max(axis=1, initial=0.0)
            growth[1:layers, n] = np.maximum(growth[1:layers, n], most)
    return PhaseTables(compute, packed, encode, decode, growth)


def _lacks_return(problem: Problem, links: _Links) -> bool:
    missing = problem.bandwidth_bytes_per_s <= 0
    np.fill_diagonal(missing, False)
    return bool((missing & links.can_end[:, np.newaxis] & links.can_start[np.newaxis, :]).any())


def _tracking(
    problem: Problem, prefill: PhaseTables, links: _Links, options: Options, longest: int, most_operations: float
) -> _Tracking:
    """Choose the nodes that the bounds keep from repeating: required ones first, then the fastest."""
    nodes, layers = len(problem.nodes), len(problem.layers)
    tracked_bit = np.full(nodes, -1, dtype=np.int64)
    is_limited = options.max_nodes is not None and options.max_nodes < min(nodes, layers)
    most_stages = options.max_nodes if is_limited and options.max_nodes is not None else _UNREACHABLE
    is_exact = nodes <= options.max_bits or problem.order != "free"
    mark = _marks(nodes, is_exact) if problem.order == "free" else np.zeros(0, dtype=np.uint64)
    required = set(problem.pins.required if problem.order == "free" else ())
    total = prefill.compute[:, -1].tolist()
    ranked = sorted(range(nodes), key=lambda n: (n not in required, total[n], n))
    operations = float(layers) * float(len(links.neighbour)) + float(longest)
    if is_limited:
        operations *= most_stages
    tracked = 0
    for n in ranked if problem.order == "free" and is_exact else []:
        operations *= 2
        if operations > most_operations or tracked >= options.max_tracked:
            break
        tracked_bit[n] = tracked
        tracked += 1
    return _Tracking(
        mark=mark,
        marks_are_exact=is_exact,
        required=np.array(sorted(required), dtype=np.int64),
        tracked_bit=tracked_bit,
        tracked=tracked,
        required_tracked=sum(1 << int(tracked_bit[n]) for n in required if tracked_bit[n] >= 0),
        most_stages=most_stages,
        count_step=(1 << tracked) * is_limited,
        pasts=(1 << tracked) * (1 + most_stages * is_limited),
    )


def _marks(nodes: int, is_exact: bool) -> NDArray[np.uint64]:
    """Return what each node adds to the mark of a set: a bit, or of many nodes a number drawn by splitmix64."""
    word, marks, drawn = 2**64 - 1, [], 0
    for n in range(nodes):
        drawn = drawn + 0x9E3779B97F4A7C15 & word
        mixed = (drawn ^ drawn >> 30) * 0xBF58476D1CE4E5B9 & word
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & word
        marks.append(1 << n if is_exact else mixed ^ mixed >> 31)
    return np.array(marks, dtype=np.uint64)


def _token_phase(problem: Problem, prefill: PhaseTables, links: _Links) -> PhaseTables:
    times, sizes = problem.layer_decode_time_s, problem.cut_decode_bytes
    if not generates(problem) or times is None:
        return PhaseTables(*(np.zeros_like(values) for values in prefill))
    no_egress = np.zeros(len(problem.nodes))
    return _phase(problem, times, np.zeros(0) if sizes is None else sizes, links, no_egress)


def _loss(problem: Problem) -> Floats:
    """Return the loss by boundary and level; without a budget every loss counts as 0."""
    loss = np.zeros((len(problem.layers) + 1, len(problem.levels)))
    if problem.loss_budget is not None:
        loss[1:-1] = problem.loss
    return loss
