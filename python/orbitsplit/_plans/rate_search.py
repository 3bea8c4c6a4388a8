"""The best plan for requests that arrive at a rate, over all settings, and a bound that no plan is below."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.validation import quoted
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.solve import Solution, SolveOptions
from orbitsplit._planner.tied_weights import solve_with_tied_weights

from .arrivals import Demand, SteadyState, bottleneck, capacity_per_s, mean_in_flight, steady_state
from .rate_problems import RateProblems
from .settings import Choice, Setting

# A bound that rises by less than this part is not raised further.
_RISE = 1e-4
# Batches of so many times the requests in flight still have plans that may be best.
_MORE = 4
# Below this part of the time, the busiest resource is not what limits the rate.
_BUSY = 0.95
_ROUNDING = 1e-9


def check_rate_objective(objective: str) -> None:
    """Raise ValueError for the objective that a rate leaves no choice of."""
    if objective == "throughput":
        raise ValueError(
            "objective is throughput, and the workload has arrivals_per_s: whatever the plan, as many requests end as "
            "arrive; plan for latency, time_to_first_token or time_per_token"
        )


@dataclass(frozen=True)
class _Candidate:
    """A plan of a setting in steady state, None where it does not sustain the rate."""

    stages: tuple[Stage, ...]
    demand: Demand
    prompts_under_way: int | None
    state: SteadyState | None


def solve_at_rate(
    problems_of: Callable[[Setting], RateProblems],
    settings: Sequence[Setting],
    per_s: float,
    options: SolveOptions,
) -> Choice:
    """Return the plan of the smallest objective that was found, and the bound over all settings.

    In each setting the problems of k requests at once are solved exactly, for k = 1, 2, 3, 4, 6, 8, ...: their plans
    are the candidates, and their bounds make the bound of the mean. A setting whose bound exceeds the best plan so far
    is left. Where no plan is found, the answer is that of the first setting that may have one, or of the first one.

    Raises:
        InfeasiblePlanError: There are plans, and none sustains the rate.
    """
    ends_s = math.inf if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    searches: list[_Search] = []
    best: _Search | None = None
    for number, setting in enumerate(settings):
        search = _Search(problems_of(setting), per_s, options, ends_s, len(settings) - number)
        search.run(math.inf if best is None else best.value_s)
        searches.append(search)
        if search.value_s < (math.inf if best is None else best.value_s):
            best = search
    if best is None:
        plans = [search for search in searches if search.candidates]
        if plans:
            raise InfeasiblePlanError(_overloaded(per_s, plans))
        undecided = (search for search in searches if not search.is_impossible)
        return next(undecided, searches[0]).first_choice()
    return best.choice(min(search.bound_s for search in searches), searches)


@dataclass
class _Search:
    """The candidates of a setting, and the bound of all its plans."""

    problems: RateProblems
    per_s: float
    options: SolveOptions
    ends_s: float
    settings_left: int
    candidates: dict[tuple[Stage, ...], _Candidate] = field(default_factory=dict)
    best: _Candidate | None = None
    value_s: float = math.inf
    bound_s: float = 0.0
    seconds: float = 0.0
    labels: int = 0
    first: tuple[Problem, Solution] | None = None
    _least_s: dict[int, float] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Whether requests have token steps."""
        return self.problems.batch(1).new_tokens > 1

    @property
    def most(self) -> int:
        """How many requests may be in flight."""
        return self.problems.most_in_flight

    def run(self, known_s: float) -> None:
        """Solve batches of more and more requests until the bound is as high as it gets, or above `known_s`."""
        if not self._solve(self.most, "latency"):
            self.bound_s = math.inf
            return
        if not self.generates:
            self._solve(1, "throughput")
        if self.options.objective != "latency":
            self._solve(1, self.options.objective)
        before_s = 0.0
        for in_flight in _numbers(self.most):
            self._solve(in_flight, "latency")
            self._raise_bound()
            if self.bound_s >= min(known_s, self.value_s) * (1 - max(self.options.gap, _ROUNDING)):
                break
            if in_flight > self._enough() and self.bound_s <= before_s * (1 + _RISE):
                break
            before_s = self.bound_s
        if self.bound_s > self.value_s * (1 + _ROUNDING):
            # Of this profile steps of more rows take less than those of fewer, so nothing is known of all plans.
            self.bound_s = 0.0

    def _enough(self) -> float:
        """Return how many requests at once have the plans that may be best."""
        if self.best is None or self.best.state is None:
            return math.inf
        in_flight = self.best.state.in_flight
        # Where the bound does not rise with them, it does not say when to end.
        return in_flight if self.generates and self.options.objective == "latency" else _MORE * (1 + in_flight)

    def _solve(self, in_flight: int, objective: str) -> bool:
        """Solve the problem of so many requests at once; return whether it has a plan."""
        problem = self.problems.batch(in_flight)
        limit_s = None
        if self.ends_s < math.inf:
            limit_s = max(0.0, self.ends_s - time.monotonic()) / (2 * self.settings_left)
        options = replace(self.options, objective=objective, time_limit_s=limit_s)
        incumbent = self.best.stages if self.best is not None else next(iter(self.candidates), ())
        confirming, solution = solve_with_tied_weights(
            problem, self.problems.tied_bytes, options=options, incumbent=incumbent
        )
        self.first = self.first or (confirming, solution)
        self.seconds += solution.seconds
        self.labels += solution.labels
        if solution.status == "infeasible":
            return False
        least_s = solution.lower_bound_s or 0.0
        if objective == "latency":
            self._least_s[in_flight] = least_s
        elif objective == self.options.objective:
            self.bound_s = least_s
        if solution.stages and solution.stages not in self.candidates:
            self._add(solution.stages)
        return True

    def _add(self, stages: tuple[Stage, ...]) -> None:
        found = self.problems.demand(stages)
        if found is None:
            return
        candidate = _Candidate(stages, *found, steady_state(found[0], self.per_s))
        self.candidates[stages] = candidate
        if candidate.state is not None and (value_s := self._value_s(candidate.state)) < self.value_s:
            self.best, self.value_s = candidate, value_s

    def _value_s(self, state: SteadyState) -> float:
        """Return the seconds of the objective."""
        if self.options.objective == "latency":
            return state.request_s
        if self.options.objective == "time_to_first_token":
            return state.first_token_s
        steps = self.problems.batch(1).new_tokens - 1
        return (state.request_s - state.first_token_s) / steps

    def least_s(self, in_flight: int) -> float:
        """Return what no plan is below with so many requests in flight: no less than with fewer."""
        return max((least_s for k, least_s in self._least_s.items() if k <= in_flight), default=0.0)

    def _raise_bound(self) -> None:
        if self.options.objective != "latency":
            return
        if not self.generates:  # prompts wait in order: no bound on that is known
            self.bound_s = self.least_s(1)
        else:
            self.bound_s = sum(mean_in_flight(self.per_s, self.least_s, self.most)) / self.per_s

    @property
    def is_impossible(self) -> bool:
        """Whether the setting is proven to have no plan."""
        return self.first is not None and self.first[1].status == "infeasible"

    def first_choice(self) -> Choice:
        """Return the first answer of a setting of which no plan was found."""
        assert self.first is not None
        problem, solution = self.first
        return Choice(self.problems.setting, problem, problem, solution)

    def choice(self, bound_s: float, searches: Sequence[_Search]) -> Choice:
        """Return the best plan of this setting with the bound over all of them."""
        best, value_s = self.best, self.value_s
        assert best is not None
        assert best.state is not None
        bound_s = min(bound_s, value_s)  # above it by rounding at most
        gap = 1 - bound_s / value_s if value_s > 0 else 0.0
        is_proven = gap <= _ROUNDING
        setting = replace(self.problems.setting, prompts_under_way=best.prompts_under_way)
        confirming = self.problems.confirming(best.stages, best.state.in_flight, best.prompts_under_way)
        solution = Solution(
            status="optimal" if is_proven else "feasible",
            objective_s=value_s,
            lower_bound_s=bound_s,
            gap=0.0 if is_proven else gap,
            seconds=sum(search.seconds for search in searches),
            loss=None,
            stages=best.stages,
            reason=None if is_proven else "the bound leaves out for how long prompts and steps wait for each other",
            labels=sum(search.labels for search in searches),
        )
        found = tuple((one.problems.setting, one.value_s) for one in searches if one.value_s < math.inf)
        return Choice(setting, self.problems.batch(1), confirming, solution, found, best.state)


