"""Tied weights, which the first and the last layer share: a problem counts them in both, one node holds them once.

A problem has one memory per layer, which is right for every plan but those of one stage; these few are solved apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._io.validation import check_finite

from .problem import Problem
from .problem_parts import Stage
from .solve import Solution, SolveKeywords, SolveOptions, solve, solve_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


def check_tied_bytes(problem: Problem, tied_bytes: float) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for what the last layer cannot share with the first.

    With weight levels nothing is shared: the first layer may have another one than the last.
    """
    check_finite("tied_bytes", tied_bytes, least=0)
    if problem.weight_levels and tied_bytes > 0:
        raise ValueError(f"tied_bytes is {tied_bytes}, must be 0 for a problem with weight levels")
    most = float(problem.layer_memory_bytes[..., -1].min())
    if tied_bytes > most:
        raise ValueError(f"tied_bytes is {tied_bytes}, must be at most {most:g}, the bytes of the last layer")


def with_tied_weights(problem: Problem, tied_bytes: float) -> Problem:
    """Return the problem with the tied weights counted once: right for plans of one stage only."""
    if tied_bytes == 0:
        return problem
    memory = problem.layer_memory_bytes.copy()
    memory[-1] -= tied_bytes
    return replace(problem, layer_memory_bytes=memory)


def without_links(problem: Problem, tied_bytes: float = 0) -> Problem:
    """Return the problem without links, whose plans have one stage, with the tied weights counted once."""
    return replace(with_tied_weights(problem, tied_bytes), bandwidth_bytes_per_s=np.zeros_like(problem.latency_s))


def solve_with_tied_weights(
    problem: Problem,
    tied_bytes: float,
    *,
    options: SolveOptions | None = None,
    incumbent: Sequence[Stage] = (),
    **keywords: Unpack[SolveKeywords],
) -> tuple[Problem, Solution]:
    """Solve, counting the tied weights once where one node runs everything.

    Returns the problem by which `evaluate` confirms the solution, and the solution. Options as for `solve`.
    """
    options = solve_options("solve_with_tied_weights", options, {**keywords})
    solution = solve(problem, options=options, incumbent=incumbent)
    if tied_bytes == 0:
        return problem, solution
    alone = without_links(problem, tied_bytes)
    best = solve(alone, objective=options.objective)
    if best.objective_s is None or (solution.objective_s is not None and solution.objective_s <= best.objective_s):
        return problem, solution
    bound_s = solution.lower_bound_s
    if solution.status in ("optimal", "infeasible") or bound_s is None or bound_s >= best.objective_s:
        return alone, best
    # The search over split plans was stopped: one of them may still be better than this one, down to its bound.
    gap = 1 - bound_s / best.objective_s
    return alone, replace(best, status="feasible", lower_bound_s=bound_s, gap=gap)
