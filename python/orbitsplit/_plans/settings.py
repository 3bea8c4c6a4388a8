"""What a plan decides beside its stages, each combination a problem of its own, and the best over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orbitsplit._planner.problem import Evaluation, Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.solve import Solution, SolveOptions
from orbitsplit._planner.tied_weights import TiedBytes, solve_with_tied_weights

from .arrivals import SteadyState
from .under_way import enough_prompts_under_way, waiting_s

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Setting:
    """How the sequences of a workload run: micro-batches, rows of each, chunks of prompts, and guesses of tokens.

    Prompts of at most `prompts_under_way` micro-batches are under way at once, None: of all.
    """

    micro_batches: int
    batch_size: int
    chunk_tokens: int | None = None
    draft_tokens: int | None = None
    prompts_under_way: int | None = None

    def units(self, objective: str) -> int:
        """Return of how much work the objective's seconds are: throughput is compared by sequence."""
        return self.batch_size if objective == "throughput" else 1


@dataclass(frozen=True, slots=True)
class Choice:
    """The best plan over all settings.

    `confirming` is the problem by which `evaluate` confirms the solution, whose bound and gap are those over all
    settings. `found` has the seconds of the best plan of each setting that has one, of its objective by unit. `state`
    is that of a plan for requests that arrive at a rate; the problems are then of one of them.
    """

    setting: Setting
    problem: Problem
    confirming: Problem
    solution: Solution
    found: tuple[tuple[Setting, float], ...] = ()
    state: SteadyState | None = None

    def best_by(self, key: Callable[[Setting], Key]) -> tuple[tuple[Key, float], ...]:
        """Return the seconds of the best plan for each value of a part of the setting, () if there is only one."""
        best: dict[Key, float] = {}
        for setting, seconds in self.found:
            best[key(setting)] = min(seconds, best.get(key(setting), seconds))
        return tuple(best.items()) if len(best) > 1 else ()


def solve_over_settings(
    build: Callable[[Setting], Problem], settings: Sequence[Setting], tied_bytes: TiedBytes, options: SolveOptions
) -> Choice:
    """Return the plan of the smallest objective over all settings, of equally good ones that of the first setting.

    Each search starts from the best plan so far. A time limit is that of all searches together. Where no setting has a
    plan, the answer is that of the first one.
    """
    ends_s = None if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    best: Choice | None = None
    impossible: Choice | None = None
    found: list[tuple[Setting, float]] = []
    bounds: list[float] = []
    for number, setting in enumerate(settings):
        if ends_s is not None:
            left_s = max(0.0, ends_s - time.monotonic()) / (len(settings) - number)
            options = replace(options, time_limit_s=left_s)
        incumbent = () if best is None else best.solution.stages
        choice = solve_setting(build, setting, tied_bytes, options, incumbent)
        setting, solution, units = choice.setting, choice.solution, setting.units(options.objective)
        if solution.status == "infeasible":
            impossible = impossible or choice
            continue
        bounds.append((solution.lower_bound_s or 0.0) / units)
        if solution.objective_s is not None:
            found.append((setting, solution.objective_s / units))
        if best is None or _is_sooner(choice, best, options.objective):
            best = choice
    if best is None:
        assert impossible is not None, "there is a setting to try"
        return impossible
    bound_s = min(bounds) * best.setting.units(options.objective)
    return replace(best, solution=_over_all(best.solution, bound_s), found=tuple(found))


def solve_setting(
    build: Callable[[Setting], Problem],
    setting: Setting,
    tied_bytes: TiedBytes,
    options: SolveOptions,
    incumbent: Sequence[Stage] = (),
) -> Choice:
    """Return the best plan of a setting, with as many prompts under way as the plan needs for none to wait.

    The number of the setting is where the search begins; a plan that needs more is looked for again with the memory
    that they take. Where there is none, the first plan it is, and prompts wait. The bound is that of the first search
    then: another plan, which needs fewer prompts or less memory, may be better.
    """
    ends_s = None if options.time_limit_s is None else time.monotonic() + options.time_limit_s

    def search(prompts: int | None, known: Sequence[Stage]) -> tuple[Choice, bool]:
        """Return the best plan with the memory for so many prompts, and whether that is enough for it."""
        left = options if ends_s is None else replace(options, time_limit_s=max(0.0, ends_s - time.monotonic()))
        own = replace(setting, prompts_under_way=prompts)
        problem = build(own)
        confirming, solution = solve_with_tied_weights(problem, tied_bytes, options=left, incumbent=known)
        choice = Choice(own, problem, confirming, solution)
        return choice, not solution.stages or has_enough(own, problem, evaluate(confirming, solution.stages))

    first, is_enough = search(setting.prompts_under_way, incumbent)
    choice = first
    while not is_enough:
        result = evaluate(choice.confirming, choice.solution.stages)
        choice, is_enough = search(_enough(choice.setting, choice.problem, result), choice.solution.stages)
    if choice is not first and not choice.solution.stages:
        choice = _waiting(first, options.objective)
    bound_s = first.solution.lower_bound_s
    return choice if bound_s is None else replace(choice, solution=_over_all(choice.solution, bound_s))


def _waiting(choice: Choice, objective: str) -> Choice:
    """Return a plan with fewer prompts under way than it needs, for more of which there is no memory: some wait."""
    solution, problem = choice.solution, choice.problem
    assert solution.objective_s is not None
    result = evaluate(choice.confirming, solution.stages)
    prompts = choice.setting.micro_batches
    longer_s = waiting_s(result, prompts, problem.micro_batches // prompts, choice.setting.prompts_under_way)
    if objective != "latency" or not longer_s or solution.lower_bound_s is None:
        return choice
    seconds = solution.objective_s + longer_s
    gap = 1 - solution.lower_bound_s / seconds
    return replace(choice, solution=replace(solution, status="feasible", objective_s=seconds, gap=gap))


def has_enough(setting: Setting, problem: Problem, result: Evaluation) -> bool:
    """Return whether so many prompts are under way as the evaluated plan of its problem needs for none to wait."""
    if setting.prompts_under_way is None:
        return True
    enough = _enough(setting, problem, result)
    return enough is not None and enough <= setting.prompts_under_way


def _enough(setting: Setting, problem: Problem, result: Evaluation) -> int | None:
    chunks = problem.micro_batches // setting.micro_batches
    return enough_prompts_under_way(result, setting.micro_batches, chunks)


def _over_all(solution: Solution, bound_s: float) -> Solution:
    """Return the solution with the bound over all settings, where that is lower than its own."""
    objective_s = solution.objective_s
    if objective_s is None or solution.lower_bound_s is None or bound_s >= solution.lower_bound_s:
        return solution
    return replace(solution, status="feasible", lower_bound_s=bound_s, gap=1 - bound_s / objective_s)


def _is_sooner(one: Choice, other: Choice, objective: str) -> bool:
    if one.solution.objective_s is None or other.solution.objective_s is None:
        return one.solution.objective_s is not None
    ours_s = one.solution.objective_s / one.setting.units(objective)
    return ours_s < other.solution.objective_s / other.setting.units(objective)


def options_of(choice: Choice, prompt_tokens: int) -> dict[str, Any]:
    """Return what was compared, as fields of a prediction."""
    divisions = choice.best_by(lambda setting: (setting.micro_batches, setting.batch_size))
    return {
        "chunk_options": tuple(sorted(choice.best_by(lambda setting: setting.chunk_tokens or prompt_tokens))),
        "row_options": tuple((*division, seconds) for division, seconds in divisions),
        "draft_options": tuple(sorted(choice.best_by(lambda setting: setting.draft_tokens or 0))),
    }
