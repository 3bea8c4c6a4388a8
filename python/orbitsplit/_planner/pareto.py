"""The Pareto front of delay against the loss budget, or against the memory of the nodes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import check_choice, check_kind, check_number

from .problem import Problem, evaluate
from .solve import Solution, SolveKeywords, SolveOptions, solve_options
from .tied_weights import TiedBytes, check_tied_bytes, solve_with_tied_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

Over = Literal["loss_budget", "memory"]

# The next limit lies below the last plan's by this part of it: more than the tolerance of a loss budget (1e-9).
_CLOSEST = 4e-9
# Objectives closer than this, relatively, are the same: the solver's own rounding.
_SAME_OBJECTIVE = 1e-11


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """The best plan within a limit, and the smallest limit within which it is possible.

    Attributes:
        limit: A loss budget, or the factor on the memory of every node (headroom stays as it is).
        solution: The plan.
    """

    limit: float
    solution: Solution


@dataclass(frozen=True, kw_only=True)
class ParetoFront:
    """Plans in order of growing limits and shrinking delays; none is dominated by another.

    Attributes:
        over: The limit: "loss_budget", or "memory" of all nodes.
        points: The plans.
        is_complete: False if a limit of the search was reached before the smallest limit: plans at the tight end of the
            front are missing.
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
                    "stages": [stage.to_dict() for stage in point.solution.stages],
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
        return "\n".join(
            lines if self.is_complete else ["(incomplete: the search ended before the smallest limits)", *lines]
        )


def pareto(
    problem: Problem,
    over: Over = "loss_budget",
    *,
    resolution: float = 0.0,
    tied_bytes: TiedBytes = 0,
    options: SolveOptions | None = None,
    **keywords: Unpack[SolveKeywords],
) -> ParetoFront:
    """Find the exact Pareto front of delay against the loss budget, or against the memory of the nodes.

    Starting without a limit, each search is limited to less than the last plan needs (the epsilon-constraint method):
    one search for each point of the front, not for each point of a grid. Limits closer than one part in 10^8 count as
    one.

    Args:
        problem: The problem. Its own limit of the kind `over` is ignored, all others hold.
        over: The limit that is tightened: "loss_budget" or "memory".
        resolution: Points are left out that are closer than this part of the limit to the last one, 0 to below 1.
        tied_bytes: Bytes of weights that the first and the last layer share; with weight levels a number for each.
        options: As for `solve`, and so are the keywords. `time_limit_s` is that of all searches together; `gap` must be
            0, because every point is proven.

    Raises:
        ValueError: `over`, `resolution` or an option is out of range.
        TypeError: An option has another type.

    >>> front = pareto(Problem.load("problem.json"), over="memory")                    # doctest: +SKIP
    >>> [(point.limit, point.solution.objective_s) for point in front.points]           # doctest: +SKIP
    """
    check_kind("problem", problem, Problem)
    check_tied_bytes(problem, tied_bytes)
    check_number("resolution", resolution)
    options = solve_options("pareto", options, {**keywords})
    if options.gap > 0:
        raise ValueError(f"gap is {options.gap:g}, must be 0: every point of a Pareto front is proven")
    check_choice("over", over, ("loss_budget", "memory"))
    if not 0 <= resolution < 1:
        raise ValueError(f"resolution is {resolution}, must be at least 0 and below 1")
    limited, limit_of = (_with_budget, _loss) if over == "loss_budget" else (_with_scale, _scale)
    deadline = math.inf if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    points: list[ParetoPoint] = []
    limit = math.inf
    while True:
        left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        confirming, solution = solve_with_tied_weights(
            limited(problem, limit), tied_bytes, options=replace(options, time_limit_s=left_s)
        )
        if solution.status == "infeasible":
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=True)
        if solution.status != "optimal" or solution.objective_s is None:
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=False)
        if points and solution.objective_s <= (points[-1].solution.objective_s or 0.0) * (1 + _SAME_OBJECTIVE):
            points.pop()  # as fast within a smaller limit
        needed = limit_of(problem, confirming, solution)
        points.append(ParetoPoint(limit=needed, solution=solution))
        if needed == 0:
            return ParetoFront(over=over, points=tuple(reversed(points)), is_complete=True)
        limit = needed * (1 - max(resolution, _CLOSEST))


def _with_budget(problem: Problem, budget: float) -> Problem:
    return replace(problem, loss_budget=budget)


def _loss(problem: Problem, confirming: Problem, solution: Solution) -> float:
    assert solution.loss is not None
    return solution.loss


def _with_scale(problem: Problem, scale: float) -> Problem:
    """Return the problem with `scale` times the memory on every node; infinite: room for everything."""
    everything = 2 * float(problem.layer_memory_bytes.sum())
    nodes = []
    for node in problem.nodes:
        memory = node.memory_bytes
        if memory > 0:  # no factor helps a node without memory
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
