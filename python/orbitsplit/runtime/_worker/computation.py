"""The computation of a stage: forwards of its groups at the node's pace, with a KV cache for each group."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._models.kv_cache import copy_first_tokens, has_first_tokens, restore, rewind, saved
from orbitsplit._models.stage import StageModel
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.packs import Part
from orbitsplit.runtime._schedule.protocol import PackResult, error_of

from .sampling import Greedy, Picker, Scoring, picker_of


@dataclass
class _Held:
    """The state of a group on a stage."""

    group: Group
    mask: Tensor
    cache: Cache | None
    picker: Picker
    encoder_mask: Tensor | None

    def mask_of(self, tokens: int) -> Tensor:
        """Return the mask [b, tokens] of as many tokens; those after the prompt are no padding."""
        missing = tokens - self.mask.shape[1]
        if missing > 0:
            # It grows with the sequence: a request may allow far more new tokens than memory holds.
            room = max(missing, self.mask.shape[1])
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), room)], dim=1)
        return self.mask[:, :tokens]

    def pick_tokens(self, logits: Tensor, step: int) -> Tensor:
        """Return the tokens [n] of a step of one row from the logits [n, V] at its positions; with details [n, w]."""
        return self.picker.pick_run(logits, step) if self.group.draft_tokens else self.picker.pick(logits, step)


class Computation:
    """The computation of a stage; `name` is that of the stage in messages.

    `emit(group, outputs)` is called on the last stage with the outputs of groups that generate nothing, `ended(group)`
    with every group that has ended. The plan has `planned_rows` in each group, and `planned_tokens` of each in a step.
    """

    def __init__(
        self,
        name: str,
        model: StageModel,
        pace: Pace,
        emit: Callable[[int, dict[str, Tensor]], None],
        ended: Callable[[Group], None],
        *,
        planned_rows: int = 1,
        planned_tokens: int = 1,
    ) -> None:
        self.name = name
        self._planned = planned_rows, planned_tokens
        self._model = model
        self._pace = pace
        self._emit = emit
        self._ended = ended
        self._held: dict[int, _Held] = {}
        self._kept: dict[int, Cache] = {}
        self._moved: dict[int, Cache] = {}

    def take_over(self, caches: Mapping[int, Cache]) -> None:
        """Take the caches of groups that are moved, which begin next."""
        self._moved = dict(caches)

    def caches(self) -> dict[int, Cache]:
        """Return the caches of the groups that have begun."""
        return {group: held.cache for group, held in self._held.items() if held.cache is not None}

    def begin(self, group: Group) -> None:
        """Allocate the state of a group, replacing the state it may have."""
        mask = group.attention_mask()
        cache: Cache | None = None
        picker: Picker = Greedy()
        if group.generates:
            most_tokens = group.tokens + group.max_new_tokens
            found = self._moved.pop(group.id, None)
            if found is not None and group.is_moved:
                cache = found
            else:
                cache = self._model.new_cache(most_tokens, spare_tokens=group.draft_tokens)
            if group.prefix_of is not None:
                copy_first_tokens(self._kept[group.prefix_of], group.known_tokens, cache)
            if self._model.is_last:
                picker = picker_of(group)
        if group.is_recorded:
            self._pace.recorder.begin(group.id)
        self._held[group.id] = _Held(group, mask, cache, picker, group.encoder_mask())

    def forward(self, group: int, step: int, x: Any) -> Tensor | None:
        """Return the stage's output activation [b, S, H], or on the last stage the new tokens [b]; see `Forward`."""
        held = self._held[group]
        is_planned = step > 0 and (held.group.rows, x.shape[1]) == self._planned
        return self._pace.run("compute", group, step, self._work(held, step, x), is_planned=is_planned)

    def forward_pack(self, parts: Sequence[Part], x: Tensor) -> PackResult:
        """Run steps of several groups in one forward; see `Forward`.

        If it raises, each group runs alone: an error ends the groups that it is of, and no other.
        """
        helds = [self._held[part.group] for part in parts]
        is_planned = all(part.tokens == self._planned[1] for part in parts)  # the pace counts the rows
        return self._pace.run_shared("compute", parts, lambda: self._packed(parts, helds, x), is_planned=is_planned)

    def keep(self, group: int, tokens: int) -> None:
        """Drop the state of a group, but keep the cache of its first tokens."""
        cache = _cache_of(self._held[group])
        rewind(cache, tokens)
        self._kept[group] = cache
        self.drop(group)

    def has_kept(self, group: int, tokens: int) -> bool:
        """Whether the kept cache of a group has what its first tokens need."""
        return has_first_tokens(self._kept[group], tokens)

    def forget(self, group: int) -> None:
        """Drop the kept cache of a group."""
        self._kept.pop(group, None)

    def _packed(self, parts: Sequence[Part], helds: Sequence[_Held], x: Tensor) -> PackResult:
        caches = [_cache_of(held) for held in helds]
        starts = [held.group.positions(part.step).start for part, held in zip(parts, helds, strict=True)]
        for held, cache, start in zip(helds, caches, starts, strict=True):
            if held.group.draft_tokens:
                rewind(cache, start)
        before = [saved(cache) for cache in caches]
        sizes = [part.tokens for part in parts]
        outputs: list[Tensor] = []

        def work() -> None:
            logits_at = range(x.shape[1]) if self._model.is_last else ()
            outputs.append(self._model.forward_packed(x, caches, starts, sizes, logits_at=logits_at))

        if error_of(self, work) is None:
            output = outputs[0]
            if not self._model.is_last:
                return PackResult(output, tuple(parts), {})
            logits = zip(parts, helds, torch.split(output, sizes), strict=True)
            return self._each(
                parts, [functools.partial(held.pick_tokens, own, part.step) for part, held, own in logits]
            )
        for cache, state in zip(caches, before, strict=True):
            restore(cache, state)
        inputs = zip(parts, helds, torch.split(x, sizes, dim=1), strict=True)
        return self._each(parts, [self._work(held, part.step, own.contiguous()) for part, held, own in inputs])

    def _each(self, parts: Sequence[Part], works: Sequence[Callable[[], Tensor | None]]) -> PackResult:
        """Do the work of each group by itself; one that raises an error has no output."""
        outputs: list[Tensor] = []
        left: list[Part] = []
        errors: dict[int, str] = {}
        for part, work in zip(parts, works, strict=True):
            error = error_of(self, functools.partial(_append, outputs, work))
            if error is None:
                left.append(part)
            else:
                errors[part.group] = error
        if not outputs:
            output = torch.empty(0)
        else:
            output = _joined(outputs) if self._model.is_last else torch.cat(outputs, dim=1)
        return PackResult(output, tuple(left), errors)

    def _work(self, held: _Held, step: int, x: Any) -> Callable[[], Tensor | None]:
        if step > 0 and held.group.draft_tokens:
            return self._checking(held, step, x)
        if held.group.has_encoder:
            return self._translating(held, step, x)
        return self._generating(held, step, x) if held.group.generates else self._forwarding(held, x)

    def drop(self, group: int) -> None:
        """Drop the state of a group."""
        self._moved.pop(group, None)
        held = self._held.pop(group, None)
        if held is not None:
            self._ended(held.group)

    def _generating(self, held: _Held, step: int, x: Any) -> Callable[[], Tensor | None]:
        images: dict[str, Tensor] = {}
        if not isinstance(x, Tensor):
            images = {name: value for name, value in x.items() if name != "input_ids"}
            x = x["input_ids"]
        # Kernels of other shapes round differently. Where tokens are replayed, the prompts and each token run on their
        # own, so that keys, values and hidden states are those of before the loss, to the last bit.
        replayed = held.group.replayed if step == 0 else 0
        first = x.shape[1] - replayed
        stop_of_all = held.group.positions(step).stop
        stops = range(stop_of_all - replayed, stop_of_all + 1)

        def work() -> Tensor | None:
            pieces = torch.split(x, [first] + [1] * replayed, dim=1)
            ends = zip(pieces, stops, strict=True)
            outputs = [self._piece(held, step, piece, stop, stops[-1], images) for piece, stop in ends]
            if self._model.is_last:
                return held.picker.pick(outputs[-1], step) if step >= 0 else None
            return torch.cat(outputs, dim=1) if replayed else outputs[0]

        return work

    def _translating(self, held: _Held, step: int, x: Any) -> Callable[[], Tensor]:
        """Run a step of a model with an encoder, which runs in step 0 alone."""
        model, group, cache = self._model.encoder_decoder, held.group, _cache_of(held)
        assert model is not None, "the group was made for such a model"

        def work() -> Tensor:
            if step > 0:
                output = model.forward_step(x, held.encoder_mask, cache)
            else:
                inputs = group.encoder_inputs({} if isinstance(x, Tensor) else x)
                own = x if isinstance(x, Tensor) else None
                output = model.forward_prompt(own, inputs, group.input_ids(), cache, replayed=group.replayed)
            return held.picker.pick(output, step) if self._model.is_last else output

        return work

    def _piece(
        self, held: _Held, step: int, x: Tensor, stop: int, last_stop: int, images: Mapping[str, Tensor]
    ) -> Tensor:
        """Run some tokens of a step, up to the position `stop`; return logits only of the last position of a prompt.

        The tokens of a prompt, which come first, may have `images`.
        """
        cache, mask, details = _cache_of(held), held.mask_of(stop), held.group.details
        beside = held.group.beside_tokens(stop - x.shape[1], stop)
        if beside is not None and stop == x.shape[1]:
            beside |= images
        if self._model.is_last and step <= 0 and details is not None and details.prompt_logprobs is not None:
            logits = self._model.forward(x, mask, cache, logits_to_keep=x.shape[1], beside=beside)
            logits = logits if logits.dim() == 3 else logits[:, None]
            assert isinstance(held.picker, Scoring), "greedy groups have no details"
            held.picker.read_prompt(logits, stop - x.shape[1])
            return logits[:, -1]
        without_head = step < 0 or stop < last_stop
        return self._model.forward(x, mask, cache, without_head=without_head, beside=beside)

    def _checking(self, held: _Held, step: int, x: Tensor) -> Callable[[], Tensor | None]:
        """Run a token and guesses of those behind it; what earlier guesses left in the cache is taken back."""
        cache, tokens = _cache_of(held), x.shape[1]
        positions = held.group.positions(step, tokens)

        def work() -> Tensor | None:
            rewind(cache, positions.start)
            output = self._model.forward(x, held.mask_of(positions.stop), cache, logits_to_keep=tokens)
            if not self._model.is_last:
                return output
            return held.pick_tokens(output if tokens == 1 else output[0], step)

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


def _cache_of(held: _Held) -> Cache:
    assert held.cache is not None, "a group that generates has a cache"
    return held.cache


def _joined(tokens: Sequence[Tensor]) -> Tensor:
    """Return tokens [n] of several groups one after the other; where some have details, those of others are 0."""
    if all(own.dim() == 1 for own in tokens):
        return torch.cat(list(tokens))
    rows = [own[:, None] if own.dim() == 1 else own for own in tokens]
    width = max(own.shape[1] for own in rows)
    return torch.cat([torch.nn.functional.pad(own, (0, width - own.shape[1])) for own in rows])


def _append(outputs: list[Tensor], work: Callable[[], Tensor | None]) -> None:
    output = work()
    assert output is not None, "steps above 0 have results"
    outputs.append(output)
