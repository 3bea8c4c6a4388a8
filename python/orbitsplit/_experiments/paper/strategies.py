"""How to do the job, with delay and bytes over links: on the ground, on one satellite, split by rule, planned.

Ground-only comes four ways. As the paper has it, raw images are relayed to the satellite in contact and go down, and
one batch is done before the next starts. The fair variants overlap all that; then also start at the satellite in
contact, or send what the model takes instead of raw images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orbitsplit._planner.baselines import min_max_split, proportional, single_node, uniform
from orbitsplit._planner.problem import Problem, Stage, evaluate
from orbitsplit._planner.solve import solve
from orbitsplit._planner.unsplit import unsplit

from .published import OUR_CODEC, TOP_K
from .setup import Setup

GROUND = "ground-only, as the paper"
GROUND_PIPELINED = "ground-only, pipelined"
GROUND_FAIR = "ground-only, pipelined, no relay hops"
GROUND_RESIZED = "ground-only, pipelined, resized on board"
SINGLE = "single satellite"
UNIFORM = "uniform split"
PROPORTIONAL = "proportional split"
MIN_MAX = "min-max split"
TOP = "planned, top-k"
SPLIT = "planned"
SPLIT_OURS = "planned, our codec"
ANY = "planned, server may take part"


@dataclass(frozen=True, slots=True)
class Way:
    """What one way takes: seconds for all batches, bytes over all links for one batch; or why it cannot be done.

    Bytes count once for every link they cross.
    """

    delay_s: float | None
    link_bytes: float | None = None
    stages: tuple[Stage, ...] = ()
    reason: str = ""


def ways(setup: Setup, names: Sequence[str] | None = None) -> dict[str, Way]:
    """Return what each way takes, by name; default: all of them."""
    return {name: WAYS[name](setup) for name in (WAYS if names is None else names)}


def ground(setup: Setup) -> Way:
    """Return ground-only as the paper has it: batch after batch."""
    one = ground_pipelined(setup.but(batches=1))
    return Way(None if one.delay_s is None else setup.batches * one.delay_s, one.link_bytes, reason=one.reason)


def ground_pipelined(setup: Setup, *, input_bytes: float | None = None) -> Way:
    """Return ground-only with links and server busy at the same time; `input_bytes` None: raw images."""
    found = unsplit(setup.problem_with_server(input_bytes=input_bytes), setup.server_index)
    if found.violations or not math.isfinite(found.total_s):
        return Way(None, reason="; ".join(found.violations) or "no path to the ground")
    size = setup.raw_bytes if input_bytes is None else input_bytes
    return Way(found.total_s, size * (setup.hops + 1))


def ground_fair(setup: Setup) -> Way:
    """Return ground-only with images taken where the ground is in contact."""
    return ground_pipelined(setup.but(hops=0))


def ground_resized(setup: Setup) -> Way:
    """Return ground-only with images made smaller before they are sent."""
    return ground_pipelined(setup, input_bytes=setup.input_bytes)


def planned(setup: Setup) -> Way:
    """Return the best plan on satellites."""
    return of_stages(setup, setup.problem(), _solved(setup.problem()))


def planned_with_server(setup: Setup) -> Way:
    """Return the best plan in which the server may take part, or ground-only where that is sooner."""
    problem = setup.problem_of_all()
    mixed = of_stages(setup, problem, _solved(problem))
    alone = ground_pipelined(setup)
    if mixed.delay_s is None or (alone.delay_s is not None and alone.delay_s <= mixed.delay_s):
        return Way(alone.delay_s, alone.link_bytes, (Stage(setup.server_index, 0, len(problem.layers)),), alone.reason)
    return mixed


def of_stages(setup: Setup, problem: Problem, stages: Sequence[Stage]) -> Way:
    """Return what given stages take, or which limit they break."""
    if not stages:
        return Way(None, reason=solve(problem).reason or "no plan")
    result = evaluate(problem, stages)
    if not result.is_feasible:
        return Way(None, stages=tuple(stages), reason="; ".join(result.violations))
    return Way(result.objective_s, _link_bytes(setup, problem, stages), tuple(stages))


def _by_rule(rule: Callable[[Problem], Sequence[Stage]]) -> Callable[[Setup], Way]:
    def way(setup: Setup) -> Way:
        problem = setup.problem()
        return of_stages(setup, problem, rule(problem))

    return way


def _solved(problem: Problem) -> Sequence[Stage]:
    return solve(problem, time_limit_s=10.0).stages


def _link_bytes(setup: Setup, problem: Problem, stages: Sequence[Stage]) -> float:
    """Return the bytes of one batch over all links, each counted once for every link it crosses."""
    server = setup.server_index
    first, last = stages[0].node, stages[-1].node
    total = setup.raw_bytes * (setup.hops + 1) if first == server else setup.input_bytes * first
    for stage, after in pairwise(stages):
        assert stage.level is not None
        size = float(problem.cut_bytes[stage.stop - 1]) / problem.levels[stage.level].ratio
        hops = abs(stage.node - setup.hops) + 1 if after.node == server else abs(stage.node - after.node)
        total += size * hops
    return total + (0.0 if last == server else setup.result_bytes * (abs(last - setup.hops) + 1))


WAYS: Mapping[str, Callable[[Setup], Way]] = {
    GROUND: ground,
    GROUND_PIPELINED: ground_pipelined,
    GROUND_FAIR: ground_fair,
    GROUND_RESIZED: ground_resized,
    SINGLE: _by_rule(single_node),
    UNIFORM: _by_rule(uniform),
    PROPORTIONAL: _by_rule(proportional),
    MIN_MAX: _by_rule(min_max_split),
    TOP: lambda setup: planned(setup.but(codec=TOP_K)),
    SPLIT: planned,
    SPLIT_OURS: lambda setup: planned(setup.but(codec=OUR_CODEC)),
    ANY: planned_with_server,
}
