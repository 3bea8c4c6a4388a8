"""Deferred: a satellite computes the first layers, their activation waits for a pass, a station computes the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orbitsplit._network.network import Link, Network
from orbitsplit._planner.problem import Evaluation, Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.solve import Solution
from orbitsplit._plans.plan_of_solution import plan_of

from .energy import Load
from .strategies import Candidate, Outcome, streamed
from .task import Task

# The link is not up while either node computes: its rate is in no time that counts.
_ANY_RATE = 1e9


@dataclass(frozen=True, slots=True)
class _Cut:
    """Two stages, the bytes between them, and their evaluation."""

    stages: tuple[Stage, Stage]
    bytes: float
    evaluation: Evaluation

    def dominates(self, other: _Cut) -> bool:
        """Return whether no stage takes longer and no more bytes are sent."""
        seconds = zip(self.evaluation.stage_s, other.evaluation.stage_s, strict=True)
        return self.bytes <= other.bytes and all(own <= theirs for own, theirs in seconds)


def deferred(task: Task, server: str, from_s: float, before_s: float = math.inf) -> Outcome:
    """Return the cut and level that complete first at a station; the input stays where it is."""
    if task.source == task.ground or task.workload.new_tokens > 0:
        return "only a prefill can be cut in time, and only where the input is on a satellite"
    name = task.contact_plan.satellites[task.source]
    if name not in task.computers:
        return f"{name} has no computer"
    nodes = tuple(replace(task.computers[node], name=node) for node in (name, server))
    network = Network(f"{name}, then {server}", nodes, (Link(name, server, _ANY_RATE),))
    problem = task.problem_on(network)
    best: Outcome = "no cut fits, or completes before another strategy"
    for cut in _nondominated(problem):
        candidate = _candidate(task, problem, network, cut, from_s, before_s)
        if candidate is not None and candidate.completion_s < before_s:
            best, before_s = candidate, candidate.completion_s
    return best


def _nondominated(problem: Problem) -> Iterator[_Cut]:
    """Yield the feasible cuts, the latest first, each with the levels that no other level dominates."""
    for cut in range(len(problem.layers) - 1, 0, -1):
        kept: list[_Cut] = []
        for level in range(len(problem.levels)):
            stages = (Stage(0, 0, cut, level), Stage(1, cut, len(problem.layers)))
            found = evaluate(problem, stages)
            size = float(problem.cut_bytes[cut - 1]) * problem.micro_batches / problem.levels[level].ratio
            candidate = _Cut(stages, size, found)
            if found.is_feasible and not any(other.dominates(candidate) for other in kept):
                kept.append(candidate)
        yield from kept


def _candidate(
    task: Task, problem: Problem, network: Network, cut: _Cut, from_s: float, before_s: float
) -> Candidate | None:
    """Return the candidate of a cut, None if it is too late."""
    first_s, rest_s = cut.evaluation.stage_s
    end_s = from_s + task.workload.micro_batches * first_s
    if end_s + rest_s >= min(before_s, task.contact_plan.stop_s):
        return None
    delivery = task.graph.earliest_delivery(task.source, task.ground, cut.bytes, end_s, before_s)
    if delivery is None:
        return None
    _, done_s = streamed(delivery, cut.bytes, rest_s, task.workload.micro_batches)
    solution = Solution(
        status="feasible",
        objective_s=cut.evaluation.objective_s,
        lower_bound_s=0.0,
        gap=1.0,
        seconds=0.0,
        loss=cut.evaluation.loss,
        stages=cut.stages,
        reason=None,
        labels=0,
    )
    return Candidate(
        "deferred",
        plan_of(problem, solution, task.plan_names(network)),
        (from_s, done_s),
        done_s,
        max(delivery.transmissions[-1].closes_s, done_s),
        activation=delivery.transmissions,
        loads=(Load(network.nodes[0].name, from_s, end_s, end_s - from_s),),
    )
