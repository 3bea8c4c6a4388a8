"""Keep, repair or replace a running plan when nodes or links are lost or changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._io.validation import array_of, check_kind, index_of, listed, tuple_of
from orbitsplit._planner.problem import Problem, evaluate, stage_overhead_s
from orbitsplit._planner.problem_parts import HasStages, Stage
from orbitsplit._planner.solve import Solution, SolveKeywords, SolveOptions, solve_options
from orbitsplit._planner.tied_weights import (
    TiedBytes,
    check_tied_bytes,
    solve_with_tied_weights,
    with_tied_weights,
)
from orbitsplit._planner.weight_transfer import Move, Weights

from .options import check_runs
from .plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

Decision = Literal["keep", "repair", "replace"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One of the three options: a plan, its seconds per run, and the weights that must move first.

    Attributes:
        decision: "keep", "repair" or "replace".
        stages: The plan, in order of the layers; empty without one.
        objective_s: Seconds of one run.
        moves: Weights that must move before the first run.
        move_s: Seconds until all of them have arrived.
        total_s: `move_s` and all runs together.
        breaks: Why there is no such plan, empty if there is one; the numbers are then None.
    """

    decision: Decision
    stages: tuple[Stage, ...] = ()
    objective_s: float | None = None
    moves: tuple[Move, ...] = ()
    move_s: float | None = None
    total_s: float | None = None
    breaks: str = ""


