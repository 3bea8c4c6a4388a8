"""Prompts of requests as tokens of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ._api_error import ApiError
from ._detokeniser import decode, without_incomplete
from ._requests import Message


class Prompts:
    """A model's tokenizer, and the `context_tokens` that a prompt and its answer have together."""

    def __init__(self, tokenizer: Any, context_tokens: int) -> None:
        self.tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._vocabulary = len(tokenizer)
        # A tokenizer saved with padding or truncation switches that off when it is first used; later nothing in it
        # changes, so that one thread may decode while another encodes.
        tokenizer("a")

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the tokens of text, begun as the model was trained, or tokens as they are. Raises ApiError 400."""
        if isinstance(prompt, str):
            tokens: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        else:
            tokens = list(prompt)
            unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
            if unknown is not None:
                raise _wrong("prompt", f"token {unknown} is not one of 0 to {self._vocabulary - 1}")
        return self._checked("prompt", tokens)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat in the model's own form, ready for an answer. Raises ApiError 400."""
        if self.tokenizer.chat_template is None:
            raise _wrong("messages", "the model has no chat template; it continues text: /v1/completions")
        try:
            tokens: list[int] = self.tokenizer.apply_chat_template(
                [message.model_dump(exclude_none=True) for message in messages],
                add_generation_prompt=True,
                return_dict=False,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise _wrong("messages", f"the model's chat template refuses them: {error}") from error
        return self._checked("messages", tokens)

    def echo(self, prompt: str | Sequence[int]) -> str:
        """Return the text of a prompt; a character that the answer completes is not in it."""
        return without_incomplete(prompt if isinstance(prompt, str) else decode(self.tokenizer, prompt))

    def new_tokens(self, param: str, wanted: int | None, prompt: Sequence[int]) -> int:
        """Return how many tokens an answer may have: as wanted, or what the context leaves. Raises ApiError 400."""
        left = self._context_tokens - len(prompt)
        if wanted is None:
            return left
        if wanted > left:
            raise _wrong(
                param,
                f"the context is {self._context_tokens} tokens: the prompt's {len(prompt)} and {wanted} new ones are "
                f"{len(prompt) + wanted}",
                code="context_length_exceeded",
            )
        return wanted

    def _checked(self, param: str, tokens: list[int]) -> list[int]:
        if not tokens:
            raise _wrong(param, "the prompt has no tokens")
        if len(tokens) >= self._context_tokens:
            raise _wrong(
                param,
                f"the prompt has {len(tokens)} tokens, the context is {self._context_tokens} with the answer",
                code="context_length_exceeded",
            )
        return tokens


def _wrong(param: str, message: str, *, code: str | None = None) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)
