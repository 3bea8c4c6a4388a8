"""Pareto fronts: of delay against a limit, and of the time of a token against the throughput of all sequences."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, overload

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import check_choice, check_kind, check_number
from orbitsplit._network.network import Network
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.objective import value_s
from orbitsplit._planner.pareto import ParetoFront
from orbitsplit._planner.pareto import pareto as pareto_of_problem
from orbitsplit._planner.problem import Problem, evaluate
from orbitsplit._planner.solve import SolveKeywords, SolveOptions, solve_options
from orbitsplit._planner.tied_weights import TiedBytes, with_tied_weights
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import has_rows
from orbitsplit._profiling.workload import Workload

from .drafts import DraftTokens, drafts_to_try
from .pins import LayerPins
from .plan import Plan
from .plan_names import PlanNames
from .plan_of_solution import plan_of
from .planning import levels_and_budget
from .problem_building import Order, build_problem
from .settings import Choice, Setting, has_enough, solve_setting
from .weight_options import Weights, check_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

Over = Literal["loss_budget", "memory", "latency"]
_OBJECTIVE = "time_per_token"
# Steps closer than this, relatively, are the same: the solver's own rounding.
_SAME = 1e-11


@dataclass(frozen=True, kw_only=True)
class LatencyPoint:
    """A plan, the seconds between two tokens of each of its sequences, and the tokens of all of them together.

    Attributes:
        time_per_token_s: Seconds from one token of a sequence to its next, on average.
        tokens_per_s: Tokens per second of all sequences of `plan.workload`.
        plan: The plan, with so many micro-batches and rows in flight.
    """

    time_per_token_s: float
    tokens_per_s: float
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class LatencyFront:
    """Plans in order of growing throughput and of growing time per token; none is dominated by another.

    Attributes:
        points: The plans.
        is_complete: False if a limit of the search was reached: there may be better plans.
    """

    points: tuple[LatencyPoint, ...]
    is_complete: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the front as JSON-ready data."""
        points = [
            {
                "time_per_token_s": point.time_per_token_s,
                "tokens_per_s": point.tokens_per_s,
                "plan": point.plan.to_dict(),
            }
            for point in self.points
        ]
        return {"over": "latency", "is_complete": self.is_complete, "points": points}

    def __str__(self) -> str:
        lines = []
        for point in self.points:
            workload, guesses = point.plan.workload, point.plan.draft_tokens
            drafts = "" if guesses is None else f", {guesses} guesses"
            lines.append(
                f"{format_seconds(point.time_per_token_s)} per token, {point.tokens_per_s:.4g} tokens/s: "
                f"{workload.micro_batches} x {workload.batch_size}{drafts}, {len(point.plan.stages)} stages"
            )
        return "\n".join(lines if self.is_complete else ["(incomplete: a search was ended by its limits)", *lines])


class FrontKeywords(SolveKeywords, total=False):
    """What `plan` takes too, and the fields of `SolveOptions`, as keywords."""

    levels: LevelTable | None
    codebook: Codebook | None
    loss_budget: float
    max_accuracy_drop: float | None
    order: Order
    pins: LayerPins | None
    weights: Weights | None
    draft_tokens: DraftTokens


@overload
def pareto(
    problem: Problem,
    over: Literal["loss_budget", "memory"] = "loss_budget",
    *,
    resolution: float = 0.0,
    tied_bytes: TiedBytes = 0,
    options: SolveOptions | None = None,
    **keywords: Unpack[SolveKeywords],
) -> ParetoFront: ...


@overload
def pareto(
    problem: ModelProfile,
    over: Literal["latency"],
    *,
    network: Network,
    workload: Workload,
    resolution: float = 0.0,
    options: SolveOptions | None = None,
    **keywords: Unpack[FrontKeywords],
) -> LatencyFront: ...


