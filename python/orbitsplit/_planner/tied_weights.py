"""Tied weights, which the first and the last layer share: a problem counts them in both, one node holds them once.

A problem has one memory per layer, which is right for every plan but those of one stage; these few are solved apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._io.validation import check_finite, tuple_of

from .problem import Problem
from .problem_parts import Stage
from .solve import Solution, SolveKeywords, SolveOptions, solve, solve_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


# Bytes, or with weight levels the bytes at each of them; 0 for none in any case.
TiedBytes = float | Sequence[float]


def check_tied_bytes(problem: Problem, tied_bytes: TiedBytes) -> None:
    """Raise `TypeError` for what are no numbers, `ValueError` for what the last layer cannot share with the first."""
    if not problem.weight_levels or (np.isscalar(tied_bytes) and tied_bytes == 0):
        _check_shared("tied_bytes", tied_bytes, problem.layer_memory_bytes[..., -1].min())
        return
    at_levels = tuple_of("tied_bytes", tied_bytes)
    if len(at_levels) != len(problem.weight_levels):
        wanted = f"one for each of the {len(problem.weight_levels)} weight levels"
        raise ValueError(f"tied_bytes has {len(at_levels)} numbers, must have {wanted}")
    for w, shared in enumerate(at_levels):
        _check_shared(f"tied_bytes[{w}]", shared, problem.layer_memory_bytes[w, -1])


def _check_shared(key: str, shared: Any, most: float) -> None:
    check_finite(key, shared, least=0)
    if shared > most:
        raise ValueError(f"{key} is {shared}, must be at most {most:g}, the bytes of the last layer")


def with_tied_weights(problem: Problem, tied_bytes: TiedBytes) -> Problem:
    """Return the problem with the tied weights counted once: right for plans of one stage only."""
    if not np.any(tied_bytes):
        return problem
    memory = problem.layer_memory_bytes.copy()
    memory[..., -1] -= tied_bytes
    return replace(problem, layer_memory_bytes=memory)


def without_links(problem: Problem, tied_bytes: TiedBytes = 0) -> Problem:
    """Return the problem without links, whose plans have one stage, with the tied weights counted once."""
    return replace(with_tied_weights(problem, tied_bytes), bandwidth_bytes_per_s=np.zeros_like(problem.latency_s))


def solve_with_tied_weights(
    problem: Problem,
    tied_bytes: TiedBytes,
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
    if not np.any(tied_bytes):
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
