"""The strategies, with delay and bytes over links: ground-only, one satellite, heuristic baselines, the best plan.

Ground-only has four variants. In the paper's, raw images are relayed to the satellite in contact and go down, and one
batch ends before the next starts. The fair variants overlap these steps; then also start at the satellite in contact,
or send the model's input instead of raw images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orbitsplit._planner.baselines import min_max_split, proportional, single_node, uniform
from orbitsplit._planner.problem import Problem, evaluate
from orbitsplit._planner.problem_parts import Stage
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
class Result:
    """The cost of a strategy: seconds for all batches, bytes over all links for one batch; or why it is not possible.

    Bytes count once for every link they cross.
    """

    delay_s: float | None
    link_bytes: float | None = None
    stages: tuple[Stage, ...] = ()
    reason: str = ""


def results(setup: Setup, names: Sequence[str] | None = None) -> dict[str, Result]:
    """Return the results of strategies by name; default: all of them."""
    return {name: STRATEGIES[name](setup) for name in (STRATEGIES if names is None else names)}


def ground(setup: Setup) -> Result:
    """Return ground-only as in the paper: batch after batch."""
    one = ground_pipelined(setup.varied(batches=1))
    return Result(None if one.delay_s is None else setup.batches * one.delay_s, one.link_bytes, reason=one.reason)


def ground_pipelined(setup: Setup, *, input_bytes: float | None = None) -> Result:
    """Return ground-only with links and server busy at the same time; `input_bytes` None: raw images."""
    found = unsplit(setup.problem_with_server(input_bytes=input_bytes), setup.server_index)
    if found.violations or not math.isfinite(found.total_s):
        return Result(None, reason="; ".join(found.violations) or "no path to the ground")
    size = setup.raw_bytes if input_bytes is None else input_bytes
    return Result(found.total_s, size * (setup.hops + 1))


def ground_fair(setup: Setup) -> Result:
    """Return ground-only with images taken where the ground is in contact."""
    return ground_pipelined(setup.varied(hops=0))


def ground_resized(setup: Setup) -> Result:
    """Return ground-only with images resized before they are sent."""
    return ground_pipelined(setup, input_bytes=setup.input_bytes)


def planned(setup: Setup) -> Result:
    """Return the best plan on satellites."""
    return of_stages(setup, setup.problem(), _solved(setup.problem()))


def planned_with_server(setup: Setup) -> Result:
    """Return the best plan in which the server may take part, or ground-only if that is faster."""
    problem = setup.problem_of_all()
    mixed = of_stages(setup, problem, _solved(problem))
    alone = ground_pipelined(setup)
    if mixed.delay_s is None or (alone.delay_s is not None and alone.delay_s <= mixed.delay_s):
        return Result(
            alone.delay_s, alone.link_bytes, (Stage(setup.server_index, 0, len(problem.layers)),), alone.reason
        )
    return mixed


def of_stages(setup: Setup, problem: Problem, stages: Sequence[Stage]) -> Result:
    """Return the cost of given stages, or the limit that they violate."""
    if not stages:
        return Result(None, reason=solve(problem).reason or "no plan")
    result = evaluate(problem, stages)
    if not result.is_feasible:
        return Result(None, stages=tuple(stages), reason="; ".join(result.violations))
    return Result(result.objective_s, _link_bytes(setup, problem, stages), tuple(stages))


def _baseline(split: Callable[[Problem], Sequence[Stage]]) -> Callable[[Setup], Result]:
    """Return the strategy of a heuristic baseline."""

    def strategy(setup: Setup) -> Result:
        problem = setup.problem()
        return of_stages(setup, problem, split(problem))

    return strategy


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


STRATEGIES: Mapping[str, Callable[[Setup], Result]] = {
    GROUND: ground,
    GROUND_PIPELINED: ground_pipelined,
    GROUND_FAIR: ground_fair,
    GROUND_RESIZED: ground_resized,
    SINGLE: _baseline(single_node),
    UNIFORM: _baseline(uniform),
    PROPORTIONAL: _baseline(proportional),
    MIN_MAX: _baseline(min_max_split),
    TOP: lambda setup: planned(setup.varied(codec=TOP_K)),
    SPLIT: planned,
    SPLIT_OURS: lambda setup: planned(setup.varied(codec=OUR_CODEC)),
    ANY: planned_with_server,
}