def pareto(
    problem: Problem | ModelProfile,
    over: Over = "loss_budget",
    *,
    network: Network | None = None,
    workload: Workload | None = None,
    resolution: float = 0.0,
    tied_bytes: TiedBytes = 0,
    options: SolveOptions | None = None,
    **keywords: Any,
) -> ParetoFront | LatencyFront:
    """Find an exact Pareto front: of delay against the loss budget or memory, or of time per token against throughput.

    - Delay of a `problem`, over its loss budget or the memory of all nodes: starting without a limit, each search is
      limited to less than the last plan needs (the epsilon-constraint method), so that there is one search for each
      point of the front. Limits closer than one part in 10^8 count as one.
    - Over "latency", of a profile as for `plan`: the time of a token of each sequence against the tokens per second of
      all sequences in flight, over all numbers of micro-batches and rows that the workload has sequences for, and of
      guesses. Fewer sequences at a time have their tokens sooner. Prompts are whole, since no token step has chunks.

    Args:
        problem: The problem; its own limit of the kind `over` is ignored, all others hold. Over "latency" a profile.
        over: "loss_budget" or "memory" is the limit that is tightened; or "latency".
        network: Nodes and links, over "latency" alone.
        workload: The most sequences that are in flight, over "latency" alone: of `sequences` how they are divided is
            decided. It has 2 new tokens or more.
        resolution: Points are left out that are closer than this part of the limit, or of the tokens per second, to the
            last one, 0 to below 1.
        tied_bytes: Bytes of weights that the first and the last layer share; with weight levels a number for each. Over
            "latency" they are the profile's.
        options: As for `solve`, and so are the keywords. `time_limit_s` is that of all searches together; `gap` must be
            0, because every point is proven. Over "latency" the objective is the time per token, and the keywords
            `levels`, `codebook`, `loss_budget`, `max_accuracy_drop`, `order`, `pins`, `weights` and `draft_tokens` are
            those of `plan`.

    Raises:
        ValueError: `over`, `resolution` or an option is out of range, or what is given does not match.
        TypeError: An option has another type, or is not of this kind of front.

    >>> front = pareto(Problem.load("problem.json"), over="memory")                    # doctest: +SKIP
    >>> [(point.limit, point.solution.objective_s) for point in front.points]           # doctest: +SKIP
    >>> front = pareto(profile, over="latency", network=network, workload=workload)     # doctest: +SKIP
    >>> [(point.time_per_token_s, point.tokens_per_s) for point in front.points]        # doctest: +SKIP
    """
    check_choice("over", over, ("loss_budget", "memory", "latency"))
    if over != "latency":
        check_kind("problem", problem, Problem)
        for name, value in (("network", network), ("workload", workload)):
            if value is not None:
                raise TypeError(f'pareto() got {name}=, which is for over="latency" alone')
        return pareto_of_problem(
            problem,  # type: ignore[arg-type]
            over,
            resolution=resolution,
            tied_bytes=tied_bytes,
            options=options,
            **keywords,
        )
    if isinstance(problem, Problem):
        raise ValueError("over is 'latency', which divides sequences into rows: give a profile in place of a problem")
    check_kind("problem", problem, ModelProfile)
    check_kind("network", network, Network)
    check_kind("workload", workload, Workload)
    assert isinstance(problem, ModelProfile)
    assert network is not None
    assert workload is not None
    check_number("resolution", resolution)
    if not 0 <= resolution < 1:
        raise ValueError(f"resolution is {resolution}, must be at least 0 and below 1")
    if workload.arrivals_per_s is not None:
        raise ValueError(
            f"the workload has arrivals_per_s {workload.arrivals_per_s:g}, and this front is over how many sequences "
            f"are in flight, which a rate decides: give a workload without it"
        )
    if workload.new_tokens < 2:
        raise ValueError(f"the workload has {workload.new_tokens} new tokens, the time of a token needs at least 2")
    return _latency_front(problem, network, workload, resolution, options, keywords)


def _latency_front(
    profile: ModelProfile,
    network: Network,
    workload: Workload,
    resolution: float,
    options: SolveOptions | None,
    keywords: dict[str, Any],
) -> LatencyFront:
    given = {name: keywords.pop(name) for name in FrontKeywords.__annotations__ if name in keywords}
    searching = {name: given.pop(name) for name in SolveKeywords.__annotations__ if name in given}
    options = replace(solve_options("pareto", options, {**keywords, **searching}), objective=_OBJECTIVE)
    if options.gap > 0:
        raise ValueError(f"gap is {options.gap:g}, must be 0: every point of a Pareto front is proven")
    drafts = given.pop("draft_tokens", "auto")
    codebook, drop = given.pop("codebook", None), given.pop("max_accuracy_drop", None)
    levels, budget = levels_and_budget(
        profile, given.pop("levels", None), codebook, given.pop("loss_budget", 0.0), drop
    )
    weights = check_weights(profile, given.pop("weights", None))
    named = PlanNames(network, workload, profile, _OBJECTIVE, codebook, drop, weights)
    search = _Search(named, {**given, "levels": levels, "loss_budget": budget, "weights": weights}, drafts, options)
    choices = list(search.run())
    is_complete = all(choice.solution.status == "optimal" for choice in choices) and not search.is_stopped
    points = _undominated([_Point.of(choice) for choice in choices], resolution)
    return LatencyFront(
        points=tuple(
            LatencyPoint(
                time_per_token_s=point.time_s,
                tokens_per_s=point.tokens_per_s,
                plan=plan_of(point.choice.confirming, point.choice.solution, named.chosen(point.choice)),
            )
            for point in points
        ),
        is_complete=is_complete,
    )


