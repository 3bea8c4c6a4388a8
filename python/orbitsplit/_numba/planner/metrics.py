"""The metrics of cpp/src/planner/tables.hpp, which has the formula: linear forms that bound the objective.

In C++ they are part of the tables; here compiled code takes the tables and one metric.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orbitsplit._numba.jit import jit, slices
from orbitsplit._numba.time_limit import TimeLimit

from .tables import Floats, Tables


class Metric(NamedTuple):
    """A linear form under which prefill and decode become one (sum, max) pair."""

    prefill_sum: float
    decode_sum: float
    prefill_max: float
    decode_max: float
    latency_sum: float  # weight of a link's latency in the sum
    latency_max: float  # the same in the maximum (latency_occupies_link)
    compute_sum: Floats  # lanes x boundaries, prefix sums
    compute_max: Floats  # lanes x boundaries
    start_sum: Floats  # lanes x boundaries, less what a stage takes in addition to its layers
    start_max: Floats  # lanes x boundaries
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


def make_metrics(t: Tables, time_limit: TimeLimit) -> list[Metric]:
    """Return the forms that bound the objective: by the round trip and, with several groups, by the bottleneck.

    If it must end early, `open_max` and `close_max` are left 0, which prunes less.
    """
    metrics = []
    if t.token_tracks.sum or not t.token_tracks.max:
        metrics.append(_metric(t, t.weights.round_trip, 0.0, time_limit))
    if t.token_tracks.max:
        metrics.append(_metric(t, 0.0, t.weights.bottleneck, time_limit))
    return metrics


def _metric(t: Tables, decode_sum: float, decode_max: float, time_limit: TimeLimit) -> Metric:
    prefill_sum, prefill_max = t.weights.prefill_sum, t.weights.prefill_max

    def in_sum(prefill: Floats, token: Floats) -> Floats:
        return prefill_sum * prefill + decode_sum * token if t.generates else prefill_sum * prefill

    def in_max(prefill: Floats, token: Floats) -> Floats:
        return prefill_max * prefill + decode_max * token if t.generates else prefill_max * prefill

    compute_sum = in_sum(t.prefill.compute, t.token.compute)
    compute_max = in_max(t.prefill.compute_max, t.token.compute_max)
    metric = Metric(
        prefill_sum=prefill_sum,
        decode_sum=decode_sum,
        prefill_max=prefill_max,
        decode_max=decode_max,
        latency_sum=prefill_sum + decode_sum,
        latency_max=prefill_max + decode_max if t.latency_occupies_link else 0.0,
        compute_sum=compute_sum,
        compute_max=compute_max,
        start_sum=compute_sum - in_sum(t.prefill.stage, t.token.stage)[:, None],
        start_max=compute_max - in_max(t.prefill.stage, t.token.stage)[:, None],
        compressed_sum=in_sum(t.prefill.compressed, t.token.compressed),
        compressed_max=in_max(t.prefill.compressed, t.token.compressed),
        code_sum=in_sum(t.prefill.encode, t.token.encode) + in_sum(t.prefill.decode, t.token.decode),
        encode_max=in_max(t.prefill.encode, t.token.encode),
        open_max=np.zeros(t.layers + 1),
        close_max=np.zeros((t.layers + 1, t.nodes)),
        ingress_sum=prefill_sum * (t.ingress + t.ingress_delay),
        ingress_max=prefill_max * t.ingress,
        egress_sum=prefill_sum * (t.egress + t.egress_delay),
        egress_max=prefill_max * t.egress,
    )
    metric.close_max[t.layers] = np.where(t.half_duplex, metric.egress_max, 0.0)
    decode_max_s = in_max(t.prefill.decode, t.token.decode)
    for start, stop in slices(t.layers - 1, (len(t.neighbour) + t.nodes) * t.levels):
        if time_limit.must_end():
            break
        _fill_close(t, metric, decode_max_s, start + 1, stop + 1)
    return metric


@jit
def _fill_close(t: Tables, m: Metric, decode_max: Floats, start: int, stop: int) -> None:
    """Fill the least that decoding adds to a stage, and that encoding and, on a half-duplex node, sending adds."""
    for i in range(start, stop):
        m.open_max[i] = np.inf
        m.close_max[i] = np.inf
        for k in range(t.levels):
            if t.loss[i, k] == np.inf:
                continue
            m.open_max[i] = min(m.open_max[i], decode_max[i, k])
            for n in range(t.nodes):
                encode = m.encode_max[i, k]
                if not t.half_duplex[n]:
                    m.close_max[i, n] = min(m.close_max[i, n], encode)
                    continue
                for e in range(t.neighbour_start[n], t.neighbour_start[n + 1]):
                    added = encode + m.compressed_max[i, k] * t.s_per_byte[e] + m.latency_max * t.latency[e]
                    m.close_max[i, n] = min(m.close_max[i, n], added)
