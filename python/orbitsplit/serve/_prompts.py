"""Prompts of requests as token ids of the model, and the limit of tokens per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from ._api_error import ApiError
from ._chat_request import Chat
from ._detokeniser import TokenDecoder, without_incomplete
from ._log import log


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

    def encode(self, prompt: str | Sequence[int], param: str = "prompt", *, is_answered: bool = True) -> list[int]:
        """Return the token ids of text, special tokens included, or token ids unchanged. Raises ApiError 400.

        A prompt that `is_answered` leaves a place for the answer in the context.
        """
        if isinstance(prompt, str):
            return self._checked(param, self.tokens_of(prompt), is_answered=is_answered)
        self.check_tokens(param, prompt)
        return self._checked(param, list(prompt), is_answered=is_answered)

    def tokens_of(self, text: str, *, with_special: bool = True) -> list[int]:
        """Return the token ids of a text of any length."""
        tokens: list[int] = self._tokenizer(text, add_special_tokens=with_special, verbose=False)["input_ids"]
        return tokens

    def names_of(self, tokens: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary has them."""
        names: list[str] = self._tokenizer.convert_ids_to_tokens(list(tokens))
        return names

    def check_tokens(self, param: str, tokens: Sequence[int]) -> None:
        """Raise ApiError 400 for a token that is not in the vocabulary."""
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise _refused(param, f"token {unknown} is not one of 0 to {self._vocabulary - 1}")

    def encode_chat(self, chat: Chat) -> list[int]:
        """Return the token ids of a chat in the model's template, ready for an answer. Raises ApiError 400."""
        return self._checked("messages", self.chat_tokens(chat))

    def chat_tokens(self, chat: Chat, *, is_answered: bool = True) -> list[int]:
        """Return the token ids of a chat of any length; where it `is_answered`, with the beginning of an answer."""
        self.template(chat)
        try:
            tokens: list[int] = self._tokenizer.apply_chat_template(
                [message.for_template() for message in chat.messages],
                tools=chat.shown_tools,
                add_generation_prompt=is_answered,
                tokenize=True,
                return_dict=False,
                **chat.template_variables,
            )
        except TemplateSyntaxError:  # the template itself is broken, whatever the messages
            raise
        except (TemplateError, TypeError, ValueError) as error:
            raise _template_error(error) from error
        return tokens

    def template(self, chat: Chat) -> str:
        """Return the chat template, that for tools where the chat has some. Raises ApiError 400 without one."""
        if self._tokenizer.chat_template is None:
            raise _refused("messages", "the model has no chat template; it continues text: /v1/completions")
        template: str = self._tokenizer.get_chat_template(tools=chat.shown_tools)
        return template

    def echo(self, prompt: str | Sequence[int]) -> str:
        """Return the text of a prompt without an incomplete character at its end, which the answer may complete.

        Raises ApiError 400 for a token that is not in the vocabulary.
        """
        if isinstance(prompt, str):
            return without_incomplete(prompt)
        self.check_tokens("prompt", prompt)
        return without_incomplete(self.decoder.decode(prompt))

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

    def _checked(self, param: str, tokens: list[int], *, is_answered: bool = True) -> list[int]:
        if not tokens:
            raise _refused(param, "the prompt has no tokens")
        if len(tokens) + is_answered > self.context_tokens:
            end = " with the answer" if is_answered else ""
            raise _refused(
                param,
                f"the prompt has {len(tokens)} tokens, the context is {self.context_tokens}{end}",
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