@dataclass(frozen=True)
class _Point:
    time_s: float
    tokens_per_s: float
    choice: Choice

    @classmethod
    def of(cls, choice: Choice) -> _Point:
        time_s, setting = choice.solution.objective_s, choice.setting
        assert time_s is not None
        sequences = setting.micro_batches * setting.batch_size
        return cls(time_s, sequences / time_s if time_s > 0 else math.inf, choice)


def _undominated(points: Sequence[_Point], resolution: float) -> list[_Point]:
    """Return the points of the front, the least time first; of equal ones the first with the most tokens."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.time_s, -point.tokens_per_s)):
        if not front or point.tokens_per_s > front[-1].tokens_per_s * (1 + max(resolution, _SAME)):
            front.append(point)
    return front


@dataclass
class _Search:
    """The best plans of all numbers of micro-batches, rows and guesses that a workload has sequences for."""

    named: PlanNames
    building: dict[str, Any]
    drafts: DraftTokens
    options: SolveOptions
    is_stopped: bool = False
    _ends_s: float = field(init=False)

    def __post_init__(self) -> None:
        limit_s = self.options.time_limit_s
        self._ends_s = math.inf if limit_s is None else time.monotonic() + limit_s

    def run(self) -> Iterator[Choice]:
        """Yield the best plan of each setting that has one."""
        sequences, profiles = self.named.workload.sequences, self.named.profiles
        for rows in range(1, sequences + 1):
            if not all(has_rows(profile, rows) for profile in profiles):
                continue
            one = replace(self.named.workload, micro_batches=1, batch_size=rows)
            for guesses in drafts_to_try(profiles, one, self.drafts, _OBJECTIVE):
                yield from self._with_more_groups(rows, guesses)

    def _with_more_groups(self, rows: int, guesses: int | None) -> Iterator[Choice]:
        """Yield the best plans of more and more micro-batches, which need no less time and no less memory."""
        best: Choice | None = None
        for groups in range(1, self.named.workload.sequences // rows + 1):
            under_way = self.named.first_prompts_under_way(groups)
            setting = Setting(groups, rows, draft_tokens=guesses, prompts_under_way=under_way)
            problem = self._problem(setting)
            kept = None if best is None else self._kept(best, setting, problem)
            choice = kept or self._solved(setting, best)
            if choice.solution.status == "infeasible":
                return
            if choice.solution.objective_s is None:
                self.is_stopped = True
                return
            yield choice
            best = choice

    def _problem(self, setting: Setting) -> Problem:
        return build_problem(
            self.named.profile,
            self.named.network,
            self.named.workload_of(setting),
            draft_tokens=setting.draft_tokens,
            prompts_under_way=setting.prompts_under_way,
            **self.building,
        )

    def _kept(self, before: Choice, setting: Setting, problem: Problem) -> Choice | None:
        """Return the plan for fewer groups if it is as good for more of them: then none is better."""
        stages, time_s = before.solution.stages, before.solution.objective_s
        confirming = with_tied_weights(problem, self.named.tied_bytes) if len(stages) == 1 else problem
        score = evaluate(confirming, stages)
        if not score.is_feasible or time_s is None or value_s(score, _OBJECTIVE) > time_s * (1 + _SAME):
            return None
        if not has_enough(setting, problem, score):
            return None
        return Choice(setting, problem, confirming, before.solution)

    def _solved(self, setting: Setting, before: Choice | None) -> Choice:
        left_s = None if self._ends_s == math.inf else max(0.0, self._ends_s - time.monotonic())
        options = replace(self.options, time_limit_s=left_s)
        incumbent = () if before is None else before.solution.stages
        return solve_setting(self._problem, setting, self.named.tied_bytes, options, incumbent)
