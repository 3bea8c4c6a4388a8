"""Plans made from a profile, a network and a workload: the problem is built and solved, the solution named."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._errors import InfeasiblePlanError, OrbitsplitError
from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import check_boolean, check_kind
from orbitsplit._network.network import Network, Node
from orbitsplit._planner.baselines import heuristic_baselines
from orbitsplit._planner.certify import certificate
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem import Evaluation, Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.solve import Solution, SolveOptions, solve_options
from orbitsplit._planner.tied_weights import with_tied_weights
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.rows import profile_of_rows
from orbitsplit._profiling.workload import Workload

from .chunks import ChunkTokens, lengths_to_try
from .drafts import DraftTokens, check_steps, drafts_to_try
from .memory import CODECS_PER_STAGE, nodes_without_room, stage_bytes
from .options import PlanKeywords, RunningPlan, take_running
from .pins import LayerPins, describe_pins
from .plan import Plan
from .plan_names import PlanNames
from .plan_parts import PlanLink, PlanStage
from .prediction import Prediction
from .problem_building import Order, build_problem, check_loss_budget
from .rate_planning import certificate_at_rate, check_rate, predicted_at_rate, solved_at_rate
from .replan import replan
from .rows import Rows, divisions_to_try
from .settings import Choice, Setting, options_of, solve_over_settings
from .weight_options import Weights, check_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    tied_bytes = named.tied_bytes

    check_steps(profile, workload, draft_tokens)
    if workload.arrivals_per_s is not None:
        check_rate(workload, options, is_running=running is not None)

    def build(setting: Setting) -> Problem:
        return build_problem(
            profile,
            network,
            replace(named.workload_of(setting), arrivals_per_s=None),
            levels=levels,
            loss_budget=loss_budget,
            order=order,
            pins=pins,
            weights=weights,
            chunk_tokens=setting.chunk_tokens,
            draft_tokens=setting.draft_tokens,
            prompts_under_way=setting.prompts_under_way,
        )

    divisions = divisions_to_try(named.profiles, workload, rows)
    lengths = lengths_to_try(named.profiles, workload, chunk_tokens, options.objective)
    settings = [
        Setting(part.micro_batches, part.batch_size, length, guesses, named.first_prompts_under_way(part.micro_batches))
        for part in divisions
        for guesses in drafts_to_try(named.profiles, part, draft_tokens, options.objective)
        for length in lengths
    ]

    def solved() -> Choice:
        if workload.arrivals_per_s is None:
            return solve_over_settings(build, settings, tied_bytes, options)
        return solved_at_rate(build, settings, named, options)

    choice = solved()
    if choice.solution.status == "infeasible" and codebook is not None and levels is not None and levels.codec_bytes:
        codecs, levels = levels, None  # for `build`
        plain = solved()
        if plain.solution.status != "infeasible":
            choice, named = plain, replace(named, codebook=None)
            _warn_of_codecs(codecs)
    named = named.chosen(choice)
    problem, confirming, solution = choice.problem, choice.confirming, choice.solution
    if running is not None and solution.status != "infeasible":
        confirming, solution = _replanned(running, problem, named, options, solution.lower_bound_s or 0.0)
    if not explain:
        return plan_of(confirming, solution, named)
    if choice.state is not None:
        return replace(plan_of(confirming, solution, named), certificate=certificate_at_rate(solution, options))
    why = certificate(problem, solution, tied_bytes=tied_bytes, options=options)
    if solution.status == "infeasible":
        raise _infeasible(problem, named, why.reason, *(relaxation.text for relaxation in why.relaxations))
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


def _infeasible(problem: Problem, of: PlanNames, *texts: str | None) -> InfeasiblePlanError:
    """Return the error with these facts, the pins, and the nodes that have no room for any layer."""
    codec_bytes = 0 if of.codebook is None else of.codebook.table(of.profile.dtype).codec_bytes
    profiles = [profile_of_rows(profile, of.held.batch_size) for profile in of.profiles]
    return InfeasiblePlanError(
        "; ".join(
            [
                *map(str, texts),
                *describe_pins(problem),
                *nodes_without_room(
                    of.network.nodes,
                    profiles,
                    of.held,
                    codec_bytes=codec_bytes,
                    prompts_under_way=of.prompts_under_way,
                ),
            ]
        )
    )


def plan_of(problem: Problem, solution: Solution, of: PlanNames) -> Plan:
    """Return a solution as a plan with the predictions of the cost model.

    Raises:
        InfeasiblePlanError: The problem is infeasible.
        OrbitsplitError: The search found no plan.
    """
    if solution.status == "infeasible":
        raise _infeasible(problem, of, solution.reason)
    if not solution.stages or solution.lower_bound_s is None or solution.gap is None:
        raise OrbitsplitError(f"no plan was found: {solution.reason}")
    result = evaluate(problem, solution.stages)
    prediction = _prediction(problem, solution, result, of)
    nodes = [of.network.nodes[stage.node] for stage in solution.stages]
    stages = tuple(_plan_stage(problem, stage, node, of) for stage, node in zip(solution.stages, nodes, strict=True))
    used = {stage.weights for stage in stages}
    uses_codebook = any(stage.codebook_level is not None for stage in stages)
    return Plan(
        stages=stages,
        links=_plan_links(problem, [stage.node for stage in solution.stages]),
        layers=len(problem.layers),
        workload=of.workload,
        return_latency_s=result.return_s,
        return_latencies_s=_return_latencies_s(problem, [stage.node for stage in solution.stages], result.return_s),
        model=of.profile.model,
        dtype=of.profile.dtype,
        threads=of.profile.threads or 1,
        prediction=prediction,
        codebook=of.codebook.hex_id if of.codebook is not None and uses_codebook else None,
        max_accuracy_drop=of.max_accuracy_drop,
        weight_models={name: option.directory for name, option in of.weights.items() if name in used},
        chunk_tokens=None if of.choice is None else of.choice.setting.chunk_tokens,
        draft_tokens=None if of.choice is None else of.choice.setting.draft_tokens,
        prompts_under_way=of.prompts_under_way,
    )


def _prediction(problem: Problem, solution: Solution, result: Evaluation, of: PlanNames) -> Prediction:
    assert solution.lower_bound_s is not None
    assert solution.gap is not None
    waiting = of.waiting_s(problem, result)
    at_cuts = [_codec_bytes(problem, stage, of.codebook) for stage in solution.stages[:-1]]
    state = None if of.choice is None else of.choice.state
    seconds = {
        "total_s": result.objective_s + waiting,
        "prefill_s": result.prefill_s + waiting,
        "token_step_s": result.token_step_s,
    }
    return Prediction(
        **(seconds if state is None else predicted_at_rate(state, problem, len(solution.stages))),
        tokens_per_step=result.tokens_per_step,
        loss=result.loss,
        stage_s=tuple(result.stage_s),
        earlier_stage_s=tuple(result.earlier_stage_s),
        link_s=tuple(result.link_s),
        decode_stage_s=tuple(result.decode_stage_s),
        decode_link_s=tuple(result.decode_link_s),
        stage_memory_bytes=tuple(
            stage_bytes(
                of.profile_of(stage),
                of.held,
                stage,
                layers_bytes=int(size),
                codec_bytes=before + after,
                prompts_under_way=of.prompts_under_way,
            )
            for stage, size, before, after in zip(
                solution.stages, result.stage_memory_bytes, [0, *at_cuts], [*at_cuts, 0], strict=True
            )
        ),
        status=solution.status,
        lower_bound_s=solution.lower_bound_s,
        gap=solution.gap,
        objective=of.objective,
        **({} if of.choice is None else options_of(of.choice, of.workload.prompt_tokens)),
    )


def _codec_bytes(problem: Problem, stage: Stage, codebook: Codebook | None) -> int:
    """Return the memory of the codec at the cut after a stage, at each end."""
    level = _codebook_level(problem, stage, codebook)
    return 0 if codebook is None or level is None else codebook.codec_bytes(stage.stop - 1, level)


def _codebook_level(problem: Problem, stage: Stage, codebook: Codebook | None) -> int | None:
    codec = None if stage.level is None else problem.levels[stage.level].name
    return None if codebook is None or codec in (None, "raw") else codebook.level_of(stage.stop - 1, str(codec))


def _plan_stage(problem: Problem, stage: Stage, node: Node, of: PlanNames) -> PlanStage:
    codec = None if stage.level is None else problem.levels[stage.level].name
    level = _codebook_level(problem, stage, of.codebook)
    return PlanStage(
        node=node.name,
        start=stage.start,
        stop=stage.stop,
        codec=None if codec == "raw" else codec,
        slowdown=1.0 if node.slowdown is None else node.slowdown,
        memory_bytes=node.memory_bytes,
        half_duplex=node.half_duplex,
        device=node.device,
        codebook_level=level,
        weights=of.weights_of(stage),
    )


def _plan_links(problem: Problem, order: Sequence[int]) -> tuple[PlanLink, ...]:
    return tuple(
        PlanLink(bytes_per_s=float(problem.bandwidth_bytes_per_s[a][b]), latency_s=float(problem.latency_s[a][b]))
        for a, b in pairwise(order)
    )


def _return_latencies_s(problem: Problem, order: Sequence[int], return_s: float) -> tuple[float, ...]:
    """Return the latencies of the links that a token returns over in `return_s`, from the last node on."""
    if len(order) == 1 or problem.new_tokens < 2:
        return ()
    direct_s = float(problem.latency_s[order[-1]][order[0]])
    if problem.bandwidth_bytes_per_s[order[-1]][order[0]] > 0 and direct_s == return_s:
        return (direct_s,)
    return tuple(float(problem.latency_s[a][b]) for a, b in pairwise(reversed(order)))
