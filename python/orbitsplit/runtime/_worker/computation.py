"""The computation of a stage: forwards of its groups at the node's pace, with a KV cache for each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._models.kv_cache import rewind
from orbitsplit._models.stage import StageModel
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group

from .sampling import Sampler, greedy, greedy_run


@dataclass
class _Held:
    """The state of a group on a stage."""

    group: Group
    mask: Tensor
    cache: Cache | None
    pick: Callable[[Tensor], Tensor]
    pick_run: Callable[[Tensor, int], Tensor]


class Computation:
    """The computation of a stage; `name` is that of the stage in messages.

    `emit(group, outputs)` is called on the last stage with the outputs of groups that generate nothing, `ended(group)`
    with every group that has ended.
    """

    def __init__(
        self,
        name: str,
        model: StageModel,
        pace: Pace,
        emit: Callable[[int, dict[str, Tensor]], None],
        ended: Callable[[Group], None],
    ) -> None:
        self.name = name
        self._model = model
        self._pace = pace
        self._emit = emit
        self._ended = ended
        self._held: dict[int, _Held] = {}

    def begin(self, group: Group) -> None:
        """Allocate the state of a group, replacing the state it may have."""
        mask = group.attention_mask()
        cache, pick, pick_run = None, greedy, greedy_run
        if group.generates:
            most_tokens = group.tokens + group.max_new_tokens
            cache = self._model.new_cache(most_tokens, spare_tokens=group.draft_tokens)
            if group.sampling is not None and self._model.is_last:
                sampler = Sampler(group.sampling, group.rows)
                pick, pick_run = sampler.pick, sampler.pick_run
        if group.is_recorded:
            self._pace.recorder.begin(group.id)
        self._held[group.id] = _Held(group, mask, cache, pick, pick_run)

    def forward(self, group: int, step: int, x: Any) -> Tensor | None:
        """Return the stage's output activation [b, S, H], or on the last stage the new tokens [b]; see `Forward`."""
        held = self._held[group]
        if step > 0 and held.group.draft_tokens:
            work = self._checking(held, step, x)
        else:
            work = self._generating(held, step, x) if held.group.generates else self._forwarding(held, x)
        return self._pace.run("compute", group, step, work)

    def drop(self, group: int) -> None:
        """Drop the state of a group."""
        held = self._held.pop(group, None)
        if held is not None:
            self._ended(held.group)

    def _generating(self, held: _Held, step: int, x: Tensor) -> Callable[[], Tensor | None]:
        cache = held.cache
        assert cache is not None, "a group that generates has a cache"
        # Kernels of other shapes round differently. Where tokens are replayed, the prompts and each token run on their
        # own, so that keys, values and hidden states are those of before the loss, to the last bit.
        replayed = held.group.replayed if step == 0 else 0
        first = x.shape[1] - replayed
        stop_of_all = held.group.positions(step).stop
        stops = range(stop_of_all - replayed, stop_of_all + 1)
        if held.mask.shape[1] < stops[-1]:
            # It grows with the sequence: a request may allow far more new tokens than memory holds.
            held.mask = torch.cat([held.mask, torch.ones_like(held.mask)], dim=1)

        def work() -> Tensor | None:
            outputs = [
                self._model.forward(piece, held.mask[:, :stop], cache, without_head=step < 0 or stop < stops[-1])
                for piece, stop in zip(torch.split(x, [first] + [1] * replayed, dim=1), stops, strict=True)
            ]
            if self._model.is_last:
                return held.pick(outputs[-1]) if step >= 0 else None
            return torch.cat(outputs, dim=1) if replayed else outputs[0]

        return work

    def _checking(self, held: _Held, step: int, x: Tensor) -> Callable[[], Tensor | None]:
        """Run a token and guesses of those behind it; what earlier guesses left in the cache is taken back."""
        cache, tokens = held.cache, x.shape[1]
        assert cache is not None, "a group that generates has a cache"
        positions = held.group.positions(step, tokens)
        missing = positions.stop - held.mask.shape[1]
        if missing > 0:
            held.mask = torch.cat([held.mask, held.mask.new_ones(1, missing)], dim=1)

        def work() -> Tensor | None:
            rewind(cache, positions.start)
            output = self._model.forward(x, held.mask[:, : positions.stop], cache, logits_to_keep=tokens)
            if not self._model.is_last:
                return output
            return held.pick_run(output if tokens == 1 else output[0], step)

        return work

    def _forwarding(self, held: _Held, x: Any) -> Callable[[], Tensor]:
        def work() -> Tensor:
            inputs = x if self._model.is_first else held.group.placeholders()
            if "attention_mask" in inputs and not self._model.is_first:
                inputs["attention_mask"] = held.mask.to(inputs["attention_mask"].dtype)
            output = self._model.forward_once(None if self._model.is_first else x, inputs)
            if isinstance(output, Tensor):
                return output
            self._emit(held.group.id, output)
            return torch.zeros(0, dtype=torch.int64)

        return work
