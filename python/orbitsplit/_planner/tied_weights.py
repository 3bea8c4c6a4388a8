"""Weights that the first and the last layer share: a problem counts them in both, a node that runs both holds one.

A problem has one memory per layer, which is right for every plan but those of one stage; these few are solved apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .problem import Problem, Solution, Stage, solve


def with_one_copy(problem: Problem, tied_bytes: float) -> Problem:
    """Return the problem with the shared weights counted once: right for plans of one stage only."""
    if tied_bytes == 0:
        return problem
    memory = problem.layer_memory_bytes.copy()
    memory[-1] -= tied_bytes
    return replace(problem, layer_memory_bytes=memory)


def unlinked(problem: Problem, tied_bytes: float = 0) -> Problem:
    """Return the problem without links, whose plans have one stage, with the shared weights counted once."""
    return replace(with_one_copy(problem, tied_bytes), bandwidth_bytes_per_s=np.zeros_like(problem.latency_s))


def solve_with_one_copy(
    problem: Problem,
    tied_bytes: float,
    *,
    objective: str = "latency",
    max_nodes: int | None = None,
    gap: float = 0.0,
    time_limit_s: float | None = None,
    incumbent: Sequence[Stage] = (),
) -> tuple[Problem, Solution]:
    """Solve, counting the shared weights once where one node runs everything.

    Returns the solution, and the problem that confirms it.
    """
    solution = solve(
        problem, objective=objective, max_nodes=max_nodes, gap=gap, time_limit_s=time_limit_s, incumbent=incumbent
    )
    if tied_bytes == 0:
        return problem, solution
    alone = unlinked(problem, tied_bytes)
    best = solve(alone, objective=objective)
    if best.objective_s is None or (solution.objective_s is not None and solution.objective_s <= best.objective_s):
        return problem, solution
    bound_s = solution.lower_bound_s
    if solution.status in ("optimal", "infeasible") or bound_s is None or bound_s >= best.objective_s:
        return alone, best
    # The search over split plans was stopped: one of them may still be better than this one, down to its bound.
    gap = 1 - bound_s / best.objective_s
    return alone, replace(best, status="feasible", lower_bound_s=bound_s, gap=gap)
