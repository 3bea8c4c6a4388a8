"""What returns with a token of a group that has `Details`: numbers as words of 64 bits behind the token.

A row of words, each part if it was asked for:

logprobs    the log-probability, then ids of the likeliest tokens, then their log-probabilities
logits      their number, then two of them (float32) in each word
scores      the same
prompt      as logprobs, of each token of the prompt but the first; with the first new token alone
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .groups import Details


class Likeliest(NamedTuple):
    """Log-probabilities [n] of tokens in n places, and `ids` and `logprobs` [n, N] of the likeliest ones there."""

    own: Tensor
    ids: Tensor
    logprobs: Tensor


class TokenDetails(NamedTuple):
    """The details of one token of one row; `prompt` are those of the tokens of the prompt but the first."""

    logprobs: Likeliest | None = None
    logits: Tensor | None = None
    scores: Tensor | None = None
    prompt: Likeliest | None = None


def pack_logprobs(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """Return the words [n, 1 + 2 top] of tokens [n] that were chosen where the logits [n, V] are."""
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    likeliest = logprobs.topk(top, dim=-1)
    numbers = torch.cat([logprobs.gather(1, tokens[:, None]), likeliest.values], dim=1).double().view(torch.int64)
    return torch.cat([numbers[:, :1], likeliest.indices, numbers[:, 1:]], dim=1)


def pack_vocabulary(values: Tensor) -> Tensor:
    """Return the words of a number for each token of the vocabulary [n, V]."""
    rows, size = values.shape
    padded = torch.nn.functional.pad(values.to(torch.float32), (0, size % 2)).contiguous()
    return torch.cat([torch.full((rows, 1), size), padded.view(torch.int64)], dim=1)


def unpack_details(words: Tensor, asked: Details) -> TokenDetails:
    """Return the details of one token from its words [w]; words behind them are ignored but for those of a prompt."""
    place, found = 0, TokenDetails()
    if asked.logprobs is not None:
        place = 1 + 2 * asked.logprobs
        found = found._replace(logprobs=_likeliest(words[None, :place], asked.logprobs))
    if asked.has_logits:
        size, place = int(words[place]), place + 1
        found = found._replace(logits=_vocabulary(words[place:], size))
        place += -(-size // 2)
    if asked.has_scores:
        size, place = int(words[place]), place + 1
        found = found._replace(scores=_vocabulary(words[place:], size))
        place += -(-size // 2)
    if asked.prompt_logprobs is not None:
        width = 1 + 2 * asked.prompt_logprobs
        count = (len(words) - place) // width
        rows = words[place : place + count * width].reshape(count, width)
        found = found._replace(prompt=_likeliest(rows, asked.prompt_logprobs))
    return found


def _likeliest(words: Tensor, top: int) -> Likeliest:
    numbers = torch.cat([words[:, :1], words[:, 1 + top :]], dim=1).contiguous().view(torch.float64)
    return Likeliest(numbers[:, 0], words[:, 1 : 1 + top], numbers[:, 1:])


def _vocabulary(words: Tensor, size: int) -> Tensor:
    return words[: -(-size // 2)].contiguous().view(torch.float32)[:size].clone()
