"""From a profile, a network and a workload to a plan: builds the problem, solves it, names the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from orbitsplit._errors import InfeasiblePlanError, OrbitsplitError
from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._network.network import Network, Node
from orbitsplit._planner.baselines import by_rule
from orbitsplit._planner.certify import certificate
from orbitsplit._planner.level_table import ABSENT_LOSS
from orbitsplit._planner.problem import Problem, Solution, Stage, evaluate
from orbitsplit._planner.tied_weights import solve_with_one_copy, with_one_copy
from orbitsplit._profiling.workload import Workload

from .memory import crowded, layer_bytes, more_workspace, node_record, stage_bytes
from .plan import Plan, PlanLink, PlanStage, Prediction
from .replan import replan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orbitsplit._codebook.codebook import Codebook
    from orbitsplit._planner.level_table import LevelTable
    from orbitsplit._profiling.profile import ModelProfile

Order = Literal["fixed", "free"]

_UNCOMPRESSED = {"name": "raw", "ratio": 1.0, "encode_s_per_byte": 0.0, "decode_s_per_byte": 0.0}


def plan(
    profile: ModelProfile,
    network: Network,
    workload: Workload | None = None,
    *,
    levels: LevelTable | None = None,
    codebook: Codebook | None = None,
    loss_budget: float | None = None,
    max_accuracy_drop: float | None = None,
    order: Order = "free",
    objective: str = "latency",
    max_nodes: int | None = None,
    time_limit_s: float | None = None,
    explain: bool = False,
    running: Plan | None = None,
    runs: float = 1.0,
    stores: Sequence[str] = (),
) -> Plan:
    """Decide which nodes run which layers in which order, and how to encode the activation at each cut.

    The plan minimises the seconds from the first prompt to the last token (prefill alone where
    `workload.new_tokens` is 0), or another `objective` of `solve`, with at most `max_nodes` stages. Without a
    `codebook` or `levels` activations travel uncompressed; with them, the loss added up over the cuts stays within
    `loss_budget` nats per token (default: nothing is lost), or within what the codebook expects to cost
    `max_accuracy_drop` (0.01: one point; `verify` measures it). After `time_limit_s` seconds the best plan found so
    far is returned with its proven gap in `plan.prediction`. With `explain`, `plan.certificate` says what binds and
    what other plans would take (see `certificate`; its searches take at most `time_limit_s` once more), and the error
    of an infeasible problem what would make it feasible.

    With `running`, a plan of the same model that runs now, perhaps on nodes or links that are lost, the result is what
    `replan` decides on, for latency: that plan kept, repaired or replaced, whichever takes least for moving weights
    and `runs` runs; `stores` names nodes that keep all weights.

    Example:
        >>> profile = osp.profile("path-or-hub-id", prompt_tokens=256)           # doctest: +SKIP
        >>> osp.plan(profile, osp.Network.load("network.toml"), osp.Workload(prompt_tokens=256))  # doctest: +SKIP

    Raises:
        InfeasiblePlanError: No plan fits; the message says which limit is in the way.
        ValueError: Profile, network, workload, levels and codebook do not belong together.
    """
    workload = Workload(prompt_tokens=profile.prompt_tokens) if workload is None else workload
    levels, loss_budget = levels_and_budget(profile, levels, codebook, loss_budget, max_accuracy_drop)
    problem = build_problem(profile, network, workload, levels=levels, loss_budget=loss_budget, order=order)
    asked: dict[str, Any] = {"objective": objective, "max_nodes": max_nodes, "time_limit_s": time_limit_s}
    confirming, solution = solve_with_one_copy(problem, profile.tied_bytes, **asked)
    if running is not None and codebook is not None and running.codebook not in (None, codebook.hex_id):
        raise ValueError(f"the running plan has levels of codebook {running.codebook}, this is {codebook.hex_id}")
    if running is not None and solution.status != "infeasible":
        confirming, solution = _going_on(running, problem, profile, runs=runs, stores=stores, **asked)
    named = PlanNames(network, workload, profile, objective, codebook, max_accuracy_drop)
    if not explain:
        return plan_of(confirming, solution, named)
    why = certificate(problem, solution, tied_bytes=profile.tied_bytes, **asked)
    if solution.status == "infeasible":
        raise _infeasible(named, why.reason, *(relaxation.text for relaxation in why.relaxations))
    why = replace(why, alternatives=(*why.alternatives, *by_rule(problem, objective)))
    return replace(plan_of(confirming, solution, named), certificate=why)


def levels_and_budget(
    profile: ModelProfile,
    levels: LevelTable | None,
    codebook: Codebook | None,
    loss_budget: float | None,
    max_accuracy_drop: float | None,
) -> tuple[LevelTable | None, float]:
    """Return the levels to plan with and the loss they may add up to."""
    if codebook is None:
        if max_accuracy_drop is not None:
            raise ValueError("max_accuracy_drop needs a codebook, which knows what a loss costs")
        return levels, loss_budget or 0.0
    if levels is not None:
        raise ValueError("levels and a codebook are given, only one of them can say what codecs there are")
    if loss_budget is not None and max_accuracy_drop is not None:
        raise ValueError("loss_budget and max_accuracy_drop are given, only one of them can be the limit")
    width = profile.cut_bytes_per_token // ITEM_BYTES[profile.dtype]
    codebook.model.check_shape(f"the profile of {profile.model}", len(profile.layers) - 2, width)
    budget = loss_budget or 0.0
    if max_accuracy_drop is not None:
        budget = codebook.accuracy.loss_budget(max_accuracy_drop)
    if not budget < ABSENT_LOSS / 2:
        raise ValueError(f"loss_budget is {budget:g}, must be below {ABSENT_LOSS / 2:g}")
    return codebook.table(profile.dtype), budget


def _going_on(
    running: Plan,
    problem: Problem,
    profile: ModelProfile,
    *,
    runs: float,
    stores: Sequence[str],
    objective: str,
    max_nodes: int | None,
    time_limit_s: float | None,
) -> tuple[Problem, Solution]:
    """Return what `replan` decides on as a solution, and the problem that confirms it."""
    if objective != "latency":
        raise ValueError(f"objective is {objective}, must be latency to go on from a running plan")
    answer = replan(
        running,
        problem,
        runs=runs,
        layer_weight_bytes=[layer.weight_bytes for layer in profile.layers],
        stores=stores,
        max_nodes=max_nodes,
        tied_bytes=profile.tied_bytes,
        time_limit_s=time_limit_s,
    )
    confirming = with_one_copy(problem, profile.tied_bytes) if len(answer.stages) == 1 else problem
    result = evaluate(confirming, answer.stages)
    bound_s = min(answer.lower_bound_s / answer.runs, result.objective_s)
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


def build_problem(
    profile: ModelProfile,
    network: Network,
    workload: Workload,
    *,
    levels: LevelTable | None = None,
    loss_budget: float = 0.0,
    order: Order = "free",
) -> Problem:
    """Return the arrays the planner sees for this model, network and workload; arguments as for `plan`.

    Memory of a layer is its weights and the keys and values of every sequence of the workload at full length. The
    transient activations of a forward are added to each node's headroom as the transformer layers need them; what the
    embeddings or the head need more counts in those. A headroom is at least what the process of a stage takes for
    itself (`ModelProfile.process_bytes`). Weights shared by the embeddings and the head count in both, because either
    stage holds a copy. A node that runs everything holds one copy, which the problem cannot say; `plan` scores these
    few plans apart.

    Raises:
        ValueError: The profile was made for another prompt length or batch size than the workload's, a node's
            slow-down refers to a profile that was not measured, or `levels` belong to another model.
    """
    _check_match(profile, workload, levels)
    activation_bytes = profile.cut_bytes_per_token * workload.batch_size
    cuts = len(profile.layers) - 1
    data: dict[str, Any] = {
        "name": f"{profile.model} on {network.name}",
        "layers": [layer.name for layer in profile.layers],
        "nodes": [node_record(node, profile, workload) for node in network.nodes],
        "layer_memory_bytes": [
            layer_bytes(layer, workload) + more
            for layer, more in zip(profile.layers, more_workspace(profile), strict=True)
        ],
        "layer_time_s": [_prefill_s(profile, node, len(network.nodes)) for node in network.nodes],
        "cut_bytes": [activation_bytes * workload.prompt_tokens] * cuts,
        "bandwidth_bytes_per_s": network.bandwidth_bytes_per_s().tolist(),
        "latency_s": network.latency_s().tolist(),
        "levels": [_UNCOMPRESSED] if levels is None else _level_records(levels, network),
        "loss": [[0.0]] * cuts if levels is None else np.asarray(levels.loss).tolist(),
        "loss_budget": loss_budget,
        "micro_batches": workload.micro_batches,
        "order": order,
    }
    if workload.new_tokens > 0:
        data["new_tokens"] = workload.new_tokens
        data["layer_decode_time_s"] = [_decode_s(profile, node, len(network.nodes)) for node in network.nodes]
        data["cut_decode_bytes"] = [activation_bytes] * cuts
    return Problem.from_dict(data)


@dataclass(frozen=True, slots=True)
class PlanNames:
    """What a plan is of and for, beside the numbers of its problem."""

    network: Network
    workload: Workload
    profile: ModelProfile
    objective: str
    codebook: Codebook | None
    max_accuracy_drop: float | None


def _infeasible(of: PlanNames, *texts: str | None) -> InfeasiblePlanError:
    """Return the error that says these facts and which nodes have no room at all."""
    return InfeasiblePlanError("; ".join([*map(str, texts), *crowded(of.network.nodes, of.profile, of.workload)]))


def plan_of(problem: Problem, solution: Solution, of: PlanNames) -> Plan:
    """Return a solution as a plan with what the cost model predicts; raises where there is none."""
    if solution.status == "infeasible":
        raise _infeasible(of, solution.reason)
    if not solution.stages or solution.lower_bound_s is None or solution.gap is None:
        raise OrbitsplitError(f"no plan was found: {solution.reason}")
    result = evaluate(problem, solution.stages)
    prediction = Prediction(
        total_s=result.objective_s,
        prefill_s=result.prefill_s,
        token_step_s=result.token_step_s,
        loss=result.loss,
        stage_s=tuple(result.stage_s),
        link_s=tuple(result.link_s),
        decode_stage_s=tuple(result.decode_stage_s),
        decode_link_s=tuple(result.decode_link_s),
        stage_memory_bytes=tuple(
            stage_bytes(of.profile, of.workload, stage, int(size))
            for stage, size in zip(solution.stages, result.stage_memory_bytes, strict=True)
        ),
        status=solution.status,
        lower_bound_s=solution.lower_bound_s,
        gap=solution.gap,
        objective=of.objective,
    )
    nodes = [of.network.nodes[stage.node] for stage in solution.stages]
    stages = tuple(
        _plan_stage(problem, stage, node, of.codebook) for stage, node in zip(solution.stages, nodes, strict=True)
    )
    uses_codebook = any(stage.codebook_level is not None for stage in stages)
    return Plan(
        stages=stages,
        links=_plan_links(problem, [stage.node for stage in solution.stages]),
        layers=len(problem.layers),
        workload=of.workload,
        return_latency_s=result.return_s,
        model=of.profile.model,
        dtype=of.profile.dtype,
        threads=of.profile.threads or 1,
        prediction=prediction,
        codebook=of.codebook.hex_id if of.codebook is not None and uses_codebook else None,
        max_accuracy_drop=of.max_accuracy_drop,
    )


def _check_match(profile: ModelProfile, workload: Workload, levels: LevelTable | None) -> None:
    for name in ("prompt_tokens", "batch_size"):
        of_profile, of_workload = getattr(profile, name), getattr(workload, name)
        if of_profile != of_workload:
            raise ValueError(
                f"the profile was made for {name}={of_profile}, the workload has {of_workload}: "
                f"profile the model again with {name}={of_workload}"
            )
    if workload.new_tokens > 0 and not profile.generates:
        raise ValueError(f"{profile.model} generates no tokens, the workload asks for {workload.new_tokens} new ones")
    cuts = len(profile.layers) - 1
    if levels is not None and len(levels.loss) != cuts:
        raise ValueError(f"the levels describe {len(levels.loss)} cuts, the profiled model has {cuts}")


def _level_records(levels: LevelTable, network: Network) -> list[dict[str, object]]:
    """Return the levels with encode and decode seconds of a node of average speed: a level has one of each."""
    slowdown = float(np.mean([1.0 if node.slowdown is None else node.slowdown for node in network.nodes]))
    return [
        {
            "name": level.name,
            "ratio": level.ratio,
            "encode_s_per_byte": slowdown * level.encode_s_per_byte,
            "decode_s_per_byte": slowdown * level.decode_s_per_byte,
        }
        for level in levels.levels
    ]


def _prefill_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one micro-batch of prompts."""
    if node.slowdown is not None:
        # Every stage pays the overhead of a forward once. The problem has no cost per stage, so it is spread over
        # the layers as if all nodes took part with equally many.
        overhead = profile.overhead_prefill_s * nodes / len(profile.layers)
        return [node.slowdown * (_measured(layer.prefill_s, node) + overhead) for layer in profile.layers]
    return [_roofline(node, layer.prefill_flop, layer.weight_bytes) for layer in profile.layers]


