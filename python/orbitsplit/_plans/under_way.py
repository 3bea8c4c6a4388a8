"""How many prompts are under way at once, so that what waits on a stage does not grow with the workload."""

from __future__ import annotations

import math

from orbitsplit._planner.problem import Evaluation

# One more than what a round trip has time for: the next one waits when the first stage is free.
_NEXT = 1


def first_prompts_under_way(micro_batches: int, nodes: int, layers: int) -> int | None:
    """Return how many micro-batches a chain of equal stages and links at most keeps busy; None: that is all of them."""
    stages = min(nodes, layers)
    busy = stages + (stages - 1) + _NEXT
    return busy if busy < micro_batches else None


def enough_prompts_under_way(result: Evaluation, micro_batches: int, chunks: int) -> int | None:
    """Return how many micro-batches have to be under way so that none waits for another one's end; None: all of them.

    A new one starts when the first stage hears that one has ended. Until then its chunks pass all stages and links one
    after the other, and the slowest of these could have served as many as fit into that time.
    """
    slowest_s = max(*result.stage_s, *result.link_s, *result.earlier_stage_s, result.ingress_s, result.egress_s)
    if slowest_s <= 0:
        return None
    once_s = sum(result.stage_s) + sum(result.link_s) + result.latency_s + (result.return_s or result.latency_s)
    round_trip_s = once_s + result.ingress_s + result.egress_s + (chunks - 1) * slowest_s
    enough = math.ceil(round_trip_s / (chunks * slowest_s)) + _NEXT
    return enough if enough < micro_batches else None
