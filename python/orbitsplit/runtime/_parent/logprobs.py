"""Log-probabilities of tokens as callers get them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbitsplit.runtime._messages.token_details import Likeliest


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a token in its place, and the `top` likeliest tokens there with theirs, likeliest first.

    They are natural logarithms of the model's own probabilities, before any logits processor.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# Gets those of a step, one for each row of the batch, None for a row that has ended.
OnLogprobs = Callable[[list[TokenLogprobs | None]], None]
# Gets those of the prompts, a list for each row; None for padding, and for the first token, which has none before.
OnPromptLogprobs = Callable[[list[list[TokenLogprobs | None]]], None]


def token_logprobs(tokens: Sequence[int], found: Likeliest) -> list[TokenLogprobs]:
    """Return the log-probabilities of tokens in n places."""
    places = zip(tokens, found.own.tolist(), found.ids.tolist(), found.logprobs.tolist(), strict=True)
    return [TokenLogprobs(token, own, tuple(zip(ids, of_ids, strict=True))) for token, own, ids, of_ids in places]
