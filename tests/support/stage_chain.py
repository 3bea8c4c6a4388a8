"""Stages in one process, without links."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._models.stage import StageModel
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._worker.computation import Computation


class Chain:
    """A chain of stages; a new one has no caches."""

    def __init__(self, stages: list[StageModel]) -> None:
        self._stages = stages
        self._held: list[dict[int, Cache]] = []
        self._computations = []
        for stage in stages:
            held: dict[int, Cache] = {}
            self._held.append(held)
            self._computations.append(
                Computation("it", Kept(stage, held), Pace(Recorder()), lambda *_: None, lambda _: None)  # type: ignore[arg-type]
            )

    def run(self, group: Group, x: Tensor, steps: int) -> Tensor:
        """Begin a group and make so many tokens; return them [b, steps]."""
        made: list[Tensor] = []
        for computation in self._computations:
            computation.begin(group)
        for step in range(group.first_step, steps):
            positions = group.positions(step)
            y: Tensor | None = made[-1][:, None] if step > 0 else x[:, positions.start : positions.stop].contiguous()
            for computation in self._computations:
                assert y is not None, "only the last stage may return nothing"
                y = computation.forward(group.id, step, y)
            assert (y is None) == (step < 0)
            made += [] if y is None else [y]
        return torch.stack(made, dim=1)

    def cached(self) -> list[Tensor]:
        """Return keys and values of all layers, in order."""
        caches = [cache for held in self._held for cache in held.values()]
        states = [state for cache in caches for layer in cache.layers for state in (layer.keys, layer.values)]
        return [state for state in states if state.dtype == torch.float32]  # those of other stages are stand-ins


class Kept:
    """A stage whose caches a test can look into."""

    def __init__(self, stage: StageModel, held: dict[int, Cache]) -> None:
        self._stage = stage
        self._held = held

    def __getattr__(self, name: str) -> object:
        return getattr(self._stage, name)

    def new_cache(self, most_tokens: int, *, spare_tokens: int) -> Cache:
        cache = self._stage.new_cache(most_tokens, spare_tokens=spare_tokens)
        self._held[len(self._held)] = cache
        return cache
