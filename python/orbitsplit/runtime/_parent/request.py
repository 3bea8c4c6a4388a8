"""Requests: a prompt with its options, checked before any work, and divided into groups."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orbitsplit._io.validation import check_callable
from orbitsplit._models.generation_rules import settings_of
from orbitsplit._models.generation_settings import GenerationSettings, generation_settings
from orbitsplit._models.logits_processors import (
    FrequencyPenaltyLogitsProcessor,
    PresencePenaltyLogitsProcessor,
    needs_ids,
    pack_processor,
)
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Details, Group, Sampling, described_inputs, packed_mask, rows_of

from .generation import Generation, GroupState, OnEnd, OnTokens
from .generation_options import GenerationOptions, generation_options
from .logprobs import OnLogprobs, OnPromptLogprobs
from .prompts import as_tensor, check_inputs, check_positions, check_token, check_tokens, padding_mask
from .stopping import Stopping
from .unapplied import check_generation
from .unsupported import refuse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `generate` or `submit`: prompts [B, S], their mask, the options, and the caller's functions.

    Raises TypeError where a function is not one.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    options: GenerationOptions
    is_recorded: bool = False
    on_tokens: OnTokens | None = None
    on_end: OnEnd | None = None
    on_logprobs: OnLogprobs | None = None
    on_prompt_logprobs: OnPromptLogprobs | None = None

    def __post_init__(self) -> None:
        for name in ("on_tokens", "on_end", "on_logprobs", "on_prompt_logprobs"):
            check_callable(name, getattr(self, name))


def request_of(
    function: str,
    input_ids: Any,
    attention_mask: Any,
    options: GenerationOptions | None,
    keywords: Mapping[str, Any],
    model: Ready,
    *,
    is_recorded: bool = False,
    on_tokens: OnTokens | None = None,
    on_end: OnEnd | None = None,
    on_logprobs: OnLogprobs | None = None,
    on_prompt_logprobs: OnPromptLogprobs | None = None,
) -> Request:
    """Return the request of a call of `function` with the arguments of transformers' generate.

    Raises TypeError or ValueError, naming the argument. token_type_ids, which tokenizers return, are dropped where the
    model has none.
    """
    left = dict(keywords)
    given = left.pop("inputs", None)
    if (input_ids is None) == (given is None):
        raise TypeError(f"{function}() needs input_ids, or inputs as transformers names them: one of the two")
    types = left.pop("token_type_ids", None)
    if types is not None and model.takes_token_types:
        raise ValueError(
            "token_type_ids are given, which this model reads and the stages of a pipeline do not get: leave them out "
            "(tokenizer(..., return_token_type_ids=False))"
        )
    return Request(
        input_ids=as_tensor("input_ids", given if input_ids is None else input_ids),
        attention_mask=None if attention_mask is None else as_tensor("attention_mask", attention_mask),
        options=generation_options(function, options, left),
        is_recorded=is_recorded,
        on_tokens=on_tokens,
        on_end=on_end,
        on_logprobs=on_logprobs,
        on_prompt_logprobs=on_prompt_logprobs,
    )


def generation_of(
    request: Request,
    model: Ready,
    *,
    micro_batches: int,
    chunk_tokens: int | None,
    draft_tokens: int | None,
    runs_chunks: bool,
    runs_packs: bool,
    next_number: Callable[[], int],
    send_cancel: Callable[[int], None],
) -> Generation:
    """Return the batch of a request, divided into as many groups as there are micro-batches (at most B).

    Prompts run in chunks of `chunk_tokens`, if that is given and no angle depends on the length of the text. Where the
    stages can, single rows without padding share forwards with others.

    Raises TypeError or ValueError, naming the argument, if the model cannot run it.
    """
    if not model.generates or model.vocabulary is None:
        raise ValueError("the model does not generate tokens: use forward")
    check_tokens(request.input_ids, vocabulary=model.vocabulary)
    settings = _settings(request, model)
    batch = _batch(request, settings, model)
    details = _details(request.options, settings, model.vocabulary)
    check_generation(model, batch.mask, max_new_tokens=settings.max_new_tokens, micro_batches=micro_batches)
    rows, tokens = batch.input_ids.shape
    sampling = _sampling(request.options, settings)
    states = []
    for part in rows_of(rows, 1 if details is not None and details.is_large else min(micro_batches, rows)):
        mask_of_part = packed_mask(batch.mask[part])
        is_single = part.stop - part.start == 1 and mask_of_part is None and model.rope_change is None
        processors = settings.processors(batch.input_ids[part], None if mask_of_part is None else batch.mask[part])
        group = Group(
            id=next_number(),
            rows=part.stop - part.start,
            tokens=tokens,
            mask=mask_of_part,
            max_new_tokens=settings.max_new_tokens,
            eos_token_ids=settings.eos_token_ids,
            pad_token_id=batch.pad_token_id,
            sampling=sampling and replace(sampling, rows=rows, first_row=part.start),
            processors=tuple(pack_processor(processor) for processor in processors),
            needs_ids=needs_ids(processors) or (details is not None and details.prompt_logprobs is not None),
            details=details,
            is_recorded=request.is_recorded,
            chunk_tokens=chunk_tokens if model.rope_change is None else None,
            draft_tokens=_draft_tokens(
                request.options, model, part.stop - part.start, rows, planned=draft_tokens, runs_chunks=runs_chunks
            ),
            uses_assistant=request.options.num_assistant_tokens is not None,
            is_packable=runs_packs and is_single and not (details is not None and details.is_large),
            shares_prefix=runs_chunks
            and is_single
            and not request.is_recorded
            and not (details is not None and details.prompt_logprobs is not None),
        )
        states.append(GroupState(group, batch.input_ids[part]))
    return Generation(
        states,
        pad_token_id=batch.pad_token_id,
        on_tokens=request.on_tokens,
        on_end=request.on_end,
        send_cancel=send_cancel,
        stopping=batch.stopping,
        on_logprobs=request.on_logprobs,
        on_prompt_logprobs=request.on_prompt_logprobs,
        returns_dict=bool(settings.config.return_dict_in_generate),
    )


def _settings(request: Request, model: Ready) -> GenerationSettings:
    """Return the settings of a request as transformers settles them; the caller's own processors among them."""
    options, tokens = request.options, request.input_ids.shape[1]
    own = list(options.logits_processor or ())
    for penalty, kind in (
        (options.presence_penalty, PresencePenaltyLogitsProcessor),
        (options.frequency_penalty, FrequencyPenaltyLogitsProcessor),
    ):
        if penalty:
            own.append(kind(penalty, tokens))
    given = options.of_transformers()
    refuse_config({**model.generation_config, **settings_of(options.generation_config), **given})
    assert model.vocabulary is not None, "a model that generates has one"
    return generation_settings(
        model.generation_config,
        options.generation_config,
        given,
        input_ids=request.input_ids,
        vocabulary=model.vocabulary,
        positions=model.positions,
        processors=own,
        criteria=list(options.stopping_criteria or ()),
        tokenizer=options.tokenizer,
    )


