"""What to do with a running plan when nodes or links are lost or changed: keep, repair or replace it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orbitsplit._errors import InfeasiblePlanError
from orbitsplit._io.units import format_bytes, format_seconds
from orbitsplit._io.validation import array_of, index_of
from orbitsplit._planner.problem import HasStages, Problem, Solution, Stage, evaluate
from orbitsplit._planner.tied_weights import solve_with_one_copy, with_one_copy
from orbitsplit._planner.weight_transfer import Move, Weights

from .plan import Plan

Decision = Literal["keep", "repair", "replace"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to go on: the plan, what it takes each run, and the weights that must move first.

    `total_s` is `move_s` and all runs together. Where there is no such plan the numbers are None and `breaks` says
    why.
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
    """The option that takes least, and all options. No plan takes less than `lower_bound_s` for all runs."""

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
        """Return the stages to go on with."""
        return self.chosen.stages

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON-ready data."""
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
    max_nodes: int | None = None,
    tied_bytes: float = 0,
    time_limit_s: float | None = None,
) -> Replan:
    """Decide between keeping a running plan, repairing it and replacing it, charging for weights that must move.

    `problem` is what there is now: the nodes and links that are left (see `without`), with the speeds they have. A
    node that it forbids, or that a `Plan` names and it has not, is lost with its weights. *Keep* changes nothing.
    *Repair* leaves every layer of a remaining node where it is, finds a place for the others, and chooses levels
    anew. *Replace* starts from nothing. Both take the better of two plans: the best once all is in place, and the
    best when moving counts as computing. What goes on is where the next search starts (`incumbent` of `solve`).

    The option that takes least is chosen, in seconds to move and `runs` runs of the workload, so many as the
    situation is expected to last. Weights of layers, `layer_weight_bytes` (L,) or all of the problem's memory of
    the layer, come over the links, the quickest way, from nodes that ran the layer or from `stores`, nodes that
    keep all weights; with every node a store nothing moves. `max_nodes` as in `solve`, but for *keep*; `tied_bytes` as
    in `certificate`; each search takes at most `time_limit_s`.

    Raises:
        InfeasiblePlanError: Nothing can go on; the message says why for each option.
        ValueError: The plan has other layers than the problem, or a store does not exist.

    >>> answer = replan(plan, without(problem, nodes=["sat-1"]), runs=100)      # doctest: +SKIP
    >>> answer.decision, answer.stages                                          # doctest: +SKIP
    """
    if not (math.isfinite(runs) and runs > 0):
        raise ValueError(f"runs is {runs}, must be finite and above 0")
    parts = _running_parts(running, problem)
    sizes = problem.layer_memory_bytes if layer_weight_bytes is None else layer_weight_bytes
    weight_bytes = array_of("layer_weight_bytes", sizes, (len(problem.layers),))
    weights = Weights(problem, _held(parts, problem, stores), weight_bytes)
    scorer = _Scorer(problem, weights, runs, max_nodes, tied_bytes, time_limit_s)
    # Each way to go on is a start for the search of the next: what is kept is a repair, what is repaired a replacement.
    kept = _keep(parts, scorer)
    repaired = _repair(parts, problem)
    mended = scorer.solve(repaired, kept.stages)
    best = scorer.solve(problem, mended.stages)
    options = (
        kept,
        scorer.best_option("repair", repaired, mended),
        scorer.best_option("replace", problem, best),
    )
    possible = [option for option in options if option.total_s is not None]
    if not possible:
        reasons = "; ".join(f"{option.decision}: {option.breaks}" for option in options)
        raise InfeasiblePlanError(f"nothing can go on: {reasons}")
    chosen = min(possible, key=lambda option: cast("float", option.total_s))
    bound = runs * (best.lower_bound_s or 0.0)
    return Replan(decision=chosen.decision, options=options, runs=runs, lower_bound_s=bound)


@dataclass(frozen=True)
class _Part:
    """A stage of the running plan: `node` None is lost, `level` -1 is a codec that the problem has not."""

    node: int | None
    start: int
    stop: int
    level: int | None
    name: str


