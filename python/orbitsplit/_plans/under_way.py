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
    slowest_s, round_trip_s = _of_prompt(result, chunks)
    if slowest_s <= 0:
        return None
    enough = math.ceil(round_trip_s / slowest_s) + _NEXT
    return enough if enough < micro_batches else None


def waiting_s(result: Evaluation, micro_batches: int, chunks: int, prompts_under_way: int | None) -> float:
    """Return by how many seconds the prefill takes longer than evaluated, if fewer prompts are under way than enough.

    As many as may start back to back, and each later one when the first stage hears that one has ended.
    """
    if prompts_under_way is None:
        return 0.0
    slowest_s, round_trip_s = _of_prompt(result, chunks)
    return (micro_batches - 1) // prompts_under_way * max(0.0, round_trip_s - prompts_under_way * slowest_s)


def prompt_round_trip_s(result: Evaluation, chunks: int) -> float:
    """Return the seconds from the start of a prompt until its end is known at the first stage."""
    return _of_prompt(result, chunks)[1]


def _of_prompt(result: Evaluation, chunks: int) -> tuple[float, float]:
    """Return the seconds of the slowest stage or link for a prompt, and from its start until its end is known there."""
    slowest_s = max(*result.stage_s, *result.link_s, *result.earlier_stage_s, result.ingress_s, result.egress_s)
    # Without new tokens the cost model has no way back.
    once_s = sum(result.stage_s) + sum(result.link_s) + result.latency_s + (result.return_s or result.latency_s)
    round_trip_s = once_s + result.ingress_s + result.egress_s + (chunks - 1) * slowest_s
    return chunks * slowest_s, round_trip_s
