"""Tokens to text as they come, characters never broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What decoders put in the place of bytes that are no character, or not one yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

# Decoding looks at neighbours (a leading space is dropped at the very beginning, bytes join to characters), so some
# tokens of the prompt go before the first new one; a character has at most four.
_CONTEXT_TOKENS = 6


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens, special ones left out."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def without_incomplete(text: str) -> str:
    """Return text up to the bytes at its end that are no character, or not one yet."""
    return text.rstrip(_INCOMPLETE)


class Detokeniser:
    """The text of what follows a prompt, piece by piece: joined, that of all new tokens decoded after the prompt.

    A window of tokens is decoded with and without the new ones; it moves on at every complete character.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._told = len(self._window)  # so many tokens of the window have been given out
        self._told_characters = len(without_incomplete(decode(tokenizer, self._window)))

    def feed(self, token: int) -> str:
        """Return the text that one more token completes, "" if it completes none."""
        self._window.append(token)
        text = decode(self._tokenizer, self._window)
        if text.endswith(_INCOMPLETE) or len(text) <= self._told_characters:
            return ""
        return self._move_on(text)

    def flush(self) -> str:
        """Return the text of what is incomplete: no more tokens come."""
        return self._move_on(decode(self._tokenizer, self._window))

    def _move_on(self, text: str) -> str:
        piece = text[self._told_characters :]
        del self._window[: self._told]
        self._told = len(self._window)
        self._told_characters = len(decode(self._tokenizer, self._window))
        return piece
