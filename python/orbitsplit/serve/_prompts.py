"""Prompts of requests as token ids of the model, and the limit of tokens per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from ._api_error import ApiError
from ._chat_request import ChatRequest
from ._detokeniser import TokenDecoder, without_incomplete
from ._log import log

_TEMPLATE_OPTIONS = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}


class Prompts:
    """A model's tokenizer, and the `context_tokens` that a prompt and its answer may have together."""

    def __init__(self, tokenizer: Any, context_tokens: int) -> None:
        self.decoder = TokenDecoder(tokenizer)
        self._tokenizer = tokenizer
        self.context_tokens = context_tokens
        self._vocabulary = len(tokenizer)
        # A tokenizer saved with padding or truncation disables both when it is first used. Later nothing in it changes,
        # so that one thread may decode while another encodes.
        tokenizer("a")

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids of text, special tokens included, or token ids unchanged. Raises ApiError 400."""
        if isinstance(prompt, str):
            tokens: list[int] = self._tokenizer(prompt, verbose=False)["input_ids"]
        else:
            tokens = list(prompt)
            unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
            if unknown is not None:
                raise _refused("prompt", f"token {unknown} is not one of 0 to {self._vocabulary - 1}")
        return self._checked("prompt", tokens)

    def encode_chat(self, request: ChatRequest) -> list[int]:
        """Return the token ids of a chat in the model's template, ready for an answer. Raises ApiError 400."""
        if self._tokenizer.chat_template is None:
            raise _refused("messages", "the model has no chat template; it continues text: /v1/completions")
        try:
            tokens: list[int] = self._tokenizer.apply_chat_template(
                [message.for_template() for message in request.messages],
                **request.template_variables,
                **_TEMPLATE_OPTIONS,
            )
        except TemplateSyntaxError:  # the template itself is broken, whatever the messages
            raise
        except (TemplateError, TypeError, ValueError) as error:
            raise _template_error(error) from error
        return self._checked("messages", tokens)

    def echo(self, prompt: str | Sequence[int]) -> str:
        """Return the text of a prompt without an incomplete character at its end, which the answer may complete."""
        return without_incomplete(prompt if isinstance(prompt, str) else self.decoder.decode(prompt))

    def new_tokens(self, param: str, limit: int | None, prompt: Sequence[int]) -> int:
        """Return how many tokens an answer may have: `limit`, or what the context leaves. Raises ApiError 400."""
        left = self.context_tokens - len(prompt)
        if limit is None:
            return left
        if limit > left:
            raise _refused(
                param,
                f"the context is {self.context_tokens} tokens: the prompt's {len(prompt)} and {limit} new ones are "
                f"{len(prompt) + limit}",
                code="context_length_exceeded",
            )
        return limit

    def _checked(self, param: str, tokens: list[int]) -> list[int]:
        if not tokens:
            raise _refused(param, "the prompt has no tokens")
        if len(tokens) >= self.context_tokens:
            raise _refused(
                param,
                f"the prompt has {len(tokens)} tokens, the context is {self.context_tokens} with the answer",
                code="context_length_exceeded",
            )
        return tokens


def _template_error(error: Exception) -> ApiError:
    """Return the error for messages that the chat template did not render."""
    # What a template raises on purpose is for whoever wrote the messages. Other texts are Python's or Jinja's.
    if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
        return _refused("messages", f"the model's chat template refuses them: {error}")
    log.warning("the chat template raised %s", type(error).__name__)  # whose text may quote the messages
    return _refused("messages", "the model's chat template cannot render them")


def _refused(param: str, message: str, *, code: str | None = None) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)
