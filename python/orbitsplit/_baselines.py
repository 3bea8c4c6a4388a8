"""What people do instead of searching: splits by rule, to be scored by `evaluate` beside a plan.

Each function returns stages; whether they fit a node's memory or the loss budget is for `evaluate` to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._problem import Problem, Solution, Stage, evaluate, solve


def uniform(problem: Problem) -> tuple[Stage, ...]:
    """Split the layers into equal counts, nodes in the given order, with the best single level at every cut."""
    return _with_best_level(problem, np.ones(len(problem.layers)), np.ones(len(problem.nodes)))


def proportional(problem: Problem) -> tuple[Stage, ...]:
    """Split the layers so that each node's share of the work is its share of the speed, as `uniform` otherwise.

    A layer's work is its mean seconds over the nodes, a node's speed the inverse of its seconds for all layers.
    """
    seconds = np.asarray(problem.layer_time_s)
    total = seconds.sum(axis=1)
    if not (total > 0).all():  # a node that takes no time would get everything
        return uniform(problem)
    return _with_best_level(problem, seconds.mean(axis=0), 1.0 / total)


@dataclass(frozen=True)
class Candidate:
    """A way to run the model: the seconds it would take, and which limits it breaks (empty: none)."""

    name: str
    total_s: float
    breaks: str


def compare(problem: Problem, solution: Solution) -> tuple[Candidate, ...]:
    """Score the plan beside what people do instead; those that break a limit are scored as if they did not."""
    named = [
        ("planned", solution.stages),
        ("uniform", uniform(problem)),
        ("proportional to speed", proportional(problem)),
        *(
            (f"everything on {node.name}", (Stage(k, 0, len(problem.layers), None),))
            for k, node in enumerate(problem.nodes)
        ),
    ]
    candidates = [_candidate(problem, name, stages) for name, stages in named]
    return (candidates[0], _uncompressed(problem), *candidates[1:])


def _candidate(problem: Problem, name: str, stages: Sequence[Stage]) -> Candidate:
    result = evaluate(problem, stages)
    return Candidate(name, result.objective_s, "; ".join(result.violations))


def _uncompressed(problem: Problem) -> Candidate:
    """Return the best plan without compression."""
    data = problem.to_dict()
    raw = [k for k, level in enumerate(problem.levels) if level.ratio == 1][:1]
    data["levels"] = [data["levels"][k] for k in raw]
    data["loss"] = [[row[k] for k in raw] for row in data["loss"]]
    bare = Problem.from_dict(data)
    best = solve(bare)
    if best.status == "infeasible":
        return Candidate("best without compression", float("nan"), best.reason)
    return _candidate(bare, "best without compression", best.stages)


def _with_best_level(
    problem: Problem, work: npt.NDArray[np.float64], share: npt.NDArray[np.float64]
) -> tuple[Stage, ...]:
    """Return the split whose single level is cheapest within the loss budget, else the one that loses least."""
    bounds = _bounds(work, share)
    if len(bounds) == 2:
        return _stages(bounds, None)
    candidates = [_stages(bounds, level) for level in range(len(problem.levels))]
    scored = [(evaluate(problem, stages), stages) for stages in candidates]
    budget = math.inf if problem.loss_budget is None else problem.loss_budget
    within = [pair for pair in scored if pair[0].loss <= budget]
    if within:
        return min(within, key=lambda pair: pair[0].objective_s)[1]
    return min(scored, key=lambda pair: pair[0].loss)[1]


def _bounds(work: npt.NDArray[np.float64], share: npt.NDArray[np.float64]) -> list[int]:
    """Return the layers at which stages begin, and the number of layers: every node gets at least one layer."""
    layers, nodes = len(work), min(len(share), len(work))
    targets = np.cumsum(share[:nodes])[:-1] / share[:nodes].sum() * work.sum()
    bounds = [0]
    for k, cut in enumerate(np.searchsorted(np.cumsum(work) - work / 2, targets), start=1):
        bounds.append(int(np.clip(cut, bounds[-1] + 1, layers - (nodes - k))))
    return [*bounds, layers]


def _stages(bounds: list[int], level: int | None) -> tuple[Stage, ...]:
    last = len(bounds) - 2
    return tuple(
        Stage(node, bounds[node], bounds[node + 1], None if node == last else level) for node in range(last + 1)
    )