@dataclass(frozen=True, kw_only=True)
class Replan:
    """The decision, and what each option would take.

    Attributes:
        decision: The option with the smallest `total_s`.
        options: Keep, repair and replace.
        runs: The number of runs that were counted.
        lower_bound_s: No plan takes fewer seconds for all runs, even if nothing had to move.
    """

    decision: Decision
    options: tuple[Option, ...]
    runs: float
    lower_bound_s: float

    @property
    def chosen(self) -> Option:
        """Return the option that was decided on."""
        return next(option for option in self.options if option.decision == self.decision)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of the chosen option."""
        return self.chosen.stages

    def to_dict(self) -> dict[str, Any]:
        """Return the decision and all options as JSON-ready data."""
        return asdict(replace(self, options=())) | {"options": [_record(option) for option in self.options]}

    def __str__(self) -> str:
        lines = [f"{self.decision}: {format_seconds(self.chosen.total_s or 0.0)} for {self.runs:g} runs"]
        for option in self.options:
            if option.total_s is None or option.move_s is None or option.objective_s is None:
                lines.append(f"  {option.decision}: {option.breaks}")
                continue
            moved = sum(move.bytes for move in option.moves)
            lines.append(
                f"  {option.decision}: {format_seconds(option.objective_s)} per run, {format_seconds(option.move_s)} "
                f"to move {format_bytes(moved)}, {format_seconds(option.total_s)} together"
            )
        return "\n".join(lines)


def replan(
    running: Plan | HasStages | Sequence[Stage],
    problem: Problem,
    *,
    runs: float = 1.0,
    layer_weight_bytes: ArrayLike | None = None,
    stores: Sequence[int | str] = (),
    tied_bytes: TiedBytes = 0,
    options: SolveOptions | None = None,
    **keywords: Unpack[SolveKeywords],
) -> Replan:
    """Decide between keeping a running plan, repairing it and replacing it, including the time to move weights.

    - *Keep* changes nothing. `max_nodes` does not limit it.
    - *Repair* leaves every layer of a remaining node where it is, with its weight level, finds nodes for the other
      layers, and chooses all levels of codecs anew.
    - *Replace* plans from scratch. Weights of another weight level than the one that a node has must move to it.

    Repair and replace take the better of two plans: the best one once all weights are in place, and the best one if
    moving a layer's weights counts as computing time of that layer. The option of the smallest `total_s` is chosen:
    seconds to move weights, and `runs` runs.

    Args:
        running: The plan that runs: a `Plan`, a sequence of stages, or anything that has one as `.stages`.
        problem: What is there now: the remaining nodes and links (see `without`), at their present speeds. A node that
            it forbids, or that a `Plan` names and it does not have, is lost with its weights.
        runs: How many more runs of the workload are expected.
        layer_weight_bytes: Bytes of the weights of each layer (L,), with weight levels (W, L), in place of the
            problem's `layer_memory_bytes`. They are sent over the fastest path from a node that ran the layer, or from
            a store.
        stores: Nodes that keep the weights of all layers at all weight levels, by name or index; if every node is one,
            nothing moves.
        tied_bytes: Bytes of weights that the first and the last layer share; with weight levels one number for each.
        options: As for `solve`, and so are the keywords. `time_limit_s` is that of each search; `objective` must be
            "latency".

    Raises:
        InfeasiblePlanError: No option is possible; the message gives the reason for each.
        ValueError: The plan has other layers than the problem, a stage a weight level that the problem does not have,
            a store does not exist, or an option is out of range.
        TypeError: An option has another type.

    >>> answer = replan(plan, without(problem, nodes=["sat-1"]), runs=100)      # doctest: +SKIP
    >>> answer.decision, answer.stages                                          # doctest: +SKIP
    """
    check_kind("problem", problem, Problem)
    check_tied_bytes(problem, tied_bytes)
    options = solve_options("replan", options, {**keywords})
    if options.objective != "latency":
        raise ValueError(f"objective is {options.objective}, must be latency to replan a running plan")
    check_runs(runs)
    parts = _running_parts(running, problem)
    sizes = problem.layer_memory_bytes if layer_weight_bytes is None else layer_weight_bytes
    weight_bytes = array_of("layer_weight_bytes", sizes, problem.layer_memory_bytes.shape)
    weights = Weights(problem, _held(parts, problem, stores), np.atleast_2d(weight_bytes))
    scorer = _Scorer(problem, weights, runs, tied_bytes, options)
    # Each option is an incumbent of the next search: a kept plan is also a repair, a repaired one also a replacement.
    kept = _keep(parts, scorer)
    pinned = _with_layers_pinned(parts, problem)
    repaired = scorer.solve(pinned, kept.stages)
    replaced = scorer.solve(problem, repaired.stages)
    found = (
        kept,
        scorer.best_option("repair", pinned, repaired),
        scorer.best_option("replace", problem, replaced),
    )
    possible = [option for option in found if option.total_s is not None]
    if not possible:
        reasons = "; ".join(f"{option.decision}: {option.breaks}" for option in found)
        raise InfeasiblePlanError(f"no plan is possible: {reasons}")
    chosen = min(possible, key=lambda option: cast("float", option.total_s))
    bound_s = runs * (replaced.lower_bound_s or 0.0)
    return Replan(decision=chosen.decision, options=found, runs=runs, lower_bound_s=bound_s)


@dataclass(frozen=True)
class _Part:
    """A stage of the running plan: `node` None is a lost node, -1 a codec or weights that the problem does not have."""

    node: int | None
    start: int
    stop: int
    level: int | None
    name: str
    weight_level: int | None = None


@dataclass(frozen=True)
class _Scorer:
    """Scores plans including the time to move weights."""

    problem: Problem
    weights: Weights
    runs: float
    tied_bytes: TiedBytes
    options: SolveOptions

    def solve(self, problem: Problem, incumbent: Sequence[Stage]) -> Solution:
        return solve_with_tied_weights(problem, self.tied_bytes, options=self.options, incumbent=incumbent)[1]

    def option(self, decision: Decision, stages: Sequence[Stage]) -> Option:
        problem = with_tied_weights(self.problem, self.tied_bytes) if len(stages) == 1 else self.problem
        try:
            result = evaluate(problem, stages)
            moves = self.weights.moves(stages) if result.is_feasible else ()
        except ValueError as error:
            return Option(decision=decision, breaks=str(error))
        if not result.is_feasible:
            return Option(decision=decision, breaks="; ".join(result.violations))
        move_s = self.weights.seconds(moves)
        return Option(
            decision=decision,
            stages=tuple(stages),
            objective_s=result.objective_s,
            moves=moves,
            move_s=move_s,
            total_s=move_s + self.runs * result.objective_s,
        )

    def best_option(self, decision: Decision, problem: Problem, best: Solution) -> Option:
        """Score the best plan of a problem and the best with moves charged as computing; return the faster one."""
        if not best.stages:
            return Option(decision=decision, breaks=str(best.reason))
        candidates = [self.option(decision, best.stages)]
        charge = self.weights.fetch_s() / self.runs
        # Weights that cannot arrive should not be chosen: their charge exceeds what all prompts compute.
        last_s, earlier_s = problem.layer_time_s, problem.layer_earlier_time_s
        most_s = last_s if earlier_s is None else np.maximum(last_s, earlier_s)
        spent_s = charge[np.isfinite(charge)].sum() + most_s.sum() + np.sum(stage_overhead_s(problem))
        charge[np.isinf(charge)] = 1 + 2 * spent_s
        charged = replace(
            problem,
            layer_time_s=last_s + charge,
            layer_earlier_time_s=None if earlier_s is None else earlier_s + charge,
        )
        sparing = self.solve(charged, best.stages)
        if sparing.stages:
            candidates.append(self.option(decision, sparing.stages))
        return min(candidates, key=lambda option: math.inf if option.total_s is None else option.total_s)


def _record(option: Option) -> dict[str, Any]:
    moves = [move.to_dict() for move in option.moves]
    return asdict(option) | {"stages": [stage.to_dict() for stage in option.stages], "moves": moves}


def _running_parts(running: Plan | HasStages | Sequence[Stage], problem: Problem) -> list[_Part]:
    """Return the running stages in the problem's terms. Raises ValueError for other layers."""
    if isinstance(running, Plan):
        parts = _parts_of_plan(running, problem)
    else:
        given: Any = running if isinstance(running, Sequence) else getattr(running, "stages", running)
        stages = tuple_of("running", given, Stage)
        names = [node.name for node in problem.nodes]
        for stage in stages:
            if not 0 <= stage.node < len(names):
                raise ValueError(f"a running stage is on node {stage.node}, the nodes are 0 to {len(names) - 1}")
            _check_weight_level(stage, problem)
        lost = problem.pins.forbidden
        parts = [
            _Part(None if s.node in lost else s.node, s.start, s.stop, s.level, names[s.node], s.weight_level)
            for s in stages
        ]
    if not parts or parts[-1].stop != len(problem.layers):
        end = parts[-1].stop if parts else 0
        raise ValueError(f"the running plan has {end} layers, the problem {len(problem.layers)}")
    return parts


