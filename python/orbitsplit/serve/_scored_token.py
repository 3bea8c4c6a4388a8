"""Tokens of an answer or a prompt with their log-probabilities, as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ._detokeniser import TokenDecoder

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenLogprobs(Protocol):
    """What an engine says of a token, with natural logarithms: `orbitsplit.TokenLogprobs`."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token's text, its log-probability (None: nothing precedes it), and the likeliest tokens in its place."""

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()
    is_end: bool = False


def scored(decoder: TokenDecoder, of: TokenLogprobs, *, is_end: bool = False) -> ScoredToken:
    """Return a token with the texts of itself and of the others."""
    top = tuple((decoder.text_of(token), logprob) for token, logprob in of.top)
    return ScoredToken(decoder.text_of(of.token_id), of.logprob, top, is_end)


@dataclass(slots=True)
class CompletionLogprobs:
    """The object `logprobs` of `/v1/completions`, as far as `count` tokens in place of each are asked for.

    `characters` of text precede the next token.
    """

    count: int
    characters: int = 0

    def of(self, tokens: Iterable[ScoredToken]) -> dict[str, Any]:
        """Return the object for the next tokens of a text."""
        body: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            body["tokens"].append(token.text)
            body["token_logprobs"].append(token.logprob)
            body["top_logprobs"].append(None if token.logprob is None else self._top(token))
            body["text_offset"].append(self.characters)
            self.characters += 0 if token.is_end else len(token.text)
        return body

    def _top(self, token: ScoredToken) -> dict[str, float]:
        top: dict[str, float] = {}
        for text, logprob in (*token.top[: self.count], (token.text, token.logprob or 0.0)):
            top.setdefault(text, logprob)  # different bytes may have one text: the likeliest stays
        return top


def chat_logprobs(tokens: Iterable[ScoredToken]) -> dict[str, Any]:
    """Return the object `logprobs` of `/v1/chat/completions`, without the end token, which is not part of the text."""
    content = [
        {
            **_chat_logprob(token.text, token.logprob),
            "top_logprobs": [_chat_logprob(text, logprob) for text, logprob in token.top],
        }
        for token in tokens
        if not token.is_end
    ]
    return {"content": content, "refusal": None}


def _chat_logprob(text: str, logprob: float | None) -> dict[str, Any]:
    # Part of a character has no text of its own, and its bytes are not known here.
    encoded = None if _REPLACEMENT in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": encoded}
