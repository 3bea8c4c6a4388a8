"""Plans of one weight level: problems without weight levels, made from problems with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .problem import Problem
from .problem_parts import Stage

Stages = tuple[Stage, ...]


def at_weight_level(problem: Problem, weight_level: int) -> Problem:
    """Return the problem of the plans whose stages all have one weight level, as one without weight levels.

    Every layer then loses what it loses there, whatever the plan: the loss budget is smaller by that, at least 0.
    """
    assert problem.weight_loss is not None
    budget = problem.loss_budget
    optional = ("layer_earlier_time_s", "layer_decode_time_s", "stage_overhead_s", "stage_decode_overhead_s")
    given = {key: seconds for key in optional if (seconds := getattr(problem, key)) is not None}
    return replace(
        problem,
        weight_levels=(),
        weight_loss=None,
        layer_memory_bytes=problem.layer_memory_bytes[weight_level],
        layer_time_s=problem.layer_time_s[weight_level],
        **{key: seconds[weight_level] for key, seconds in given.items()},
        loss_budget=None if budget is None else max(0.0, budget - float(problem.weight_loss[weight_level].sum())),
    )


def best_uniform(
    problem: Problem, split: Callable[[Problem], Stages], best: Callable[[Problem, Sequence[Stages]], Stages]
) -> Stages:
    """Return what a heuristic without weight levels makes of a problem, of one with them the best of all levels.

    `best` chooses from stages of the problem.
    """
    if not problem.weight_levels:
        return split(problem)
    found = []
    for w in range(len(problem.weight_levels)):
        stages = split(at_weight_level(problem, w))
        found.append(tuple(stage._replace(weight_level=w) for stage in stages))
    return best(problem, found)
