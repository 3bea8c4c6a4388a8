"""Prompts of models with an encoder: what the encoder reads, and the first tokens of the decoder."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orbitsplit._models.generation_settings import decoder_prompt
from orbitsplit.runtime._messages.control import EncoderInput
from orbitsplit.runtime._messages.groups import ENCODER, Group, described_inputs, packed_beside

from .generation_options import GenerationOptions
from .prompts import as_tensor, check_positions, check_tokens

_MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class EncoderPrompt:
    """The inputs of an encoder by name, with the mask of what is no padding if there is any padding."""

    facts: EncoderInput
    main: Tensor
    mask: Tensor | None
    decoder_input_ids: Tensor | None

    def first_tokens(self, options: GenerationOptions, of_model: Mapping[str, Any]) -> Tensor:
        """Return the tokens [B, T] with which the decoder starts, as transformers' generate makes them.

        Raises ValueError for options that a model with an encoder does not have in a pipeline.
        """
        _check_options(options)
        return decoder_prompt(
            of_model,
            options.generation_config,
            options.of_transformers(),
            rows=len(self.main),
            given_ids=self.decoder_input_ids,
            model_type=self.facts.model_type,
            input_name=self.facts.name,
        )

    def repeated(self, texts: int) -> EncoderPrompt:
        """Return the prompts with each as often as it has texts to return."""
        mask = None if self.mask is None else self.mask.repeat_interleave(texts, dim=0)
        return replace(self, main=self.main.repeat_interleave(texts, dim=0), mask=mask)

    def part(self, group: Group, rows: slice) -> tuple[Group, dict[str, Tensor]]:
        """Return the group of some rows with its prompts described, and what the first stage gets of them."""
        own = {self.facts.name: self.main[rows]}
        mask = None if self.mask is None or bool((self.mask[rows] != 0).all()) else self.mask[rows]
        tokens = self.facts.tokens or self.main.shape[1]
        group = replace(
            group,
            needs_ids=True,
            encoder_tokens=tokens,
            inputs=described_inputs(own),
            beside=None if mask is None else packed_beside({_MASK: (mask != 0).long()}),
        )
        return group, {f"{ENCODER}{name}": value.contiguous() for name, value in own.items()}


def encoder_prompt(
    function: str,
    keywords: MutableMapping[str, Any],
    named_generally: tuple[Any, Any],
    attention_mask: Any,
    facts: EncoderInput,
) -> EncoderPrompt:
    """Take what an encoder reads out of the arguments of a call: as input_ids, as inputs, or by its own name.

    Raises TypeError or ValueError, naming the argument.
    """
    own = None if facts.name == "input_ids" else keywords.pop(facts.name, None)
    given = [value for value in (*named_generally, own) if value is not None]
    if len(given) != 1:
        raise TypeError(f"{function}() needs {facts.name}, or inputs as transformers names them: one of the two")
    ids = keywords.pop("decoder_input_ids", None)
    if keywords.pop("decoder_attention_mask", None) is not None:
        raise ValueError("decoder_attention_mask is not for a pipeline: give decoder_input_ids of one length")
    main = as_tensor(facts.name, given[0]) if facts.name == "input_ids" else torch.as_tensor(given[0])
    mask = None if attention_mask is None else as_tensor(_MASK, attention_mask)
    _check(main, mask, facts)
    if ids is None and facts.has_own_loop:
        raise ValueError(
            "the decoder of this model starts as transformers' own loop around generate decides: call generate with "
            "keywords alone (no options, no streamer), or give decoder_input_ids"
        )
    own_ids = None if ids is None else as_tensor("decoder_input_ids", ids).to("cpu", torch.int64)
    if own_ids is not None and (own_ids.dim() != 2 or len(own_ids) != len(main)):
        raise ValueError(f"decoder_input_ids are {list(own_ids.shape)}, {facts.name} have {len(main)} rows")
    main = main.to("cpu", torch.int64) if facts.name == "input_ids" else main.cpu()
    return EncoderPrompt(facts, main, None if mask is None else mask.cpu(), own_ids)


def _check(main: Tensor, mask: Tensor | None, facts: EncoderInput) -> None:
    if facts.name == "input_ids":
        check_tokens(main, vocabulary=facts.vocabulary or 1 << 62)
        check_positions(main.shape[1], 1, positions=facts.positions)
    elif main.dim() != 3 or 0 in main.shape or not main.is_floating_point():
        raise ValueError(f"{facts.name} are {main.dtype} {list(main.shape)}, expected non-empty floats of 3 dimensions")
    if mask is None:
        return
    if mask.dim() != 2 or len(mask) != len(main) or (facts.name == "input_ids" and mask.shape != main.shape):
        raise ValueError(f"{_MASK} is {list(mask.shape)}, {facts.name} are {list(main.shape)}")
    if not bool((mask != 0).any(dim=1).all()):
        row = int((mask != 0).any(dim=1).int().argmin())
        raise ValueError(f"row {row} of {_MASK} has nothing but padding")


def _check_options(options: GenerationOptions) -> None:
    for name in ("prompt_lookup_num_tokens", "num_assistant_tokens"):
        if getattr(options, name):
            raise ValueError(f"{name} is not for models with an encoder: their tokens are generated one at a time")
    if options.prompt_logprobs is not None:
        raise ValueError("prompt_logprobs is not for models with an encoder: what it reads has no probabilities")
