"""What one session hands over to the next: which caches go from which worker to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._models.cache_state import LayerBytes
from orbitsplit._models.source import read_config
from orbitsplit._plans.migration import Context, cache_codec, cache_moves, overlaps
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.control import MovedGroup, Ready, Setup, WorkerMove

from .generation import GroupState
from .session import Session, Settings


@dataclass(frozen=True)
class HandOver:
    """The groups whose caches are moved from the stages of a session; those of others are made again by prefill."""

    before: Session | None = None
    groups: tuple[MovedGroup, ...] = ()

    def in_setup(self, setup: Setup, plan: Plan) -> Setup:
        """Return the setup of the next session with the moves, and the workers that only hand over."""
        if self.before is None or not self.groups:
            return setup
        old = dict(zip((stage.node for stage in self.before.plan.stages), self.before.workers, strict=True))
        new = dict(zip((stage.node for stage in plan.stages), setup.workers, strict=True))
        routes = {(move.start, move.stop): move for move in cache_moves(self.before.plan, plan)}
        moves = []
        for source, destination, start, stop in overlaps(self.before.plan, plan):
            if old[source.node] == new[destination.node]:
                continue
            route = routes.get((start, stop))
            links = () if route is None else tuple((link.bytes_per_s, link.latency_s) for link in route.links)
            nodes = (source.node,) if route is None else route.route
            codec = "raw" if route is None else cache_codec(plan.dtype, route.links)
            moves.append(WorkerMove(old[source.node], new[destination.node], start, stop, codec, links, nodes))
        leaving = {move.source for move in moves} - set(setup.workers)
        return replace(setup, leaving=tuple(sorted(leaving)), moves=tuple(moves), moved_groups=self.groups)

    def arrived(self, ready: Sequence[Ready]) -> set[int]:
        """Return the groups whose caches all stages have."""
        lost = {group for stage in ready for group in stage.lost_groups}
        return {group.id for group in self.groups} - lost


NO_HAND_OVER = HandOver()


def moved_groups(states: Sequence[GroupState]) -> tuple[MovedGroup, ...]:
    """Return what is moved of groups that all have new tokens: the caches of all tokens but the last."""
    groups = [state.remaining()[0] for state in states]
    return tuple(
        MovedGroup(one.id, one.rows, one.tokens - 1, one.tokens + one.max_new_tokens, one.draft_tokens)
        for one in groups
    )


def contexts_of(groups: Sequence[MovedGroup], states: Sequence[GroupState], *, exact_resume: bool) -> list[Context]:
    """Return what the cost model needs of the groups."""
    return [
        Context(group.rows, group.tokens, len(state.got) if exact_resume else 0)
        for group, state in zip(groups, states, strict=True)
    ]


def contexts_again(states: Sequence[GroupState], settings: Settings) -> list[Context]:
    """Return what the cost model needs of groups whose caches are not moved."""
    groups = [settings.resumed(state.remaining()[0], is_moved=False) for state in states]
    return [Context(group.rows, group.tokens, group.replayed) for group in groups]


def activation_bytes(model: str | Path, dtype: str) -> int:
    """Return the bytes of a token's activation between two stages."""
    width: int = getattr(read_config(model).get_text_config(decoder=True), "hidden_size", 0)
    return width * ITEM_BYTES[dtype]


def copied_bytes(before: Session, plan: Plan) -> list[int]:
    """Return for each stage of a plan the bytes of one group's caches, which are there twice while they are copied.

    The group is as large as those of the plan; 0 where caches cannot be moved.
    """
    tokens = plan.workload.prompt_tokens + plan.workload.new_tokens
    sizes = bytes_per_layer(before, [MovedGroup(0, plan.workload.batch_size, tokens, tokens, 0)])
    return [0 if sizes is None else round(sum(sizes[max(0, one.start - 1) : one.stop - 1])) for one in plan.stages]


def bytes_per_layer(before: Session, groups: Sequence[MovedGroup]) -> list[float] | None:
    """Return the bytes of the groups' caches by transformer layer, None if the caches of a stage cannot be moved."""
    sizes: list[float] = []
    for stage, ready in zip(before.plan.stages, before.ready, strict=True):
        layers = max(0, min(before.plan.layers - 1, stage.stop) - max(1, stage.start))
        if len(ready.cache_layers) != layers:
            return None
        sizes += [sum(LayerBytes(*one).of(group.rows, group.tokens) for group in groups) for one in ready.cache_layers]
    return sizes