@dataclass(frozen=True)
class _Scorer:
    """Scores stages with what they take to get to."""

    problem: Problem
    weights: Weights
    runs: float
    max_nodes: int | None
    tied_bytes: float
    time_limit_s: float | None

    def solve(self, problem: Problem, incumbent: Sequence[Stage]) -> Solution:
        return solve_with_one_copy(
            problem,
            self.tied_bytes,
            max_nodes=self.max_nodes,
            time_limit_s=self.time_limit_s,
            incumbent=incumbent,
        )[1]

    def option(self, decision: Decision, stages: Sequence[Stage]) -> Option:
        problem = with_one_copy(self.problem, self.tied_bytes) if len(stages) == 1 else self.problem
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
        """Score the best plan of a problem and the best with moves charged as computing; return what takes less."""
        if not best.stages:
            return Option(decision=decision, breaks=str(best.reason))
        candidates = [self.option(decision, best.stages)]
        charge = self.weights.lacking_s() / self.runs
        # What cannot move must not be chosen: the stand-in exceeds every plan that can.
        charge[np.isinf(charge)] = 1 + 2 * (charge[np.isfinite(charge)].sum() + problem.layer_time_s.sum())
        sparing = self.solve(replace(problem, layer_time_s=problem.layer_time_s + charge), best.stages)
        if sparing.stages:
            candidates.append(self.option(decision, sparing.stages))
        return min(candidates, key=lambda option: math.inf if option.total_s is None else option.total_s)


def _record(option: Option) -> dict[str, Any]:
    return asdict(option) | {"stages": [stage._asdict() for stage in option.stages]}


def _running_parts(running: Plan | HasStages | Sequence[Stage], problem: Problem) -> list[_Part]:
    """Return the running stages in the problem's terms. Raises ValueError for other layers."""
    if isinstance(running, Plan):
        parts = _parts_of_plan(running, problem)
    else:
        stages = running if isinstance(running, Sequence) else running.stages
        names = [node.name for node in problem.nodes]
        for stage in stages:
            if not 0 <= stage.node < len(names):
                raise ValueError(f"a running stage is on node {stage.node}, the nodes are 0 to {len(names) - 1}")
        lost = problem.pins.forbidden
        parts = [_Part(None if s.node in lost else s.node, s.start, s.stop, s.level, names[s.node]) for s in stages]
    if not parts or parts[-1].stop != len(problem.layers):
        end = parts[-1].stop if parts else 0
        raise ValueError(f"the running plan has {end} layers, the problem {len(problem.layers)}")
    return parts


def _parts_of_plan(plan: Plan, problem: Problem) -> list[_Part]:
    nodes: Mapping[str, int] = {node.name: n for n, node in enumerate(problem.nodes)}
    levels: Mapping[str, int] = {level.name: k for k, level in enumerate(problem.levels)}
    parts = []
    for k, stage in enumerate(plan.stages):
        node = nodes.get(stage.node)
        level = None if k == len(plan.stages) - 1 else levels.get(stage.codec or "raw", -1)
        is_lost = node is None or node in problem.pins.forbidden
        parts.append(_Part(None if is_lost else node, stage.start, stage.stop, level, stage.node))
    return parts


def _held(parts: Sequence[_Part], problem: Problem, stores: Sequence[int | str]) -> NDArray[np.bool_]:
    """Return which node has the weights of which layer (N, L)."""
    names = [node.name for node in problem.nodes]
    held = np.zeros((len(names), len(problem.layers)), dtype=bool)
    for part in parts:
        if part.node is not None:
            held[part.node, part.start : part.stop] = True
    for i, store in enumerate(stores):
        node = index_of(f"stores[{i}]", store, names)
        if not 0 <= node < len(names):
            raise ValueError(f"stores[{i}] is {node}, the nodes are 0 to {len(names) - 1}")
        held[node] = True
    held[list(problem.pins.forbidden)] = False
    return held


def _keep(parts: Sequence[_Part], scorer: _Scorer) -> Option:
    lost = [part.name for part in parts if part.node is None]
    if lost:
        return Option(decision="keep", breaks=f"node {', '.join(lost)} is lost")
    if any(part.level == -1 for part in parts):
        return Option(decision="keep", breaks="the problem has not every codec of the plan among its levels")
    return scorer.option("keep", [Stage(part.node or 0, part.start, part.stop, part.level) for part in parts])


def _repair(parts: Sequence[_Part], problem: Problem) -> Problem:
    """Return the problem with every layer of a remaining node pinned to it, unless the problem pins it elsewhere."""
    stay = {layer: p.node for p in parts if p.node is not None for layer in range(p.start, p.stop)}
    return replace(problem, pins=replace(problem.pins, layers={**stay, **problem.pins.layers}))
