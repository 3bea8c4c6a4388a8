"""Descriptions of groups of sequences, which travel to every stage with the first message of a group."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orbitsplit._models.prompt_parts import of_tokens

from .record import Record

# Begins the names of an encoder's inputs among those of a group.
ENCODER = "encoder_"


@dataclass(frozen=True, slots=True)
class Sampling(Record):
    """The draws of transformers' sampling for a batch of `rows` rows; `first_row` is the group's first row.

    `drawn` tokens of each row were sampled before: as many draws of the generator are skipped.
    """

    seed: int
    rows: int = 1
    first_row: int = 0
    drawn: int = 0


@dataclass(frozen=True, slots=True)
class Details(Record):
    """What is returned with each new token.

    `logprobs` is of how many of the likeliest tokens there are log-probabilities, beside the token's own (None: of
    none); `prompt_logprobs` the same for tokens of the prompt, which return with the first new one. If `has_logits` all
    logits of the vocabulary return, if `has_scores` all scores that logits processors made of them.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    has_logits: bool = False
    has_scores: bool = False

    @property
    def is_large(self) -> bool:
        """Whether as many numbers return with a token as there are tokens."""
        return self.has_logits or self.has_scores


@dataclass(frozen=True, slots=True)
class Group(Record):
    """Rows of a batch that run through the chain together, with a KV cache of their own on each stage (a micro-batch).

    `rows` sequences of `tokens` tokens, padding included; `mask` says which are no padding (None: all). They get up to
    `max_new_tokens` tokens each, `ended_rows` none but the pad token; 0 is one forward without a cache, of whose
    `inputs` (name, shape, dtype) the first stage alone has the values. The last `replayed` tokens were generated before
    a loss: they run through the layers one at a time, as they did then unless guesses went along. Every stage keeps the
    times of a group that `is_recorded`.

    With `chunk_tokens` the prompts run through the chain in chunks of so many tokens, the last of which may be shorter.
    Every message of a group has the number of its step: that of a prompt, or of its last chunk, is 0 and yields the
    first token, chunks before it count down from -1. Step n above 0 begins behind n new tokens.

    A group of one row may have up to `draft_tokens` guesses of the tokens behind the last one in each of these steps;
    if it `uses_assistant`, that makes them, else they are looked up in the text.
    One that `is_packable` may share messages and forwards of steps above 0 with others: it has one row and no padding.

    The last stage makes scores of logits with `processors` (as `pack_processor` makes them), and draws from these if
    there is `sampling`, else takes the best. Where it `needs_ids`, the first message has them as `ids`: all `tokens` of
    the rows. `details` return with each token.

    Of a prompt with images, `beside` has what every stage gets of it beside its ids: small tensors of integers [..., S]
    (name, shape, bytes), as of `image_inputs.divided`; None for a text alone. The first stage has the images.

    Of a model with an encoder the rows' `tokens` are the decoder's first ones, which every stage has as `ids`. The
    encoder makes `encoder_tokens` of each prompt, 0: there is none. `inputs` are its inputs, of which the first stage
    alone has the values, as `ENCODER` and their name, and `beside` has their mask if there is one.

    One that `shares_prefix` may begin with keys and values of another that has ended: those of the first `known_tokens`
    tokens of group `prefix_of`, whose caches were kept. They do not run again. Its own may be kept in the same way.
    One that `is_moved` has its caches of the first `known_tokens` tokens on every stage already.
    """

    id: int
    rows: int
    tokens: int
    mask: str | None
    max_new_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    sampling: Sampling | None = None
    processors: tuple[dict[str, Any], ...] = ()
    needs_ids: bool = False
    ids: str | None = None
    details: Details | None = None
    inputs: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    beside: tuple[tuple[str, tuple[int, ...], str], ...] | None = None
    ended_rows: tuple[int, ...] = ()
    is_recorded: bool = False
    replayed: int = 0
    chunk_tokens: int | None = None
    draft_tokens: int = 0
    uses_assistant: bool = False
    is_packable: bool = False
    shares_prefix: bool = False
    prefix_of: int | None = None
    known_tokens: int = 0
    is_moved: bool = False
    encoder_tokens: int = 0

    def __post_init__(self) -> None:
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}, must be at least 1")
        if self.is_packable and (self.rows != 1 or self.mask is not None or not self.generates):
            raise ValueError(f"a group of {self.rows} rows that is packable must have one, and generate without a mask")

    @property
    def first_step(self) -> int:
        """The step with which the group starts: 0, or with n chunks 1 - n."""
        if self.chunk_tokens is None:
            return 0
        return 1 - max(1, -(-(self.tokens - self.replayed - self.known_tokens) // self.chunk_tokens))

    def positions(self, step: int, tokens: int = 1) -> range:
        """Return the positions of the tokens that run through the chain in a step, of one above 0 so many `tokens`."""
        if step > 0:
            start = self.tokens + step - 1
            return range(start, start + tokens)
        size = self.chunk_tokens or self.tokens
        start = self.known_tokens + (step - self.first_step) * size
        return range(start, self.tokens if step == 0 else start + size)

    @property
    def generates(self) -> bool:
        """Whether tokens are generated."""
        return self.max_new_tokens > 0

    def attention_mask(self) -> Tensor:
        """Return the attention mask [rows, tokens], int64: 0 for padding."""
        shape = (self.rows, self.tokens)
        if self.mask is None:
            return torch.ones(shape, dtype=torch.int64)
        packed = np.frombuffer(base64.b64decode(self.mask), np.uint8)
        bits = np.unpackbits(packed, count=self.rows * self.tokens)
        return torch.from_numpy(bits.astype(np.int64)).reshape(shape)

    def with_ids(self, input_ids: Tensor) -> Group:
        """Return the group with the tokens [rows, tokens] of its rows, if the last stage needs them."""
        if not self.needs_ids:
            return self
        return replace(self, ids=_packed(input_ids))

    def input_ids(self) -> Tensor:
        """Return the tokens [rows, tokens] of a group that has `ids`."""
        return torch.from_numpy(_read(self.ids or "")).reshape(self.rows, self.tokens)

    def beside_tokens(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """Return what a model takes beside ids and mask of tokens from `start` to `stop`; None for a text alone."""
        if self.beside is None:
            return None
        read = {name: torch.from_numpy(_read(data)).reshape(shape) for name, shape, data in self.beside}
        return of_tokens(read, start, stop)

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder runs before the decoder."""
        return self.encoder_tokens > 0

    def encoder_mask(self) -> Tensor | None:
        """Return the mask of the encoder's inputs, None without one."""
        return (self.beside_tokens(0, self.tokens) or {}).get("attention_mask") if self.has_encoder else None

    def encoder_inputs(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoder's inputs with its mask, of `values` by name where the first stage has them."""
        mask = self.encoder_mask()
        inputs = {name: values.get(f"{ENCODER}{name}", zeros) for name, zeros in self.placeholders().items()}
        return inputs if mask is None else {**inputs, "attention_mask": mask}

    def placeholders(self) -> dict[str, Tensor]:
        """Return zeros in place of the inputs of a forward, for stages that need only their shapes."""
        return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in self.inputs}

    def continued(self, got: Tensor) -> Group:
        """Return the group as it restarts after it got some tokens [rows, n], which become part of its prompts."""
        done = got.shape[1]
        mask = torch.cat([self.attention_mask(), torch.ones(self.rows, done, dtype=torch.int64)], dim=1)
        ended = torch.isin(got, torch.tensor(self.eos_token_ids, dtype=torch.int64)).any(dim=1)
        return replace(
            self,
            tokens=self.tokens + done,
            mask=packed_mask(mask),
            max_new_tokens=self.max_new_tokens - done,
            replayed=self.replayed + done,
            ended_rows=tuple(sorted({*self.ended_rows, *ended.nonzero().flatten().tolist()})),
            sampling=self.sampling and replace(self.sampling, drawn=self.sampling.drawn + done),
            # Those of the prompt have returned with the first of these tokens.
            details=self.details and replace(self.details, prompt_logprobs=None),
        )


def with_caches(group: Group) -> Group:
    """Return a group that restarts where the caches of all its tokens but the last are on every stage already."""
    return replace(group, known_tokens=group.tokens - 1, replayed=0, is_moved=True)


def packed_beside(beside: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Return tensors of integers as a description contains them."""
    return tuple((name, tuple(value.shape), _packed(value)) for name, value in beside.items())


def _packed(numbers: Tensor) -> str:
    return base64.b64encode(numbers.numpy().astype("<i4").tobytes()).decode()


def _read(data: str) -> NDArray[np.int64]:
    return np.frombuffer(base64.b64decode(data), "<i4").astype(np.int64)


def packed_mask(mask: Tensor) -> str | None:
    """Return a mask as a description contains it, None without padding."""
    bits = (mask != 0).numpy()
    return None if bits.all() else base64.b64encode(np.packbits(bits).tobytes()).decode()


def described_inputs(inputs: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Return names, shapes and dtypes of the inputs of a forward."""
    return tuple((name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in inputs.items())


def rows_of(rows: int, groups: int) -> list[slice]:
    """Return the rows of each group; sizes differ by at most one, larger groups first."""
    size, larger = divmod(rows, groups)
    starts = [group * size + min(group, larger) for group in range(groups + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]