def _check_weight_level(stage: Stage, problem: Problem) -> None:
    count = len(problem.weight_levels)
    if stage.weight_level not in (range(count) if count else (None,)):
        known = f"those of the problem are 0 to {count - 1}" if count else "the problem has none"
        raise ValueError(f"a running stage has weight level {stage.weight_level}, {known}")


def _parts_of_plan(plan: Plan, problem: Problem) -> list[_Part]:
    nodes: Mapping[str, int] = {node.name: n for n, node in enumerate(problem.nodes)}
    levels: Mapping[str, int] = {level.name: k for k, level in enumerate(problem.levels)}
    weights: dict[str | None, int | None] = {level.name: k for k, level in enumerate(problem.weight_levels)}
    # The plan's own weights are the level of its dtype's name, else the first; without levels there are no others.
    weights[None] = weights.get(plan.dtype, 0) if problem.weight_levels else None
    parts = []
    for k, stage in enumerate(plan.stages):
        node = nodes.get(stage.node)
        level = None if k == len(plan.stages) - 1 else levels.get(stage.codec or "raw", -1)
        is_lost = node is None or node in problem.pins.forbidden
        weight_level = weights.get(stage.weights, -1)
        parts.append(_Part(None if is_lost else node, stage.start, stage.stop, level, stage.node, weight_level))
    return parts


def _held(parts: Sequence[_Part], problem: Problem, stores: Sequence[int | str]) -> NDArray[np.bool_]:
    """Return which node has the weights of which layer at which weight level (W, N, L)."""
    names = [node.name for node in problem.nodes]
    held = np.zeros((max(1, len(problem.weight_levels)), len(names), len(problem.layers)), dtype=bool)
    for part in parts:
        if part.node is not None and part.weight_level != -1:
            held[part.weight_level or 0, part.node, part.start : part.stop] = True
    for i, store in enumerate(tuple_of("stores", stores)):
        node = index_of(f"stores[{i}]", store, names)
        if not 0 <= node < len(names):
            raise ValueError(f"stores[{i}] is {node}, the nodes are 0 to {len(names) - 1}")
        held[:, node] = True
    held[:, list(problem.pins.forbidden)] = False
    return held


def _keep(parts: Sequence[_Part], scorer: _Scorer) -> Option:
    lost = [part.name for part in parts if part.node is None]
    if lost:
        return Option(decision="keep", breaks=f"node {listed(lost)} is lost")
    if any(part.level == -1 for part in parts):
        return Option(decision="keep", breaks="the levels of the problem lack a codec of the plan")
    if any(part.weight_level == -1 for part in parts):
        return Option(decision="keep", breaks="the weight levels of the problem lack weights of the plan")
    stages = [Stage(part.node or 0, part.start, part.stop, part.level, part.weight_level) for part in parts]
    return scorer.option("keep", stages)


def _with_layers_pinned(parts: Sequence[_Part], problem: Problem) -> Problem:
    """Return the problem with every layer of a remaining node pinned to it, unless the problem pins it elsewhere.

    Such a layer also keeps its weight level: it does not have the others.
    """
    stay = {layer: p for p in parts if p.node is not None for layer in range(p.start, p.stop)}
    nodes = {layer: cast("int", part.node) for layer, part in stay.items()}
    pinned = replace(problem, pins=replace(problem.pins, layers={**nodes, **problem.pins.layers}))
    if problem.weight_loss is None:
        return pinned
    loss = problem.weight_loss.copy()
    for layer, part in stay.items():
        if part.weight_level != -1 and pinned.pins.layers[layer] == part.node:
            others = np.arange(len(loss)) != part.weight_level
            loss[others, layer] = math.inf
    return replace(pinned, weight_loss=loss)
