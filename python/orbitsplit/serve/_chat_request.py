"""Body of `/v1/chat/completions`."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import Field, field_validator
from transformers import PreTrainedTokenizerBase

from ._messages import Message
from ._request_body import GenerationRequest, NewTokens

# Arguments of the tokenizer, which a request must not set: another template, a truncation.
_ARGUMENTS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


class ChatRequest(GenerationRequest):
    """Body of `/v1/chat/completions`. Without a limit the answer may fill the context.

    `chat_template_kwargs` are variables of the model's chat template, such as `enable_thinking`; `reasoning_effort` is
    one too.
    """

    messages: list[Message] = Field(min_length=1)
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: str | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_ARGUMENTS & value.keys())
        if taken:
            raise ValueError(f'"{taken[0]}" is not a variable of the template, but an argument of the server')
        return value

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template may read beside the messages; a template that does not ask for it ignores it."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **self.chat_template_kwargs}

    def limit(self) -> tuple[str, int | None]:
        """Return the name and value of the limit given; the newer name takes precedence."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens
