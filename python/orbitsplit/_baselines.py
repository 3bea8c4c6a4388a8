"""What people do instead of searching: splits by rule, to be scored by `evaluate` beside a plan.

Each function returns stages; whether they fit a node's memory or the loss budget is for `evaluate` to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ._problem import Problem, Stage, evaluate, solve


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
class Alternative:
    """A way to run the model: the seconds it would take, and which limits it breaks (empty: none).

    `total_s` is None where no time can be given: there is no such plan, or a link it needs does not exist.
    """

    name: str
    total_s: float | None
    breaks: str


def alternatives(problem: Problem, *, tied_bytes: int = 0) -> tuple[Alternative, ...]:
    """Score what people do instead of planning; what breaks a limit is scored as if it did not.

    These are the best plan without compression, the two splits by rule, and everything on one node, which holds
    one copy of the `tied_bytes` that embeddings and head share.
    """
    alone = with_one_copy(problem, tied_bytes)
    whole = len(problem.layers)
    return (
        _uncompressed(problem),
        _alternative(problem, "uniform", uniform(problem)),
        _alternative(problem, "proportional to speed", proportional(problem)),
        *(_alternative(alone, f"all on {node.name}", (Stage(k, 0, whole),)) for k, node in enumerate(problem.nodes)),
    )


def with_one_copy(problem: Problem, tied_bytes: int) -> Problem:
    """Return the problem with weights that its first and last layers share counted once.

    A problem counts them in both, which is right for every plan but those of one stage.
    """
    memory = problem.layer_memory_bytes.copy()
    memory[-1] -= tied_bytes
    return replace(problem, layer_memory_bytes=memory)


def _alternative(problem: Problem, name: str, stages: Sequence[Stage]) -> Alternative:
    result = evaluate(problem, stages)
    total_s = result.objective_s if math.isfinite(result.objective_s) else None
    return Alternative(name, total_s, "; ".join(result.violations))


def _uncompressed(problem: Problem) -> Alternative:
    """Return the best plan without compression: with the levels of ratio 1, or none where there are none."""
    raw = [k for k, level in enumerate(problem.levels) if level.ratio == 1]
    bare = replace(problem, levels=tuple(problem.levels[k] for k in raw), loss=problem.loss[:, raw])
    best = solve(bare)
    if not best.stages:
        return Alternative("best without compression", None, best.reason or "")
    return _alternative(bare, "best without compression", best.stages)


def _with_best_level(
    problem: Problem, work: npt.NDArray[np.float64], share: npt.NDArray[np.float64]
) -> tuple[Stage, ...]:
    """Return the split whose single level is cheapest within the loss budget, else the one that loses least."""
    bounds = _bounds(work, share)
    if len(bounds) == 2:
        return _stages(bounds, None)
    if not problem.levels:
        raise ValueError("the problem has no levels, so it cannot be cut: give it one of ratio 1")
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
