"""Relayed: satellites generate the first tokens, and a station resumes the generation as soon as a pass begins.

Keys and values of the tokens so far go down. Without them the station would have to make the tokens so far again, and
so complete no sooner than if it had begun with the prompt, which is the strategy `ground`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from orbitsplit._plans.plan import Plan

from .energy import Load, loads_of
from .store_and_forward import Delivery
from .strategies import Candidate, Outcome, Resumption, makespan_s, windowed
from .task import Task


def relayed(task: Task, satellite: int, server: str, from_s: float, before_s: float = math.inf) -> Outcome:
    """Return the generation that begins at a satellite and is handed over to a station in the next pass."""
    ground = task.plan_on_node(server)
    if isinstance(ground, str):
        return ground
    delivery = task.graph.earliest_delivery(task.source, satellite, task.input_bytes, from_s, before_s)
    if delivery is None:
        return "the input does not arrive before the deadline or before another strategy completes"
    board = _board_plan(task, satellite, delivery.arrival_s)
    if isinstance(board, str):
        return board
    return _handed_over(task, board, ground, delivery, before_s)


def _board_plan(task: Task, satellite: int, at_s: float) -> Plan | str:
    """Return the plan of one satellite, or else of several from it on."""
    name = task.contact_plan.satellites[satellite]
    alone = task.plan_on_node(name)
    return windowed(task, name, at_s, None, with_ground=False) if isinstance(alone, str) else alone


def _handed_over(task: Task, board: Plan, ground: Plan, delivery: Delivery, before_s: float) -> Outcome:
    start_s, count = delivery.arrival_s, task.workload.new_tokens
    first_s = start_s + prefill_s(board)
    name = board.stages[-1].node
    last = task.contact_plan.satellites.index(name)
    at_s = _opening_s(task, [stage.node for stage in board.stages], ground.stages[0].node, first_s)
    tokens = 1 + int((at_s - first_s) / token_s(board)) if at_s < math.inf else count
    if tokens >= count:
        return f"{name} has generated all before a pass begins"
    until_s = task.contact_plan.until_s(start_s, pairwise(stage.node for stage in board.stages))
    down = task.graph.earliest_delivery(last, task.ground, _cache_bytes(task, tokens), at_s, before_s)
    if down is None:
        return "keys and values are not on the ground before the deadline or before another strategy completes"
    resume_s = down.arrival_s + task.options.handover_s
    end_s = resume_s + (count - tokens) * token_s(ground)
    closes_s = task.contact_plan.until_s(at_s, ((stage.node, ground.stages[0].node) for stage in board.stages))
    if end_s >= before_s or until_s < at_s or closes_s < resume_s:
        return f"{ground.stages[0].node} has not generated all before another strategy completes, or a link closes"
    return Candidate(
        "relayed",
        board,
        (start_s, end_s),
        end_s,
        until_s,
        input=delivery.transmissions,
        activation=down.transmissions,
        loads=loads_until(board, start_s, at_s),
        resumption=Resumption(ground, at_s, resume_s, tokens),
    )


def prefill_s(plan: Plan) -> float:
    """Return the predicted seconds until the first token."""
    assert plan.prediction is not None  # plans of a solver have one
    return plan.prediction.prefill_s


def token_s(plan: Plan) -> float:
    """Return the predicted seconds of each token after the first."""
    assert plan.prediction is not None  # plans of a solver have one
    return plan.prediction.decode_s / (plan.workload.new_tokens - 1)


def _opening_s(task: Task, satellites: Sequence[str], server: str, from_s: float) -> float:
    """Return the first instant from `from_s` on at which each of some satellites has a link of its own to a station."""
    if from_s > task.contact_plan.stop_s:
        return math.inf
    first = task.contact_plan.cell(from_s)
    rates = [task.contact_plan.rate_bytes_per_s(satellite, server)[first:] for satellite in satellites]
    is_open = np.flatnonzero(np.min(rates, axis=0) > 0)
    return max(from_s, float(task.contact_plan.edges_s[first + is_open[0]])) if len(is_open) else math.inf


def _cache_bytes(task: Task, tokens: int) -> float:
    """Return the bytes of keys and values of all sequences, each with some new tokens."""
    length = task.workload.prompt_tokens + tokens
    return float(sum(layer.kv_bytes(length) for layer in task.profile.layers) * task.workload.sequences)


def loads_until(plan: Plan, start_s: float, stop_s: float) -> tuple[Load, ...]:
    """Return the loads of the part of a plan that is computed until `stop_s`."""
    share = (stop_s - start_s) / makespan_s(plan)
    return tuple(
        replace(load, busy_s=share * load.busy_s, transmit_s=share * load.transmit_s)
        for load in loads_of(plan, start_s, stop_s)
    )
