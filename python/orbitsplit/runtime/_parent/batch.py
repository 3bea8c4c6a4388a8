"""The batch of a request: its rows, and how their tokens are made, as transformers settles it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor

from orbitsplit._models.generation_rules import settings_of
from orbitsplit._models.generation_settings import GenerationSettings, generation_settings
from orbitsplit._models.logits_processors import (
    FrequencyPenaltyLogitsProcessor,
    PresencePenaltyLogitsProcessor,
    needs_ids,
    pack_processor,
)
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Details, Group, Sampling, packed_mask

from .encoder_prompts import EncoderPrompt
from .generation_options import GenerationOptions
from .prompts import check_positions, check_token, padding_mask
from .stopping import Stopping
from .unsupported import refuse_config


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a request: prompts and mask [B, S], a row for each text to return."""

    settings: GenerationSettings
    input_ids: Tensor
    mask: Tensor
    pad_token_id: int
    vocabulary: int
    sampling: Sampling | None
    details: Details | None
    encoder: EncoderPrompt | None = None

    @property
    def returns_dict(self) -> bool:
        """Whether transformers' generate returns an output by name."""
        return bool(self.settings.config.return_dict_in_generate)

    def stopping(self) -> Stopping | None:
        """Return what ends rows beside their number of tokens and tokens that end a text."""
        criteria, eos = self.settings.criteria, self.settings.eos_token_ids
        if not criteria:
            return None
        return Stopping(criteria, self.input_ids, eos_token_ids=eos, pad_token_id=self.pad_token_id)

    def group(self, part: slice, number: int) -> Group:
        """Return some rows as a group. Raises ValueError for processors that cannot run on the last stage."""
        rows, tokens = self.input_ids.shape
        mask = packed_mask(self.mask[part])
        read = self.input_ids if self.encoder is None else self.encoder.main
        processors = self.settings.processors(read[part], None if mask is None else self.mask[part])
        _check_biased(processors, self.vocabulary)
        return Group(
            id=number,
            rows=part.stop - part.start,
            tokens=tokens,
            mask=mask,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_ids=self.settings.eos_token_ids,
            pad_token_id=self.pad_token_id,
            sampling=self.sampling and replace(self.sampling, rows=rows, first_row=part.start),
            processors=tuple(pack_processor(processor) for processor in processors),
            needs_ids=needs_ids(processors) or (self.details is not None and self.details.prompt_logprobs is not None),
            details=self.details,
        )


def batch_of(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    options: GenerationOptions,
    model: Ready,
    encoder: EncoderPrompt | None = None,
) -> Batch:
    """Return the batch of prompts [B, S]; with an `encoder` the first tokens of the decoder.

    Raises ValueError for options as transformers does, for padding and for more tokens than the model has positions.
    """
    assert model.vocabulary is not None, "a model that generates has one"
    settings = _settings(input_ids, options, model, model.vocabulary)
    pad, eos = settings.pad_token_id, settings.eos_token_ids
    mask = padding_mask(input_ids, attention_mask, pad_token_id=pad, eos_token_ids=eos).cpu()
    check_positions(int(mask.sum(dim=1).max()), settings.max_new_tokens, positions=model.positions)
    pad = 0 if pad is None else pad
    # Ended rows of a group still run through the model.
    check_token("pad_token_id is", pad, vocabulary=model.vocabulary)
    texts = settings.config.num_return_sequences or 1
    seed = random.getrandbits(63) if options.seed is None else options.seed
    return Batch(
        settings,
        input_ids.to("cpu", torch.int64).repeat_interleave(texts, dim=0),
        mask.repeat_interleave(texts, dim=0),
        pad,
        model.vocabulary,
        sampling=Sampling(seed) if settings.config.do_sample else None,
        details=_details(options, settings, model.vocabulary),
        encoder=None if encoder is None else encoder.repeated(texts),
    )


def _settings(input_ids: Tensor, options: GenerationOptions, model: Ready, vocabulary: int) -> GenerationSettings:
    """Return the settings of a request as transformers settles them, with our own processors among the caller's."""
    own = list(options.logits_processor or ())
    for penalty, kind in (
        (options.presence_penalty, PresencePenaltyLogitsProcessor),
        (options.frequency_penalty, FrequencyPenaltyLogitsProcessor),
    ):
        if penalty:
            own.append(kind(penalty, input_ids.shape[1]))
    given = options.of_transformers()
    refuse_config({**model.generation_config, **settings_of(options.generation_config), **given})
    return generation_settings(
        model.generation_config,
        options.generation_config,
        given,
        input_ids=input_ids,
        vocabulary=vocabulary,
        positions=model.positions,
        processors=own,
        criteria=list(options.stopping_criteria or ()),
        tokenizer=options.tokenizer,
        encoder_type=None if model.encoder is None else model.encoder.model_type,
    )


def _check_biased(processors: Sequence[LogitsProcessor], vocabulary: int) -> None:
    """Raise ValueError for a token that the model does not have, before the last stage does at the first token."""
    for processor in processors:
        for sequence in getattr(processor, "sequence_bias", None) or ():
            check_token("a biased or forbidden sequence has", max(sequence), vocabulary=vocabulary)


def _details(options: GenerationOptions, settings: GenerationSettings, vocabulary: int) -> Details | None:
    """Return what is to return with the tokens, None for the tokens alone."""
    top = [None if given is None else min(given, vocabulary) for given in (options.logprobs, options.prompt_logprobs)]
    returns = settings.config.return_dict_in_generate
    details = Details(
        logprobs=top[0],
        prompt_logprobs=top[1],
        has_logits=bool(returns and settings.config.output_logits),
        has_scores=bool(returns and settings.config.output_scores),
    )
    return None if details == Details() else details
