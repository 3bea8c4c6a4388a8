"""Plans made of solutions: named, with what the cost model predicts, or the error of an infeasible problem."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from orbitsplit._codebook.codebook import Codebook
from orbitsplit._errors import InfeasiblePlanError, OrbitsplitError
from orbitsplit._network.network import Node
from orbitsplit._planner.problem import Evaluation, Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._planner.solve import Solution
from orbitsplit._profiling.rows import profile_of_rows

from .memory import nodes_without_room, stage_bytes
from .pins import describe_pins
from .plan import Plan
from .plan_names import PlanNames
from .plan_parts import PlanLink, PlanStage
from .prediction import Prediction
from .rate_planning import predicted_at_rate
from .settings import options_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def infeasible_error(problem: Problem, of: PlanNames, *texts: str | None) -> InfeasiblePlanError:
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
        raise infeasible_error(problem, of, solution.reason)
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
