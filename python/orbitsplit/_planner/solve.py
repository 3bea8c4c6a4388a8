"""The exact search for the best plan of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from orbitsplit._backend import backend
from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.validation import LARGEST_BYTES, check_count, check_kind, check_number, check_string

from .objective import check_objective
from .problem import Problem, prepared, stage_rows
from .problem_parts import NO_LEVEL, HasStages, Stage

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Free order: size of the ng-set, the nodes that the planner's bounds keep from repeating; each may double their work.
MAX_NG_SIZE = 16
# Free order of more nodes eliminates k-cycles instead of keeping visited sets.
MAX_BITSET_NODES = 64
# Of the core's thread pool.
MOST_THREADS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveOptions:
    """What a search minimises, and when it ends.

    `solve`, `plan`, `replan`, `certificate` and `pareto` take such an object as `options`, or its fields as keywords.

    Attributes:
        objective: "latency" minimises the `objective_s` of an `Evaluation`, "throughput" its `bottleneck_s`,
            "time_to_first_token" its `prefill_s`, and "time_per_token" its `token_step_s`, which needs new tokens;
            "throughput" and "time_per_token" by the tokens that a step gives.
        max_nodes: A plan has at most this many stages, each on a node of its own; None: no limit.
        gap: A plan that is proven to be within this relative distance of the optimum is good enough, 0 to below 1.
            A small gap may be much faster to prove than optimality.
        time_limit_s: The search ends after this many seconds with the best plan so far; None: no limit.
        max_labels: The search ends when it keeps more partial plans than this.
        max_bytes: The search ends when partial plans and bounds together take more memory than this. The tables of the
            problem and the first bounds come on top, and the Numba backend may take twice as much.
        threads: Threads for the bounds of free order, 1 to 256. They change how long a search takes, not what it
            returns; the Numba backend uses one.

    Raises:
        ValueError: A number is out of range, or there is no such objective.
        TypeError: A field has another type.

    Example:
        >>> SolveOptions(objective="throughput", max_nodes=4).gap
        0.0
    """

    objective: str = "latency"
    max_nodes: int | None = None
    gap: float = 0.0
    time_limit_s: float | None = None
    max_labels: int = 5_000_000
    max_bytes: int = 2_000_000_000
    threads: int = 1

    def __post_init__(self) -> None:
        check_string("objective", self.objective)
        check_objective(self.objective)
        if self.max_nodes is not None:
            check_count("max_nodes", self.max_nodes, 1)
        check_number("gap", self.gap)
        if not 0 <= self.gap < 1:
            raise ValueError(f"gap is {self.gap:g}, must be at least 0 and below 1")
        if self.time_limit_s is not None:
            check_number("time_limit_s", self.time_limit_s)
            if not self.time_limit_s >= 0:
                raise ValueError(f"time_limit_s is {self.time_limit_s:g}, must be at least 0")
        check_count("max_labels", self.max_labels, 1)
        check_count("max_bytes", self.max_bytes, 1, most=LARGEST_BYTES)
        check_count("threads", self.threads, 1, most=MOST_THREADS)


class SolveKeywords(TypedDict, total=False):
    """The fields of `SolveOptions` as keywords."""

    objective: str
    max_nodes: int | None
    gap: float
    time_limit_s: float | None
    max_labels: int
    max_bytes: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best plan that was found, and how good it is proven to be.

    Attributes:
        status: "optimal"; "feasible" (a limit or the allowed gap was reached); "infeasible" (proven: there is no plan);
            or "unknown" (a limit was reached before any plan was found).
        objective_s: Seconds of the objective, as `evaluate` gives them; None without a plan.
        lower_bound_s: No plan takes fewer seconds; None if infeasible.
        gap: (objective - lower bound) / objective; None without a plan.
        seconds: How long the search took.
        loss: The sum of the losses at the cuts, and of the weights if there are weight levels; None without a plan.
        stages: The plan, in order of the layers; empty without one.
        reason: Why the problem is infeasible, or which limit ended the search; None if optimal.
        labels: How many partial plans the search kept.
    """

    status: Literal["optimal", "feasible", "infeasible", "unknown"]
    objective_s: float | None
    lower_bound_s: float | None
    gap: float | None
    seconds: float
    loss: float | None
    stages: tuple[Stage, ...]
    reason: str | None
    labels: int


def solve(
    problem: Problem,
    *,
    options: SolveOptions | None = None,
    incumbent: Sequence[Stage] | HasStages = (),
    **keywords: Unpack[SolveKeywords],
) -> Solution:
    """Find the plan of smallest objective that respects memory, links, pins and loss budget, and prove it.

    Free order of more than 64 nodes needs few links for each node, as in a constellation, and is faster with
    `max_nodes`.

    Args:
        problem: The problem.
        options: Objective and limits of the search. The fields of `SolveOptions` are also accepted as keywords.
        incumbent: A plan to start from, such as the one that runs: a sequence of stages, or anything that has one as
            `.stages`. It saves time and is ignored if it violates a limit. It does not change what is proven, only
            which of several equally good plans is returned.

    Raises:
        ValueError: An option is out of range, the problem cannot have the objective (time per token without new
            tokens), or free order has too many layers times links.
        TypeError: An option has another type, or `incumbent` is not a plan.

    >>> solution = solve(Problem.load("problem.json"))       # doctest: +SKIP
    >>> solution.status, solution.objective_s                # doctest: +SKIP
    ('optimal', 0.21770332794428698)
    """
    check_kind("problem", problem, Problem)
    options = solve_options("solve", options, {**keywords})
    limit_s = float("inf") if options.time_limit_s is None else float(options.time_limit_s)
    limits = options.max_nodes, float(options.gap), limit_s, options.max_labels, options.max_bytes, options.threads
    rows = stage_rows(_stages_of(incumbent))
    found = backend().solve(prepared(problem), options.objective, *limits, rows, MAX_NG_SIZE, MAX_BITSET_NODES)
    stages = tuple(_stage_of(row) for row in found.pop("stages"))
    if not stages:
        found |= {"objective_s": None, "gap": None, "loss": None}
    if found["status"] == "infeasible":
        found["lower_bound_s"] = None
    return Solution(**{**found, "stages": stages, "reason": found["reason"] or None})


def _stage_of(row: Sequence[int]) -> Stage:
    """Return the stage of a backend's row, as `stage_rows` makes them."""
    node, start, stop, *levels = row
    return Stage(node, start, stop, *(None if level == NO_LEVEL else level for level in levels))


def solve_options(function: str, options: SolveOptions | None, keywords: dict[str, Any]) -> SolveOptions:
    """Return the options of a function that takes them as an object or as keywords, and nothing else.

    Raises TypeError naming `function` for both at once, and for an unknown keyword.
    """
    taken = take_options(function, "options", SolveOptions, options, keywords)
    refuse_keywords(function, keywords)
    return taken


def _stages_of(plan: Sequence[Stage] | HasStages) -> Sequence[Stage]:
    stages: Any = plan if isinstance(plan, Sequence) else getattr(plan, "stages", None)
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise TypeError(f"incumbent is a {type(plan).__name__}, it must be stages or have them, as a Solution has")
    return stages
