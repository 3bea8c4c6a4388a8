"""The front of delay against a limit: every plan worth having as the loss budget or the memory shrinks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from orbitsplit._io.units import format_seconds

from .level_table import lifted_budget
from .problem import Problem, Solution, evaluate
from .tied_weights import solve_with_one_copy

Over = Literal["loss_budget", "memory"]

# The next limit lies below the last plan's by this part of it: more than the tolerance of a loss budget (1e-9).
_CLOSEST = 4e-9
# Objectives closer than this, relatively, are the same: the solver's own rounding.
_SAME_OBJECTIVE = 1e-11


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """The best plan within a limit, and the smallest limit that it keeps.

    `limit` is a loss budget, or how many times the memory of every node there is (headroom stays as it is).
    """

    limit: float
    solution: Solution


@dataclass(frozen=True, kw_only=True)
class ParetoFront:
    """Plans in order of growing limits and shrinking delays; none is as good as another in both.

    `is_complete` is false where the time was over before the smallest limit was reached: tighter plans are missing.
    """

    over: Over
    points: tuple[ParetoPoint, ...]
    is_complete: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the front as JSON-ready data."""
        return {
            "over": self.over,
            "is_complete": self.is_complete,
            "points": [
                {
                    "limit": point.limit,
                    "objective_s": point.solution.objective_s,
                    "loss": point.solution.loss,
                    "stages": [stage._asdict() for stage in point.solution.stages],
                }
                for point in self.points
            ],
        }

    def __str__(self) -> str:
        name, unit = ("loss", "") if self.over == "loss_budget" else ("memory", "x")
        lines = [
            f"{name} {point.limit:.6g}{unit}: {format_seconds(point.solution.objective_s or 0.0)}, "
            f"{len(point.solution.stages)} stages"
            for point in self.points
        ]
        return "\n".join(lines if self.is_complete else ["(tighter plans are missing: out of time)", *lines])


def pareto(
    problem: Problem,
    over: Over = "loss_budget",
    *,
    resolution: float = 0.0,
    objective: str = "latency",
    max_nodes: int | None = None,
    tied_bytes: float = 0,
    time_limit_s: float | None = None,
) -> ParetoFront:
    """Find the exact front of delay against the loss budget, or against the memory of the nodes.

    From no limit at all, each next search asks for less than the last plan needs, so that there is one search for
    each point of the front, not one for each point of a grid. Limits closer than one part in 10^8 count as one;
    `resolution` leaves out points that are closer than that part of the limit to the last. Limits of the other kind
    stay as they are in the problem; the limit in question is not read. `objective` and `max_nodes` as in `solve`,
    `tied_bytes` as in `certificate`.

    >>> front = pareto(Problem.load("problem.json"), over="memory")                    # doctest: +SKIP
    >>> [(point.limit, point.solution.objective_s) for point in front.points]           # doctest: +SKIP

    Raises ValueError.
    """
    if over not in ("loss_budget", "memory"):
        raise ValueError(f'over is {over!r}, must be "loss_budget" or "memory"')
    if not 0 <= resolution < 1:
        raise ValueError(f"resolution is {resolution}, must be at least 0 and below 1")
    limited, limit_of = (_with_budget, _loss) if over == "loss_budget" else (_with_scale, _scale)
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    points: list[ParetoPoint] = []
    limit = math.inf
    while True:
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        confirming, solution = solve_with_one_copy(
            limited(problem, limit), tied_bytes, objective=objective, max_nodes=max_nodes, time_limit_s=left
        )
        if solution.status == "infeasible":
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=True)
        if solution.status != "optimal" or solution.objective_s is None:
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=False)
        if points and solution.objective_s <= (points[-1].solution.objective_s or 0.0) * (1 + _SAME_OBJECTIVE):
            points.pop()  # as quick with less
        needed = limit_of(problem, confirming, solution)
        points.append(ParetoPoint(limit=needed, solution=solution))
        if needed == 0:
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=True)
        limit = needed * (1 - max(resolution, _CLOSEST))


def _with_budget(problem: Problem, budget: float) -> Problem:
    return replace(problem, loss_budget=lifted_budget(problem.loss) if math.isinf(budget) else budget)


def _loss(problem: Problem, confirming: Problem, solution: Solution) -> float:
    assert solution.loss is not None
    return solution.loss


def _with_scale(problem: Problem, scale: float) -> Problem:
    """Return the problem with `scale` times the memory on every node; infinite: room for everything."""
    everything = 2 * float(problem.layer_memory_bytes.sum())
    nodes = []
    for node in problem.nodes:
        memory = node.memory_bytes
        if memory > 0:  # no scale makes anything of nothing
            memory = node.headroom_bytes + everything if math.isinf(scale) else memory * scale
        nodes.append(replace(node, memory_bytes=max(memory, node.headroom_bytes)))
    return replace(problem, nodes=tuple(nodes))


def _scale(problem: Problem, confirming: Problem, solution: Solution) -> float:
    """Return the smallest scale of memory at which the plan fits."""
    needs = evaluate(confirming, solution).stage_memory_bytes
    most = 0.0
    for stage, need in zip(solution.stages, needs, strict=True):
        node = problem.nodes[stage.node]
        if need > 0:
            most = max(most, _least_scale(node.memory_bytes, node.headroom_bytes, need))
    return most


def _least_scale(memory: float, headroom: float, need: float) -> float:
    scale = (need + headroom) / memory
    while memory * scale - headroom < need:  # rounded down
        scale = float(np.nextafter(scale, math.inf))
    return scale