def _decode_s(profile: ModelProfile, node: Node, nodes: int) -> list[float]:
    """Return the seconds of each layer on the node for one token of one micro-batch."""
    if node.slowdown is not None:
        overhead = profile.overhead_decode_s * nodes / len(profile.layers)
        return [node.slowdown * (_measured(layer.decode_s, node) + overhead) for layer in profile.layers]
    return [_roofline(node, layer.decode_flop, layer.weight_bytes) for layer in profile.layers]


def _measured(seconds: float | None, node: Node) -> float:
    if seconds is None:
        raise ValueError(
            f"node {node.name!r} has a slow-down relative to a measured profile, but this profile was not measured: "
            f"use profile(..., measure=True), or give the node its compute in FLOP/s"
        )
    return seconds


def _roofline(node: Node, flop: float, weight_bytes: int) -> float:
    """Return the larger of compute time and the time to read the weights once."""
    assert node.flop_per_s is not None
    reading = 0.0 if node.memory_bytes_per_s is None else weight_bytes / node.memory_bytes_per_s
    return max(flop / node.flop_per_s, reading)


def _plan_stage(problem: Problem, stage: Stage, node: Node, codebook: Codebook | None) -> PlanStage:
    codec = None if stage.level is None else problem.levels[stage.level].name
    level = None
    if codebook is not None and codec not in (None, "raw"):
        level = codebook.level_of(stage.stop - 1, str(codec))
    return PlanStage(
        node=node.name,
        start=stage.start,
        stop=stage.stop,
        codec=None if codec == "raw" else codec,
        slowdown=1.0 if node.slowdown is None else node.slowdown,
        memory_bytes=node.memory_bytes,
        half_duplex=node.half_duplex,
        codebook_level=level,
    )


def _plan_links(problem: Problem, order: Sequence[int]) -> tuple[PlanLink, ...]:
    return tuple(
        PlanLink(bytes_per_s=float(problem.bandwidth_bytes_per_s[a][b]), latency_s=float(problem.latency_s[a][b]))
        for a, b in pairwise(order)
    )
