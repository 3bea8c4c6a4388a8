"""Which of several equally good candidates each request takes, so that the fewest hand-overs are needed in total.

A pipeline runs one plan at a time. What runs next on other stages needs a hand-over, and what would start before its
predecessor ends waits. Choices are counted exactly: requests are taken in order of time, and of all choices so far that
leave the same runs to come and the same stages in place, one of least cost is kept (dynamic programming).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from orbitsplit._plans.plan import Plan

from .strategies import Candidate

# Bounds what is kept where many requests wait for one pass, each with many candidates.
_MOST_STATES = 100_000
_TOLERANCE_S = 1e-6

# Which stages run which layers, with which codecs.
Layout: TypeAlias = tuple[tuple[object, ...], ...]


class Run(NamedTuple):
    """A plan that runs from `start_s` to `stop_s`."""

    start_s: float
    stop_s: float
    layout: Layout


class Cost(NamedTuple):
    """What choices cost, the most important first: runs that wait for another, hand-overs, completion times."""

    waiting: int
    handovers: int
    completions_s: float


@dataclass(frozen=True, slots=True)
class _State:
    """The last run that has started, the runs to come in order, and the choices that led there at least cost."""

    layout: Layout | None
    stop_s: float
    pending: tuple[Run, ...]
    cost: Cost
    chosen: tuple[int, ...]


def layout_of(plan: Plan) -> Layout:
    """Return what two plans have in common if one can follow the other without a hand-over."""
    return tuple(
        (stage.node, stage.start, stage.stop, stage.codec, stage.codebook_level, stage.weights) for stage in plan.stages
    )


def runs_of(candidate: Candidate) -> tuple[Run, ...]:
    """Return the runs of a candidate in order: two where a generation is relayed."""
    start_s, stop_s = candidate.compute_s
    own, then = layout_of(candidate.plan), candidate.resumption
    if then is None:
        return (Run(start_s, stop_s, own),)
    return Run(start_s, then.at_s, own), Run(then.at_s, stop_s, layout_of(then.plan))


def fewest_handovers(begins_s: Sequence[float], options: Sequence[Sequence[Candidate]]) -> tuple[int, ...]:
    """Return the index of the candidate that each request takes, of `options` in order of the requests' `begins_s`.

    No candidate of a request computes before the request begins.

    Raises:
        ValueError: More choices than can be kept would have to be compared.
    """
    states = [_State(None, 0.0, (), Cost(0, 0, 0.0), ())]
    for begin_s, candidates in zip(begins_s, options, strict=True):
        best: dict[tuple[object, ...], _State] = {}
        for state in states:
            settled = _settled(state, begin_s)
            for k, candidate in enumerate(candidates):
                after = _with_candidate(settled, k, candidate)
                key = (after.layout, after.stop_s, after.pending)
                if key not in best or after.cost < best[key].cost:
                    best[key] = after
        if len(best) > _MOST_STATES:
            raise ValueError(
                f"{len(best):,} choices of candidates would have to be compared, at most {_MOST_STATES:,} are: "
                "plan fewer requests at a time, or with less slack"
            )
        states = list(best.values())
    return min((_settled(state, float("inf")) for state in states), key=lambda state: state.cost).chosen


def _with_candidate(state: _State, k: int, candidate: Candidate) -> _State:
    cost = state.cost._replace(completions_s=state.cost.completions_s + candidate.completion_s)
    pending = tuple(sorted((*state.pending, *runs_of(candidate))))
    return replace(state, pending=pending, cost=cost, chosen=(*state.chosen, k))


def _settled(state: _State, until_s: float) -> _State:
    """Return the state after the runs that start before `until_s`: their order cannot change any more."""
    layout, stop_s, cost = state.layout, state.stop_s, state.cost
    count = 0
    for run in state.pending:
        if run.start_s >= until_s:
            break
        cost = cost._replace(
            waiting=cost.waiting + (run.start_s < stop_s - _TOLERANCE_S),
            handovers=cost.handovers + (layout is not None and run.layout != layout),
        )
        layout, stop_s = run.layout, max(stop_s, run.stop_s)
        count += 1
    return replace(state, layout=layout, stop_s=stop_s, pending=state.pending[count:], cost=cost)
