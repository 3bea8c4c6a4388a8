"""Trials of a stage: forwards of examples, which show whether it runs, and what it may do.

No other stage takes part: one past the first receives a hidden state that is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .encoder_decoder_stage import EncoderDecoderStage
from .source import example_inputs

# How much outputs may differ from those of the same tokens in other forwards, relative to the largest: other shapes
# round differently, and a wrong mask or position changes more.
_TOLERANCE = {torch.float32: 1e-4}
_HALF_TOLERANCE = 0.05


class Stage(Protocol):
    """What trials need of a stage, see `StageModel`."""

    model: PreTrainedModel
    config: PreTrainedConfig
    hidden_size: int
    image_tokens: int | None
    generates: bool
    encoder_decoder: EncoderDecoderStage | None

    @property
    def is_first(self) -> bool:
        """Whether it starts with the embeddings."""

    @property
    def is_last(self) -> bool:
        """Whether it ends with the head."""

    def new_cache(self) -> Cache:
        """Return an empty KV cache."""

    def forward(self, x: Tensor, attention_mask: Tensor, cache: Cache, *, without_head: bool = False) -> Tensor:
        """Run new tokens and extend the cache."""

    def forward_packed(
        self,
        x: Tensor,
        caches: Sequence[Cache],
        starts: Sequence[int],
        sizes: Sequence[int],
        *,
        logits_at: Sequence[int] = (),
    ) -> Tensor:
        """Run new tokens of several sequences and extend their caches."""

    def forward_once(self, x: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Run whole sequences or images without a cache."""


def chunks_agree(stage: Stage) -> bool:
    """Whether a padded prompt in two chunks gives what it gives as a whole."""
    rows, first, tokens = 2, 4, 7
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[1, :2] = 0
    x = _example(stage, rows, tokens)
    whole = stage.forward(x, mask, stage.new_cache())
    cache = stage.new_cache()
    stage.forward(x[:, :first], mask[:, :first], cache, without_head=True)
    try:
        last = stage.forward(x[:, first:], mask, cache)
    except Exception:  # whatever a model's own code makes of several tokens behind others
        return False
    return _is_close(stage, last, whole if stage.is_last else whole[:, first:])


def packs_agree(stage: Stage) -> bool:
    """Whether each of three sequences that share a forward gets what it gets alone."""
    prompts, sizes = (3, 6, 0), [1, 2, 4]
    steps = [_example(stage, 1, size).flip(1) for size in sizes]
    alone = [
        stage.forward(x, torch.ones(1, prompt + x.shape[1], dtype=torch.long), cache)
        for x, prompt, cache in zip(steps, prompts, caches_behind(stage, prompts), strict=True)
    ]
    ends = torch.tensor(sizes).cumsum(0) - 1
    try:
        row = stage.forward_packed(
            torch.cat(steps, dim=1), caches_behind(stage, prompts), prompts, sizes, logits_at=ends.tolist()
        )
    except Exception:  # whatever a model's own code makes of positions that do not ascend
        return False
    packed = torch.split(row, 1) if stage.is_last else torch.split(row, sizes, dim=1)
    return all(_is_close(stage, found, expected) for found, expected in zip(packed, alone, strict=True))


def caches_behind(stage: Stage, prompts: Sequence[int]) -> list[Cache]:
    """Return caches of sequences with so many tokens each."""
    caches = [stage.new_cache() for _ in prompts]
    for tokens, cache in zip(prompts, caches, strict=True):
        if tokens:
            mask = torch.ones(1, tokens, dtype=torch.long)
            stage.forward(_example(stage, 1, tokens), mask, cache, without_head=True)
    return caches


def example_packs(stage: Stage) -> list[Tensor]:
    """Return the outputs for steps of three sequences, of one token and of more."""
    prompts = [3, 6, 1]
    caches, outputs = caches_behind(stage, prompts), []
    for sizes in ([1, 1, 1], [1, 3, 2]):
        x = _example(stage, 1, sum(sizes)).flip(1)
        outputs.append(stage.forward_packed(x, caches, prompts, sizes, logits_at=range(0, sum(sizes), 2)))
        prompts = [start + size for start, size in zip(prompts, sizes, strict=True)]
    return outputs


def example_steps(stage: Stage) -> list[Tensor]:
    """Return the outputs for a prompt of three tokens and for two steps behind it."""
    cache, rows = stage.new_cache(), 2
    return [
        stage.forward(_example(stage, rows, new), torch.ones(rows, total, dtype=torch.long), cache)
        for new, total in ((3, 3), (1, 4), (1, 5))
    ]


def outputs_of_trial(stage: Stage) -> list[Tensor]:
    """Return what a stage gives for an example, as tensors."""
    rows, tokens = 1, 2
    if stage.encoder_decoder is not None:
        return stage.encoder_decoder.example_outputs(rows, tokens)
    if stage.generates:
        x = _example(stage, rows, tokens)
        return [stage.forward(x, torch.ones(rows, tokens, dtype=torch.long), stage.new_cache())]
    inputs = example_inputs(stage.config, rows=rows, tokens=tokens)
    output = stage.forward_once(None if stage.is_first else _hidden(stage, rows, tokens), inputs)
    return [output] if isinstance(output, Tensor) else list(output.values())


def _example(stage: Stage, rows: int, tokens: int) -> Tensor:
    """Return what a stage of a causal language model receives: token ids, or the hidden state of others."""
    if not stage.is_first:
        return _hidden(stage, rows, tokens)
    ids: Tensor = example_inputs(stage.config, rows=rows, tokens=tokens)["input_ids"]
    return ids


def _hidden(stage: Stage, rows: int, tokens: int) -> Tensor:
    shape = (rows, stage.image_tokens or tokens, stage.hidden_size)
    return torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape).to(stage.model.dtype)


def _is_close(stage: Stage, found: Tensor, expected: Tensor) -> bool:
    """Whether results are equal but for rounding."""
    tolerance = _TOLERANCE.get(stage.model.dtype, _HALF_TOLERANCE)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
