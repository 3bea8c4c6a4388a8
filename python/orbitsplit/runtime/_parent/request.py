"""Requests: a prompt with its options, checked before any work, and divided into groups."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orbitsplit._io.validation import check_callable
from orbitsplit.runtime._messages.control import Ready
from orbitsplit.runtime._messages.groups import Group, Sampling, described_inputs, packed_mask, rows_of

from .arguments import integer, number
from .generation import Generation, GroupState, OnEnd, OnTokens
from .options import GenerationOptions
from .prompts import check_inputs, check_positions, check_token, check_tokens, padding_mask
from .unapplied import check_generation

# Temperature, top_k and top_p of transformers' generate if neither the caller nor the model sets them.
_USUAL_SAMPLING = (1.0, 50, 1.0)


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

    def __post_init__(self) -> None:
        check_callable("on_tokens", self.on_tokens)
        check_callable("on_end", self.on_end)


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
    options = request.options
    check_tokens(request.input_ids, vocabulary=model.vocabulary)
    eos = model.eos_token_ids if options.eos_token_id is None else options.eos_token_id
    assert isinstance(eos, tuple), "options keep tokens as a tuple"
    pad = model.pad_token_id if options.pad_token_id is None else options.pad_token_id
    mask = padding_mask(request.input_ids, request.attention_mask, pad_token_id=pad, eos_token_ids=eos)
    check_positions(int(mask.sum(dim=1).max()), options.max_new_tokens, positions=model.positions)
    check_generation(
        model,
        mask,
        max_new_tokens=options.max_new_tokens,
        micro_batches=micro_batches,
        is_sampled=options.do_sample,
    )
    if pad is None:
        pad = eos[0] if eos else 0
    # Ended rows of a group still run through the model.
    check_token("pad_token_id is", pad, vocabulary=model.vocabulary)
    sampling = _sampling(options, model)
    rows, tokens = request.input_ids.shape
    input_ids = request.input_ids.to("cpu", torch.int64)
    states = []
    for part in rows_of(rows, min(micro_batches, rows)):
        mask_of_part = packed_mask(mask[part].cpu())
        is_single = part.stop - part.start == 1 and mask_of_part is None and model.rope_change is None
        group = Group(
            id=next_number(),
            rows=part.stop - part.start,
            tokens=tokens,
            mask=mask_of_part,
            max_new_tokens=options.max_new_tokens,
            eos_token_ids=eos,
            pad_token_id=pad,
            sampling=sampling and replace(sampling, rows=rows, first_row=part.start),
            is_recorded=request.is_recorded,
            chunk_tokens=chunk_tokens if model.rope_change is None else None,
            draft_tokens=_draft_tokens(
                options, model, part.stop - part.start, rows, planned=draft_tokens, runs_chunks=runs_chunks
            ),
            uses_assistant=options.num_assistant_tokens is not None,
            is_packable=runs_packs and is_single,
            shares_prefix=runs_chunks and is_single and not request.is_recorded,
        )
        states.append(GroupState(group, input_ids[part]))
    return Generation(
        states, pad_token_id=pad, on_tokens=request.on_tokens, on_end=request.on_end, send_cancel=send_cancel
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


def _sampling(options: GenerationOptions, model: Ready) -> Sampling | None:
    if not options.do_sample:
        return None
    given = (options.temperature, options.top_k, options.top_p)
    temperature, top_k, top_p = (_first(*v) for v in zip(given, model.sampling, _USUAL_SAMPLING, strict=True))
    seed = random.getrandbits(63) if options.seed is None else options.seed
    # Those of the options are checked already, those of the model's generation config are not.
    return Sampling(
        seed,
        number("temperature", temperature, above=0),
        integer("top_k", top_k, least=0),
        number("top_p", top_p, above=0, most=1),
    )


def _first(*values: float | None) -> float:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