def _numbers(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12, ... below `most`."""
    yield from (k for k in (1, 2, 3) if k < most)
    power = 4
    while power < most:
        yield power
        if power * 3 // 2 < most:
            yield power * 3 // 2
        power *= 2


def _overloaded(per_s: float, searches: Sequence[_Search]) -> str:
    """Return the sentence on a rate that no plan sustains: the most that one was found to, and its bottleneck."""
    each = [(capacity_per_s(one.demand), one, search) for search in searches for one in search.candidates.values()]
    best_per_s, best, search = max(each, key=lambda entry: entry[0])
    most_per_s = max(one.most / one.least_s(one.most) if one.generates else 0.0 for one in searches)
    bound = (
        "" if most_per_s <= best_per_s * (1 + 1e-6) else f", and none sustains more than {most_per_s:.3g} per second"
    )
    return (
        f"requests arrive at {per_s:.3g} per second, the best plan found sustains {best_per_s:.3g} per second{bound}; "
        f"{_limit(best, best_per_s, search)}"
    )


def _limit(best: _Candidate, per_s: float, search: _Search) -> str:
    demand, names = best.demand, [search.problems.batch(1).nodes[stage.node].name for stage in best.stages]
    index = bottleneck(demand)
    used_s = demand.prompt_s[index]
    if demand.steps:
        used_s += demand.steps * demand.step_of(demand.most_in_flight).occupancies_s[index] / demand.rows
    if per_s * used_s < _BUSY:
        return (
            f"the limit is that at most {demand.most_in_flight} are in flight (micro_batches), or that prompts run in "
            f"too long chunks: its busiest stage or link is busy for {100 * per_s * used_s:.0f} % of the time"
        )
    if index < len(names):
        return f"its bottleneck is node {quoted(names[index])}"
    link = index - len(names)
    return f"its bottleneck is the link {names[link]} -> {names[link + 1]}"
