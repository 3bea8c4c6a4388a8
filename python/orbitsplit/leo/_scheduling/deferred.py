"""The first layers now, on the satellite with the input; their activation waits for a pass; a station does the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orbitsplit._network.network import Link, Network
from orbitsplit._planner.problem import Evaluation, Problem, Stage, evaluate
from orbitsplit._planner.solve import Solution
from orbitsplit._plans.planning import PlanNames, build_problem, plan_of

from .energy import Load
from .strategies import Asked, Candidate, served

# The link is not there while either computes: its rate is in no time that counts.
_ANY_RATE = 1e9


@dataclass(frozen=True, slots=True)
class _Cut:
    """Two stages, the bytes between them, and what they cost."""

    stages: tuple[Stage, Stage]
    bytes: float
    scored: Evaluation


def deferred(asked: Asked, server: str, from_s: float, before_s: float = math.inf) -> Candidate | str:
    """Return the cut and level whose result is soonest there; the input is not moved before."""
    if asked.source == asked.ground or asked.workload.new_tokens > 0:
        return "only a prefill can be cut in time, and only where the input is on a satellite"
    name = asked.table.satellites[asked.source]
    if name not in asked.computers:
        return f"{name} has no computer"
    link = Link(name, server, _ANY_RATE)
    nodes = tuple(replace(asked.computers[node], name=node) for node in (name, server))
    network = Network(f"{name}, then {server}", nodes, (link,))
    problem = build_problem(
        asked.profile, network, asked.workload, levels=asked.levels, loss_budget=asked.loss_budget, order="free"
    )
    best: Candidate | str = "no cut fits, or is complete before another way"
    for cut in _useful(problem):
        candidate = _kept(asked, problem, network, cut, from_s, before_s)
        if candidate is not None and candidate.completion_s < before_s:
            best, before_s = candidate, candidate.completion_s
    return best


def _useful(problem: Problem) -> Iterator[_Cut]:
    """Yield the cuts that fit, of each the levels of which none is better in all: latest cut first."""
    for cut in range(len(problem.layers) - 1, 0, -1):
        kept: list[_Cut] = []
        for level in range(len(problem.levels)):
            stages = (Stage(0, 0, cut, level), Stage(1, cut, len(problem.layers)))
            scored = evaluate(problem, stages)
            size = float(problem.cut_bytes[cut - 1]) * problem.micro_batches / problem.levels[level].ratio
            if scored.is_feasible and not any(
                other.bytes <= size and all(a <= b for a, b in zip(other.scored.stage_s, scored.stage_s, strict=True))
                for other in kept
            ):
                kept.append(_Cut(stages, size, scored))
        yield from kept


def _kept(
    asked: Asked, problem: Problem, network: Network, cut: _Cut, from_s: float, before_s: float
) -> Candidate | None:
    first_s, rest_s = cut.scored.stage_s
    end_s = from_s + asked.workload.micro_batches * first_s
    if end_s + rest_s >= min(before_s, asked.table.stop_s):
        return None
    carriage = asked.carrier.carry(asked.source, asked.ground, cut.bytes, end_s, before_s)
    if carriage is None:
        return None
    _, done_s = served(carriage, cut.bytes, rest_s, asked.workload.micro_batches)
    named = PlanNames(network, asked.workload, asked.profile, "latency", asked.codebook, asked.max_accuracy_drop)
    solution = Solution(
        status="feasible",
        objective_s=cut.scored.objective_s,
        lower_bound_s=0.0,
        gap=1.0,
        seconds=0.0,
        loss=cut.scored.loss,
        stages=cut.stages,
        reason=None,
        labels=0,
    )
    busy = Load(network.nodes[0].name, from_s, end_s, end_s - from_s)
    return Candidate(
        "deferred",
        plan_of(problem, solution, named),
        (from_s, done_s),
        done_s,
        max(carriage.sendings[-1].closes_s, done_s),
        activation=carriage.sendings,
        loads=(busy,),
    )
