"""Body of `/v1/chat/completions`, and what it shares with other requests that have a chat."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from ._messages import Message
from ._request_body import MAX_LOGPROBS, GenerationRequest, NewTokens
from ._tools import NamedTool, Tool, ToolChoice, schema_of_call

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
# Arguments of the tokenizer, which a request must not set: another template, a truncation.
_ARGUMENTS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Chat(BaseModel):
    """Messages, tools, and variables of the model's chat template, such as `enable_thinking`."""

    model_config = _STRICT

    messages: list[Message] = Field(min_length=1)
    tools: tuple[Tool, ...] = Field((), strict=False)
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

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the template is given, None for none."""
        return [tool.for_template() for tool in self.tools] or None


class JsonSchema(BaseModel):
    """A named JSON schema. `strict` is ignored: the answer always follows the schema."""

    model_config = _STRICT

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of an answer: text, a JSON object, or JSON that follows a schema."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and is required with it")
        return self

    @property
    def schema(self) -> dict[str, Any] | None:  # type: ignore[override]  # pydantic's own is deprecated
        """The JSON schema of the answer, None for any text."""
        if self.type == "text":
            return None
        given = None if self.json_schema is None else self.json_schema.schema_
        return _ANY_OBJECT if given is None else given


class ChatRequest(GenerationRequest, Chat):
    """Body of `/v1/chat/completions`. Without a limit the answer may fill the context."""

    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> ChatRequest:
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in self.tools}:
            raise ValueError("tool_choice names a function that is not in tools")
        if self.calls_tools and self.response_format is not None and self.response_format.schema is not None:
            raise ValueError("response_format is not supported with tools, except with tool_choice none")
        return self

    @model_validator(mode="after")
    def _check_min_tokens(self) -> ChatRequest:
        # Behind a complete answer the schema allows the end token alone, which min_tokens may forbid.
        if self.min_tokens and self.schema_of_answer is not None:
            raise ValueError(f"min_tokens is {self.min_tokens}, must be 0 where the answer follows a JSON schema")
        return self

    @property
    def calls_tools(self) -> bool:
        """Whether the answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def shown_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the template is given: none where none may be called."""
        return super().shown_tools if self.calls_tools else None

    @property
    def forced_tool(self) -> str | None:
        """The name of the one function that must be called, None if none must, or any of several."""
        if isinstance(self.tool_choice, NamedTool):
            return self.tool_choice.function.name
        return None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the whole answer follows, None if it is free."""
        if self.forced_tool is not None:
            return next(t.function.schema_of_parameters for t in self.tools if t.function.name == self.forced_tool)
        if self.tool_choice == "required":
            return schema_of_call(self.tools)
        return None if self.response_format is None else self.response_format.schema

    def limit(self) -> tuple[str, int | None]:
        """Return the name and value of the limit given; the newer name takes precedence."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def sampling(self, choice: int) -> dict[str, Any]:
        """Return the engine's arguments, that for log-probabilities included."""
        scores = {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
        return {**super().sampling(choice), **scores}
