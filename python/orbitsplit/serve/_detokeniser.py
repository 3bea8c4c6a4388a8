"""Incremental detokenisation: text as tokens arrive, without breaking characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What decoders emit for bytes that are not a character, or not one yet.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Decoding depends on neighbours (a leading space is dropped at the very beginning, bytes join to characters), so some
# tokens of the prompt precede the first new one.
_CONTEXT_TOKENS = 6
# A character has at most four bytes, and a token at least one: a character that more bytes may complete has at most
# three of the last tokens, and four tokens are enough for a decoder to find the next character after invalid bytes.
_INCOMPLETE_TOKENS, _CHARACTER_TOKENS = 3, 4
# With more pending tokens than this, most are invalid bytes.
_MAX_PENDING = 16


class TokenDecoder:
    """Decodes tokens of a tokenizer. `special` are those that have no text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(token for token, added_token in added.items() if added_token.special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def text_with_special(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones as they are written."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def text_of(self, token: int) -> str:
        """Return the text of one token."""
        return self.text_with_special([token])


def without_incomplete(text: str) -> str:
    """Return text without the bytes at its end that are not a character, or not one yet."""
    return text.rstrip(_REPLACEMENT)


class Detokeniser:
    """The text after a prompt, in pieces: joined, they are the text of all new tokens, decoded after the prompt.

    A window of tokens is decoded with and without the latest ones. It advances with every complete character, and over
    invalid bytes once no further byte can complete them, so that a token costs the same however many came before.
    """

    def __init__(self, decoder: TokenDecoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._emitted = len(self._window)  # the tokens of the window whose text has been returned
        self._emitted_characters = len(without_incomplete(decoder.decode(self._window)))
        self._start_of_invalid = self._emitted

    def feed(self, token: int) -> str:
        """Return the text that one more token completes, "" if it completes none."""
        if token in self._decoder.special:  # without text; between bytes, the window would hold any number of them
            return ""
        self._window.append(token)
        text = self._decoder.decode(self._window)
        if not text.endswith(_REPLACEMENT) and len(text) > self._emitted_characters:
            return self._advance(text)
        if len(self._window) - self._emitted > _MAX_PENDING:
            return self._advance_over_invalid(text)
        return ""

    def flush(self) -> str:
        """Return the text of what is incomplete: no more tokens come."""
        return self._advance(self._decoder.decode(self._window))

    def _advance(self, text: str) -> str:
        piece = text[self._emitted_characters :]
        del self._window[: self._emitted]
        self._emitted = self._start_of_invalid = len(self._window)
        self._emitted_characters = len(self._decoder.decode(self._window))
        return piece

    def _advance_over_invalid(self, text: str) -> str:
        """Return the text of pending tokens that are certain, and forget those in the middle of the window.

        The first ones stay: some decoders replace a whole run of bytes for one that is invalid.
        """
        for end in range(len(self._window) - _INCOMPLETE_TOKENS, self._emitted, -1):
            certain = self._decoder.decode(self._window[:end])
            if text.startswith(certain):
                break
        else:
            return self._advance(text)
        piece = certain[self._emitted_characters :]
        first = self._start_of_invalid + _CHARACTER_TOKENS
        last = max(first, end - _CHARACTER_TOKENS)
        del self._window[first:last]
        self._emitted = end - (last - first)
        self._emitted_characters = len(self._decoder.decode(self._window[: self._emitted]))
        return piece
