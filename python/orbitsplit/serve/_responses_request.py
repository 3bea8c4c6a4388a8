"""Body of `/v1/responses`: the items of a conversation, which become the messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ._api_error import ApiError, first_line
from ._chat_request import ChatRequest
from ._parameters import IGNORED
from ._request_body import NewTokens

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
# Beside those of all endpoints: what concerns storage and contexts that do not fit, which are refused here anyway.
IGNORED_IN_RESPONSES = (IGNORED - {"metadata", "reasoning_effort", "verbosity"}) | {
    "max_tool_calls",
    "stream_options",
    "truncation",
}


class ResponseFunction(BaseModel):
    """A tool, with its fields beside its type."""

    model_config = _STRICT

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return the tool as a chat has it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class TextFormat(BaseModel):
    """The form of the text."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    """Options of the text. `verbosity` is ignored."""

    model_config = _STRICT

    format: TextFormat = TextFormat()
    verbosity: str | None = None


class Reasoning(BaseModel):
    """Options of reasoning: `effort` is a variable of the chat template, the others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    effort: str | None = None


class ResponsesRequest(BaseModel):
    """Body of `/v1/responses`. Nothing is stored: `previous_response_id` and `conversation` are refused."""

    model_config = _STRICT

    model: str
    input: str | list[dict[str, Any]] = Field(min_length=1)
    background: Literal[False] = False
    include: list[Literal["reasoning.encrypted_content"]] = Field(default_factory=list)  # of which there is none
    instructions: str | None = None
    max_output_tokens: NewTokens | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    text: TextOptions = Field(default_factory=TextOptions)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: tuple[ResponseFunction, ...] = Field((), strict=False)
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @field_validator("tool_choice")
    @classmethod
    def _check_choice(cls, value: Any) -> Any:
        if isinstance(value, dict) and (value.get("type") != "function" or not isinstance(value.get("name"), str)):
            raise ValueError('expected "none", "auto", "required" or {"type": "function", "name": ...}')
        return value

    def to_chat(self) -> ChatRequest:
        """Return the chat that this asks for. Raises ApiError 400 for items that are no messages of a chat."""
        chat: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(),
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "tools": [tool.for_chat() for tool in self.tools],
            "tool_choice": self._tool_choice(),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "response_format": self._response_format(),
        }
        try:
            return ChatRequest.model_validate({key: value for key, value in chat.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            message = first["msg"].removeprefix("Value error, ")
            path = [str(part) for part in first["loc"]]
            name = _NAMES.get(path[0], path[0]) if path else message.partition(" ")[0]
            where = first_line(".".join([name, *path[1:]]), 80)
            raise ApiError(400, f"{where}: {message}", param=where) from error

    def _messages(self) -> list[dict[str, Any]]:
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        for number, item in enumerate(given):
            _add_item(messages, item, f"input.{number}")
        return messages

    def _tool_choice(self) -> Any:
        if isinstance(self.tool_choice, dict):
            return {"type": "function", "function": {"name": self.tool_choice["name"]}}
        return self.tool_choice

    def _response_format(self) -> dict[str, Any] | None:
        form = self.text.format
        if form.type != "json_schema":
            return {"type": form.type}
        schema = form.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": schema}


_NAMES = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text.format"}


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Add an item of the input to the messages: calls of one turn are one message of the assistant."""
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({key: item[key] for key in ("role", "content") if key in item})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "type": "function"}
        call["function"] = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        if not messages or messages[-1].get("role") != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # which templates have no place for
        raise ApiError(400, f"{where}.type: items of this type are not served", param=f"{where}.type")
