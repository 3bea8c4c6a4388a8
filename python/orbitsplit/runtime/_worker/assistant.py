"""The assistant: a small model beside the first stage, which guesses the next tokens of each text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._models.kv_cache import rewind
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.positions import position_limit
from orbitsplit._models.source import read_config
from orbitsplit._models.stage import StageModel
from orbitsplit._profiling.workload import Workload
from orbitsplit.runtime._drafts import Drafts, PromptLookup
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Group


def load_assistant(model: str | Path, *, dtype: torch.dtype, device: str) -> StageModel:
    """Load all layers of a model. Raises as `StageModel.load`, and ValueError where tokens cannot be taken back."""
    layers = find_layout(read_config(model)).layer_count + 2
    loaded = StageModel.load(model, 0, layers, dtype=dtype, device=device)
    if not loaded.runs_chunks():
        raise ValueError(f"assistant_model {model} gives other results for several tokens at once than one by one")
    return loaded


def with_assistant(ready: Ready, assistant: StageModel, workload: Workload) -> Ready:
    """Return what a stage reports when it is ready, with the memory of the assistant beside it."""
    cache_bytes = assistant.cache_bytes_per_token()
    tokens = workload.sequences * (workload.prompt_tokens + workload.new_tokens)
    own_bytes = assistant.weight_bytes + tokens * cache_bytes
    return replace(
        ready,
        weight_bytes=ready.weight_bytes + own_bytes,
        cache_bytes_per_token=ready.cache_bytes_per_token + cache_bytes,
        assistant_bytes=own_bytes,
    )


class Assistant:
    """Makes what guesses the tokens of groups: the model for those that use it, at the pace of the node, or lookup."""

    def __init__(self, model: StageModel | None, pace: Pace) -> None:
        self._model = model
        self._pace = pace
        self._positions = None if model is None else position_limit(model)

    def drafts(self, group: Group, tokens: Tensor) -> Drafts:
        """Return the guesses of a group of one row, from its tokens [S] so far."""
        if not group.uses_assistant:
            return PromptLookup(tokens.tolist())
        assert self._model is not None, "the parent refuses groups that use an assistant where there is none"
        text = tokens[group.attention_mask()[0] != 0].tolist()
        return ModelDrafts(self._model, self._pace, group, text, positions=self._positions)


class ModelDrafts:
    """A model's likeliest next tokens of one text, from a cache of its own that keeps what turned out right.

    The text runs through the model when a guess needs it. `positions` is the size of the model's table of positions,
    None without one: beyond it there are no guesses.
    """

    def __init__(
        self, model: StageModel, pace: Pace, group: Group, text: Sequence[int], *, positions: int | None
    ) -> None:
        self._model = model
        self._pace = pace
        self._group = group
        self._positions = positions
        self._text = list(text)
        self._appended = 0
        self._cache: Cache | None = None
        # How many tokens of the text are in the cache, and guesses behind them that are there as well.
        self._cached = 0
        self._guessed: deque[int] = deque()

    @property
    def behind(self) -> int:
        """How many tokens of the text are not in the cache."""
        return len(self._text) - self._cached

    def append(self, token: int) -> None:
        """Add the next token of the text."""
        if self._guessed and self._guessed[0] == token:
            self._guessed.popleft()
            self._cached += 1
        else:
            self._guessed.clear()
        self._text.append(token)
        self._appended += 1

    def catch_up(self) -> None:
        """Run all tokens of the text but the last."""
        if self._has_room(1):
            self._pace.run("compute", self._group.id, self._appended, self._run_text)

    def guess(self, count: int) -> list[int]:
        """Return up to `count` likeliest tokens, each behind those before; fewer if one of them ends the text."""
        while count > 0 and not self._has_room(count):
            count -= 1
        if count <= 0:
            return []
        return self._pace.run("compute", self._group.id, self._appended, lambda: self._guess(count))

    def _has_room(self, guesses: int) -> bool:
        """Whether the model has positions for the text and so many guesses, of which the last does not run."""
        return self._positions is None or len(self._text) + guesses - 1 <= self._positions

    def _run_text(self) -> None:
        missing = self._text[self._cached : -1]
        self._forward(missing, self._cached, without_head=True)
        self._cached += len(missing)

    def _guess(self, count: int) -> list[int]:
        tokens, start, guesses = self._text[self._cached :], self._cached, list[int]()
        while len(guesses) < count and not (guesses and guesses[-1] in self._group.eos_token_ids):
            logits = self._forward(tokens, start)
            start += len(tokens)
            tokens = [int(logits.argmax())]
            guesses += tokens
        self._cached, self._guessed = len(self._text), deque(guesses[:-1])
        return guesses

    def _forward(self, tokens: list[int], start: int, *, without_head: bool = False) -> Tensor:
        """Run tokens at the positions from `start` on, and take back what the cache has from there."""
        if self._cache is None:
            most_tokens = self._group.tokens + self._group.max_new_tokens
            self._cache = self._model.new_cache(most_tokens, spare_tokens=self._group.draft_tokens)
        rewind(self._cache, start)
        mask = torch.ones(1, start + len(tokens), dtype=torch.int64)
        return self._model.forward(torch.tensor([tokens]), mask, self._cache, without_head=without_head)
