"""Requests: a prompt with its options, checked before any work, and divided into groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orbitsplit._io.validation import check_callable
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Details, Group, described_inputs, packed_mask, rows_of

from .batch import batch_of
from .encoder_prompts import EncoderPrompt, encoder_prompt
from .generation import Generation, GroupState, OnEnd, OnTokens
from .generation_options import GenerationOptions, generation_options
from .images import Beside, ImagePrompt, ImagePrompts, check_options, image_prompt
from .logprobs import OnLogprobs, OnPromptLogprobs
from .prompts import as_tensor, check_inputs, check_positions, check_tokens
from .unapplied import check_generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `generate` or `submit`: prompts [B, S], their mask, the options, and the caller's functions.

    Of a model with an encoder, which reads the prompts of `encoder`, `input_ids` are the first tokens of the decoder.

    Raises TypeError where a function is not one.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    options: GenerationOptions
    images: ImagePrompt | None = None
    encoder: EncoderPrompt | None = None
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
    images: ImagePrompts,
    **calls: Any,
) -> Request:
    """Return the request of a call of `function` with the arguments of transformers' generate.

    `calls` are `is_recorded` and the caller's functions.

    Raises TypeError or ValueError, naming the argument. token_type_ids, which tokenizers return, are dropped where the
    model has none. Images, and what describes them, `images` divides.
    """
    left = dict(keywords)
    seen = image_prompt(left, model, images)
    given = left.pop("inputs", None)
    if model.encoder is not None:
        encoder = encoder_prompt(function, left, (input_ids, given), attention_mask, model.encoder)
        options = generation_options(function, options, left)
        ids = encoder.first_tokens(options, model.generation_config)
        return Request(input_ids=ids, attention_mask=torch.ones_like(ids), options=options, encoder=encoder, **calls)
    if (input_ids is None) == (given is None):
        raise TypeError(f"{function}() needs input_ids, or inputs as transformers names them: one of the two")
    types = left.pop("token_type_ids", None)
    if types is not None and model.takes_token_types and seen is None:
        raise ValueError(
            "token_type_ids are given, which this model reads and the stages of a pipeline do not get: leave them out "
            "(tokenizer(..., return_token_type_ids=False))"
        )
    return Request(
        input_ids=as_tensor("input_ids", given if input_ids is None else input_ids),
        attention_mask=None if attention_mask is None else as_tensor("attention_mask", attention_mask),
        options=generation_options(function, options, left),
        images=seen,
        **calls,
    )


# The last stage has the logits of so many places of a prompt at once, of which log-probabilities are asked for: plans
# reserve no memory for those of a whole prompt.
_MOST_LOGITS_TOKENS = 128


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
    options = request.options
    batch = batch_of(request.input_ids, request.attention_mask, options, model, request.encoder)
    details, rows = batch.details or Details(), len(batch.input_ids)
    if details.prompt_logprobs is not None and runs_chunks:
        chunk_tokens = min(chunk_tokens or _MOST_LOGITS_TOKENS, _MOST_LOGITS_TOKENS)
    # Scores [B, V] are of all rows, those that have ended too; how images belong to rows is the model's own.
    groups = 1 if details.is_large or request.images is not None else micro_batches
    beside: Beside | None = None
    images: dict[str, Tensor] = {}
    if request.images is not None:
        check_options(options, batch.settings)
        beside, images = request.images.divided(batch.input_ids, batch.mask)
        chunk_tokens = draft_tokens = None
    if batch.encoder is not None:
        chunk_tokens = draft_tokens = None
    new_tokens = batch.settings.max_new_tokens
    check_generation(model, batch.mask, max_new_tokens=new_tokens, micro_batches=groups)
    states = []
    for part in rows_of(rows, min(groups, rows)):
        group = batch.group(part, next_number())
        drafts = _draft_tokens(options, model, group.rows, rows, planned=draft_tokens, runs_chunks=runs_chunks)
        is_single = group.rows == 1 and group.mask is None and model.rope_change is None and beside is None
        group = replace(
            group,
            is_recorded=request.is_recorded,
            chunk_tokens=chunk_tokens if model.rope_change is None else None,
            draft_tokens=drafts,
            beside=beside,
            uses_assistant=options.num_assistant_tokens is not None,
            is_packable=runs_packs and is_single and not details.is_large,
            shares_prefix=runs_chunks
            and is_single
            and not request.is_recorded
            and details.prompt_logprobs is None,  # a prefix that is shared does not run again
        )
        if batch.encoder is not None:
            group, images = batch.encoder.part(group, part)
        states.append(GroupState(group, batch.input_ids[part], images))
    return Generation(
        states,
        pad_token_id=batch.pad_token_id,
        on_tokens=request.on_tokens,
        on_end=request.on_end,
        send_cancel=send_cancel,
        stopping=batch.stopping(),
        on_logprobs=request.on_logprobs,
        on_prompt_logprobs=request.on_prompt_logprobs,
        returns_dict=batch.returns_dict,
    )


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
    if model.encoder is not None:
        raise ValueError("forward is not for models with an encoder and a decoder: use generate")
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
