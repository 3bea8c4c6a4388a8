"""Plans made from a profile, a network and a workload: a problem of each setting is built and solved."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import check_boolean, check_kind
from orbitsplit._network.network import Network
from orbitsplit._planner.baselines import heuristic_baselines
from orbitsplit._planner.certify import certificate
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem import Problem, evaluate
from orbitsplit._planner.solve import Solution, SolveOptions, solve_options
from orbitsplit._planner.tied_weights import with_tied_weights
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload

from .chunks import ChunkTokens, lengths_to_try
from .drafts import DraftTokens, check_steps, drafts_to_try
from .memory import CODECS_PER_STAGE
from .options import PlanKeywords, RunningPlan, take_running
from .pins import LayerPins
from .plan import Plan
from .plan_names import PlanNames
from .plan_of_solution import infeasible_error, plan_of
from .problem_building import Order, build_problem, check_loss_budget
from .rate_planning import certificate_at_rate, check_rate, solved_at_rate
from .replan import replan
from .rows import Rows, divisions_to_try
from .settings import Choice, Setting, solve_over_settings
from .weight_options import Weights, check_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Unpack


def plan(
    profile: ModelProfile,
    network: Network,
    workload: Workload | None = None,
    *,
    levels: LevelTable | None = None,
    codebook: Codebook | None = None,
    loss_budget: float = 0.0,
    max_accuracy_drop: float | None = None,
    order: Order = "free",
    pins: LayerPins | None = None,
    weights: Weights | None = None,
    chunk_tokens: ChunkTokens = "auto",
    rows: Rows = None,
    draft_tokens: DraftTokens = "auto",
    options: SolveOptions | None = None,
    explain: bool = False,
    running: Plan | RunningPlan | None = None,
    **keywords: Unpack[PlanKeywords],
) -> Plan:
    """Decide which nodes run which layers in which order, and how to encode the activation at each cut.

    The plan minimises the seconds from the first prompt to the last token (of prefill alone if `workload.new_tokens` is
    0), or another objective of `SolveOptions`.

    With `workload.arrivals_per_s` it minimises the mean seconds of a request, and `Prediction.in_flight` says how many
    are there. Constraints and alternatives of `explain` are not those of a rate, and then left out.

    Where the codecs of a codebook leave no room for any plan, it warns and activations are sent uncompressed.

    With `running`, a plan of the same model that runs now, the result is what `replan` decides for latency: that plan
    kept, repaired or replaced, whichever takes least for moving weights and all runs.

    Args:
        profile: What each layer costs; made for the prompt length of the workload, and its batch size unless it has
            times of several rows.
        network: Nodes and links.
        workload: The default is one prompt of the profile's length, without new tokens.
        levels: Codecs and their losses. Without them and without a codebook, activations are sent uncompressed.
        codebook: The same from calibration; only one of the two can be given.
        loss_budget: The most that the losses of all cuts and weights may add up to, in nats per token: 0 for nothing
            lost, `math.inf` for no limit.
        max_accuracy_drop: The same as a drop of accuracy, converted by the codebook (0.01: one point; `verify` measures
            it); only one of the two can be given.
        order: "free": any nodes in any order; "fixed": in the order of the network, any may be skipped.
        pins: The layers that must run on a node, by name or index: `{"sat-1": ["layer 3"]}`. A node with an empty list
            must run at least one. They replace the pins that the network has for the same nodes.
        weights: The weights that a stage may have instead of the profile's own, by name: `{"int8": WeightOption(...)}`.
            Their losses and those of the cuts share the limit. Of a `running` plan, stages with weights of other names
            cannot be kept.
        chunk_tokens: Prompts run through the stages in chunks of about so many tokens; None: as a whole. "auto": what
            is best of the lengths that the profile was measured with, and the whole. Each length is a search of its
            own, and a time limit that of all together.
        rows: The sequences of the workload run in micro-batches of so many rows, which share each forward; None: as the
            workload divides them. "auto": what is best of all divisions that the profile has times of, together with
            the chunks. The plan's `workload` is divided so.
        draft_tokens: With each token so many guesses of the next ones go along, of which those count that are right
            (`Workload.acceptance`); None: none. "auto": what is best of 0 to 15, together with chunks and rows, where
            the profile has times of so many rows. Guesses need micro-batches of one row.
        options: As for `solve`, and so are the keywords. At `time_limit_s` the best plan so far is returned with its
            proven gap in `plan.prediction`.
        explain: Attach a `certificate` as `plan.certificate`, whose searches take at most `time_limit_s` once more. The
            error of an infeasible problem then says which relaxations would make it feasible.
        running: The plan that runs now, or a `RunningPlan`, whose other fields are also accepted as keywords.

    Example:
        >>> profile = osp.profile("path-or-hub-id", prompt_tokens=256)           # doctest: +SKIP
        >>> osp.plan(profile, osp.Network.load("network.toml"), osp.Workload(prompt_tokens=256))  # doctest: +SKIP

    Raises:
        InfeasiblePlanError: There is no plan, or none was found that sustains the rate; the message names the limit.
        OrbitsplitError: A limit of the search was reached before any plan was found.
        ValueError: Profile, network, workload, levels, codebook and weights do not match, or a number is out of range.
        TypeError: An argument has another type.
    """
    check_kind("profile", profile, ModelProfile)
    check_kind("network", network, Network)
    check_boolean("explain", explain)
    given: dict[str, Any] = {**keywords}
    running = take_running(running, given)
    options = solve_options("plan", options, given)
    workload = Workload(prompt_tokens=profile.prompt_tokens) if workload is None else workload
    check_kind("workload", workload, Workload)
    check_loss_budget(loss_budget)
    levels, loss_budget = levels_and_budget(profile, levels, codebook, loss_budget, max_accuracy_drop)
    weights = check_weights(profile, weights)
    if running is not None:
        _check_running(running.plan, codebook)
    named = PlanNames(network, workload, profile, options.objective, codebook, max_accuracy_drop, weights)
    check_steps(profile, workload, draft_tokens)
    if workload.arrivals_per_s is not None:
        check_rate(workload, options, is_running=running is not None)

    build = functools.partial(
        build_problem, profile, network, loss_budget=loss_budget, order=order, pins=pins, weights=weights
    )
    settings = _settings(named, rows, chunk_tokens, draft_tokens)
    choice = _chosen(build, named, settings, levels, options)
    if choice.solution.status == "infeasible" and codebook is not None and levels is not None and levels.codec_bytes:
        plain = _chosen(build, named, settings, None, options)
        if plain.solution.status != "infeasible":
            choice, named = plain, replace(named, codebook=None)
            _warn_of_codecs(levels)
    named = named.chosen(choice)
    confirming, solution = choice.confirming, choice.solution
    if running is not None and solution.status != "infeasible":
        confirming, solution = _replanned(running, choice.problem, named, options, solution.lower_bound_s or 0.0)
    if explain:
        return _explained(choice, confirming, solution, named, options)
    return plan_of(confirming, solution, named)


def _settings(named: PlanNames, rows: Rows, chunk_tokens: ChunkTokens, draft_tokens: DraftTokens) -> list[Setting]:
    """Return the settings to try, each of which is a problem of its own."""
    profiles, objective = named.profiles, named.objective
    divisions = divisions_to_try(profiles, named.workload, rows)
    lengths = lengths_to_try(profiles, named.workload, chunk_tokens, objective)
    return [
        Setting(part.micro_batches, part.batch_size, length, guesses, named.first_prompts_under_way(part.micro_batches))
        for part in divisions
        for guesses in drafts_to_try(profiles, part, draft_tokens, objective)
        for length in lengths
    ]


def _chosen(
    build: Callable[..., Problem],
    named: PlanNames,
    settings: Sequence[Setting],
    levels: LevelTable | None,
    options: SolveOptions,
) -> Choice:
    """Return the best plan of all settings; `build` makes a problem of a workload, levels and a setting."""

    def build_setting(setting: Setting) -> Problem:
        return build(
            replace(named.workload_of(setting), arrivals_per_s=None),
            levels=levels,
            chunk_tokens=setting.chunk_tokens,
            draft_tokens=setting.draft_tokens,
            prompts_under_way=setting.prompts_under_way,
        )

    if named.workload.arrivals_per_s is None:
        return solve_over_settings(build_setting, settings, named.tied_bytes, options)
    return solved_at_rate(build_setting, settings, named, options)


def _explained(
    choice: Choice, confirming: Problem, solution: Solution, named: PlanNames, options: SolveOptions
) -> Plan:
    """Return the plan of a solution with its certificate; raises InfeasiblePlanError with what would be feasible."""
    if choice.state is not None:
        return replace(plan_of(confirming, solution, named), certificate=certificate_at_rate(solution, options))
    problem = choice.problem
    why = certificate(problem, solution, tied_bytes=named.tied_bytes, options=options)
    if solution.status == "infeasible":
        raise infeasible_error(problem, named, why.reason, *(relaxation.text for relaxation in why.relaxations))
    why = replace(why, alternatives=(*why.alternatives, *heuristic_baselines(problem, options.objective)))
    return replace(plan_of(confirming, solution, named), certificate=why)


def levels_and_budget(
    profile: ModelProfile,
    levels: LevelTable | None,
    codebook: Codebook | None,
    loss_budget: float | None,
    max_accuracy_drop: float | None,
) -> tuple[LevelTable | None, float]:
    """Return the levels to plan with, and the most that their losses may add up to; a budget of None is 0.

    Raises:
        ValueError: Two of the arguments exclude each other, or the codebook is of a model of another shape.
    """
    budget = loss_budget or 0.0
    if codebook is None:
        if max_accuracy_drop is not None:
            raise ValueError("max_accuracy_drop needs a codebook, which knows what a loss costs")
        return levels, budget
    check_kind("codebook", codebook, Codebook)
    if levels is not None:
        raise ValueError("levels and a codebook are given, only one of them can say what codecs there are")
    if budget > 0 and max_accuracy_drop is not None:
        raise ValueError("loss_budget and max_accuracy_drop are given, only one of them can be the limit")
    width = profile.cut_bytes_per_token // ITEM_BYTES[profile.dtype]
    codebook.model.check_shape(f"the profile of {profile.model}", len(profile.layers) - 2, width)
    if max_accuracy_drop is not None:
        budget = codebook.accuracy.loss_budget(max_accuracy_drop)
    return codebook.table(profile.dtype), budget


def _warn_of_codecs(levels: LevelTable) -> None:
    warnings.warn(
        f"activations are sent uncompressed: the codecs of a stage take up to "
        f"{format_bytes(CODECS_PER_STAGE * levels.codec_bytes)}, and with so much less memory there is no plan",
        UserWarning,
        stacklevel=3,
    )


def _check_running(running: Plan, codebook: Codebook | None) -> None:
    if codebook is not None and running.codebook not in (None, codebook.hex_id):
        raise ValueError(f"the running plan has levels of codebook {running.codebook}, this is {codebook.hex_id}")


def _replanned(
    running: RunningPlan, problem: Problem, of: PlanNames, options: SolveOptions, least_s: float
) -> tuple[Problem, Solution]:
    """Return what `replan` decides as a solution, and the problem that confirms it.

    No plan, of another setting than the problem's too, takes less than `least_s`.
    """
    at_levels = [[layer.weight_bytes for layer in profile.layers] for profile in of.profiles]
    answer = replan(
        running.plan,
        problem,
        runs=running.runs,
        layer_weight_bytes=at_levels if of.weights else at_levels[0],
        stores=running.stores,
        tied_bytes=of.tied_bytes,
        options=options,
    )
    confirming = with_tied_weights(problem, of.tied_bytes) if len(answer.stages) == 1 else problem
    result = evaluate(confirming, answer.stages)
    bound_s = min(answer.lower_bound_s / answer.runs, result.objective_s, least_s)
    gap = 1 - bound_s / result.objective_s if result.objective_s > 0 else 0.0
    solution = Solution(
        status="feasible" if gap > 0 else "optimal",
        objective_s=result.objective_s,
        lower_bound_s=bound_s,
        gap=gap,
        seconds=0.0,
        loss=result.loss,
        stages=answer.stages,
        reason=None,
        labels=0,
    )
    return confirming, solution