class _Batch(NamedTuple):
    """The rows of a request: prompts and mask [B, S], a row for each text to return, and when they end."""

    input_ids: Tensor
    mask: Tensor
    pad_token_id: int
    stopping: Stopping | None


def _batch(request: Request, settings: GenerationSettings, model: Ready) -> _Batch:
    """Return the rows of a request. Raises ValueError for padding, positions and tokens that the model cannot have."""
    pad, eos = settings.pad_token_id, settings.eos_token_ids
    mask = padding_mask(request.input_ids, request.attention_mask, pad_token_id=pad, eos_token_ids=eos).cpu()
    check_positions(int(mask.sum(dim=1).max()), settings.max_new_tokens, positions=model.positions)
    if pad is None:
        pad = 0
    # Ended rows of a group still run through the model.
    assert model.vocabulary is not None, "a model that generates has one"
    check_token("pad_token_id is", pad, vocabulary=model.vocabulary)
    texts = settings.config.num_return_sequences or 1
    input_ids = request.input_ids.to("cpu", torch.int64).repeat_interleave(texts, dim=0)
    stopping = None
    if settings.criteria:
        stopping = Stopping(settings.criteria, input_ids, eos_token_ids=eos, pad_token_id=pad)
    return _Batch(input_ids, mask.repeat_interleave(texts, dim=0), pad, stopping)


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


def _draft_tokens(
    options: GenerationOptions, model: Ready, rows: int, of: int, *, planned: int | None, runs_chunks: bool
) -> int:
    """Return how many guesses a group of so many rows may send: as asked for, or `planned` where it can send any.

    Raises ValueError where it cannot send those that are asked for.
    """
    name, drafts = "prompt_lookup_num_tokens", options.prompt_lookup_num_tokens
    if options.num_assistant_tokens is not None:
        name, drafts = "num_assistant_tokens", options.num_assistant_tokens
        if not model.assistant_bytes:
            raise ValueError(f"{name} is {drafts}, and the pipeline has no assistant: Pipeline(assistant_model=...)")
    can_check = runs_chunks and model.rope_change is None
    if drafts is None:
        return planned if planned is not None and rows == 1 and can_check else 0
    if drafts == 0:
        return 0
    if rows > 1:
        raise ValueError(
            f"{name} needs micro-batches of one row each, and {of} rows run in fewer micro-batches: "
            f"plan with {of} of them, or give fewer prompts"
        )
    if not can_check:
        raise ValueError(
            f"{name} needs a model that several tokens can be run through at once and taken back: "
            "layers of this one keep a state, or its angles depend on the length of the text"
        )
    return drafts


def forward_of(
    inputs: dict[str, Tensor], model: Ready, *, micro_batches: int, next_number: Callable[[], int]
) -> Generation:
    """Return the batch of one forward. Raises TypeError or ValueError, naming the input."""
    rows, tokens = check_inputs(inputs, vocabulary=model.vocabulary)
    if "input_ids" in inputs:
        check_positions(tokens, 1, positions=model.positions)
    mask = inputs.get("attention_mask")
    states = []
    for part in rows_of(rows, min(micro_batches, rows)):
        own = {name: value[part] for name, value in inputs.items()}
        group = Group(
            id=next_number(),
            rows=part.stop - part.start,
            tokens=tokens,
            mask=None if mask is None else packed_mask(mask[part]),
            max_new_tokens=0,
            inputs=described_inputs(own),
            is_recorded=True,
        )
        states.append(GroupState(group, own))
    return Generation(states)


def _sampling(options: GenerationOptions, settings: GenerationSettings) -> Sampling | None:
    if not settings.config.do_sample:
        return None
    return Sampling(random.getrandbits(63) if options.seed is None else options.seed)
