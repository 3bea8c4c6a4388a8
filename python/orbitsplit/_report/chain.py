"""The chain of stages that a report draws, of a plan or of a solved problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orbitsplit._planner.problem import Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import layer_range


@dataclass(frozen=True, kw_only=True)
class Link:
    """The way from one stage to the next: its rate (None: not limited), latency, and what encodes the activation."""

    bytes_per_s: float | None
    latency_s: float
    codec: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages in order, with the seconds and bytes that the cost model predicts; tuples are empty where unknown."""

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    links: tuple[Link, ...]
    memory_bytes: tuple[float, ...] = ()
    memory_limit_bytes: tuple[float | None, ...] = ()
    stage_s: tuple[float, ...] = ()
    link_s: tuple[float, ...] = ()
    decode_stage_s: tuple[float, ...] = ()
    decode_link_s: tuple[float, ...] = ()

    @property
    def link_names(self) -> tuple[str, ...]:
        """The name of each link, "a -> b"."""
        return tuple(f"{a} \N{RIGHTWARDS ARROW} {b}" for a, b in pairwise(self.nodes))


def chain_of_plan(plan: Plan) -> Chain:
    """Return the chain of a plan."""
    known = plan.prediction
    return Chain(
        nodes=tuple(stage.node for stage in plan.stages),
        layers=tuple(
            f"layers {layer_range(stage, plan.layers)}" + (f", {stage.weights}" if stage.weights else "")
            for stage in plan.stages
        ),
        links=tuple(
            Link(bytes_per_s=link.bytes_per_s, latency_s=link.latency_s, codec=stage.codec or "not compressed")
            for stage, link in zip(plan.stages, plan.links, strict=False)
        ),
        memory_bytes=() if known is None else known.stage_memory_bytes,
        memory_limit_bytes=tuple(stage.memory_bytes for stage in plan.stages),
        stage_s=() if known is None else known.steady_stage_s,
        link_s=() if known is None else known.link_s,
        decode_stage_s=() if known is None else known.decode_stage_s,
        decode_link_s=() if known is None else known.decode_link_s,
    )


def chain_of_problem(problem: Problem, stages: Sequence[Stage]) -> Chain:
    """Return the chain of a solution of a problem."""
    found = evaluate(problem, stages)
    nodes = [problem.nodes[stage.node] for stage in stages]
    return Chain(
        nodes=tuple(node.name for node in nodes),
        layers=tuple(_layers(problem, stage) for stage in stages),
        links=tuple(
            Link(
                bytes_per_s=float(problem.bandwidth_bytes_per_s[a.node, b.node]),
                latency_s=float(problem.latency_s[a.node, b.node]),
                codec="not compressed" if a.level is None else problem.levels[a.level].name,
            )
            for a, b in pairwise(stages)
        ),
        memory_bytes=found.stage_memory_bytes,
        memory_limit_bytes=tuple(node.memory_bytes - node.headroom_bytes for node in nodes),
        stage_s=found.earlier_stage_s or found.stage_s,
        link_s=found.link_s,
        decode_stage_s=found.decode_stage_s,
        decode_link_s=found.decode_link_s,
    )


def _layers(problem: Problem, stage: Stage) -> str:
    weights = "" if stage.weight_level is None else f", {problem.weight_levels[stage.weight_level].name}"
    return f"layers {stage.start}-{stage.stop - 1}{weights}"
