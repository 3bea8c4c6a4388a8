"""The metrics of cpp/src/planner/tables.hpp, which has the formula: linear forms that bound the objective.

In C++ they are part of the tables; here compiled code takes the tables and one metric.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .tables import Floats, Tables


class Metric(NamedTuple):
    """A linear form under which prefill and decode become one (sum, max) pair."""

    prefill_sum: float
    decode_sum: float
    prefill_max: float
    decode_max: float
    latency_sum: float  # weight of a link's latency in the sum
    latency_max: float  # the same in the maximum (latency_occupies_link)
    compute_sum: Floats  # nodes x boundaries, prefix sums
    compute_max: Floats  # nodes x boundaries
    compressed_sum: Floats  # boundaries x levels, bytes: over a bandwidth, the weight of a link
    compressed_max: Floats  # boundaries x levels
    code_sum: Floats  # boundaries x levels, encode and decode
    encode_max: Floats  # boundaries x levels
    open_max: Floats  # boundaries: the least that decoding adds to the next stage
    close_max: Floats  # boundaries x nodes: the least that sending adds to the stage before
    ingress_sum: Floats  # nodes
    ingress_max: Floats  # nodes
    egress_sum: Floats  # nodes
    egress_max: Floats  # nodes


def make_metrics(t: Tables) -> list[Metric]:
    """Return the forms that bound the objective: by the round trip and, with several groups, by the bottleneck."""
    metrics = []
    if t.token_tracks.sum or not t.token_tracks.max:
        metrics.append(_metric(t, t.weights.round_trip, 0.0))
    if t.token_tracks.max:
        metrics.append(_metric(t, 0.0, t.weights.bottleneck))
    return metrics


def _metric(t: Tables, decode_sum: float, decode_max: float) -> Metric:
    prefill_sum, prefill_max = t.weights.prefill_sum, t.weights.prefill_max

    def in_sum(prefill: Floats, token: Floats) -> Floats:
        return prefill_sum * prefill + decode_sum * token if t.generates else prefill_sum * prefill

    def in_max(prefill: Floats, token: Floats) -> Floats:
        return prefill_max * prefill + decode_max * token if t.generates else prefill_max * prefill

    latency_max = prefill_max + decode_max if t.latency_occupies_link else 0.0
    compressed_max = in_max(t.prefill.compressed, t.token.compressed)
    encode_max = in_max(t.prefill.encode, t.token.encode)
    egress_max = prefill_max * t.egress
    decodes = in_max(t.prefill.decode, t.token.decode)
    open_max = np.zeros(t.layers + 1)
    has_level = t.loss[1 : t.layers] < math.inf
    open_max[1 : t.layers] = decodes[1 : t.layers].min(axis=1, initial=math.inf, where=has_level)
    return Metric(
        prefill_sum=prefill_sum,
        decode_sum=decode_sum,
        prefill_max=prefill_max,
        decode_max=decode_max,
        latency_sum=prefill_sum + decode_sum,
        latency_max=latency_max,
        compute_sum=in_sum(t.prefill.compute, t.token.compute),
        compute_max=in_max(t.prefill.compute, t.token.compute),
        compressed_sum=in_sum(t.prefill.compressed, t.token.compressed),
        compressed_max=compressed_max,
        code_sum=in_sum(t.prefill.encode, t.token.encode) + in_sum(t.prefill.decode, t.token.decode),
        encode_max=encode_max,
        open_max=open_max,
        close_max=_close_max(t, compressed_max, encode_max, egress_max, latency_max),
        ingress_sum=prefill_sum * (t.ingress + t.ingress_delay),
        ingress_max=prefill_max * t.ingress,
        egress_sum=prefill_sum * (t.egress + t.egress_delay),
        egress_max=egress_max,
    )


def _close_max(t: Tables, compressed_max: Floats, encode_max: Floats, egress_max: Floats, latency_max: float) -> Floats:
    """Return the least that sending adds to a stage: encoding and, on a half-duplex node, transmission."""
    close = np.full((t.layers + 1, t.nodes), math.inf)
    has_level = t.loss[1 : t.layers] < math.inf
    for n in range(t.nodes):
        if not t.half_duplex[n]:
            close[1 : t.layers, n] = encode_max[1 : t.layers].min(axis=1, initial=math.inf, where=has_level)
            close[t.layers, n] = 0.0
            continue
        close[t.layers, n] = egress_max[n]
        for e in range(t.neighbour_start[n], t.neighbour_start[n + 1]):
            added = encode_max + compressed_max * t.s_per_byte[e] + latency_max * t.latency[e]
            least = added[1 : t.layers].min(axis=1, initial=math.inf, where=has_level)
            close[1 : t.layers, n] = np.minimum(close[1 : t.layers, n], least)
    return close
