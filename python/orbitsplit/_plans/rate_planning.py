"""What `plan` does for a workload whose requests arrive at a rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from orbitsplit._planner.certificate import Certificate
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.solve import Solution, SolveOptions
from orbitsplit._profiling.workload import Workload

from .arrivals import SteadyState
from .plan_names import PlanNames
from .problem_building import decode_arrays
from .rate_problems import RateProblems
from .rate_search import check_rate_objective, solve_at_rate
from .settings import Choice, Setting


def check_rate(workload: Workload, options: SolveOptions, *, is_running: bool) -> None:
    """Raise ValueError for what `plan` does not decide for requests that arrive at a rate."""
    check_rate_objective(options.objective)
    if options.objective == "time_per_token" and workload.new_tokens < 2:
        raise ValueError(
            f"objective is time_per_token, and the workload has {workload.new_tokens} new tokens, must have 2 or more"
        )
    if is_running:
        raise ValueError(
            "running is given, and the workload has arrivals_per_s: what replaces a plan is decided for a batch; plan "
            "without running"
        )


def solved_at_rate(
    build: Callable[[Setting], Problem], settings: Sequence[Setting], named: PlanNames, options: SolveOptions
) -> Choice:
    """Return the best plan over all settings for requests that arrive at the rate of the workload."""
    assert named.workload.arrivals_per_s is not None

    def problems_of(setting: Setting) -> RateProblems:
        under_way = named.first_prompts_under_way(setting.micro_batches * setting.batch_size)
        return RateProblems(
            replace(setting, prompts_under_way=under_way),
            build,
            lambda rows: decode_arrays(named.profiles, named.network, rows),
            named.tied_bytes,
        )

    return solve_at_rate(problems_of, settings, named.workload.arrivals_per_s, options)


def certificate_at_rate(solution: Solution, options: SolveOptions) -> Certificate:
    """Return the certificate of a plan for a rate: its bound, since constraints and alternatives are of one batch."""
    return Certificate(
        status=solution.status,
        total_s=solution.objective_s,
        lower_bound_s=solution.lower_bound_s,
        gap=solution.gap,
        objective=options.objective,
        reason=solution.reason,
        unanswered=("binding constraints", "alternatives"),
    )


def predicted_at_rate(state: SteadyState, problem: Problem, stages: int) -> dict[str, Any]:
    """Return the steady state of requests as fields of a prediction."""
    steps = (problem.new_tokens - 1) / problem.tokens_per_step if problem.new_tokens > 1 else 0.0
    step_s = (state.request_s - state.first_token_s) / steps if steps else 0.0
    return {
        "total_s": state.request_s,
        "prefill_s": state.first_token_s,
        "token_step_s": step_s,
        "in_flight": state.in_flight,
        "waiting": state.waiting,
        "stage_utilisation": state.utilisation[:stages],
        "link_utilisation": state.utilisation[stages:],
    }
