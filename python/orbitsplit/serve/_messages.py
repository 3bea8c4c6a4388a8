"""Messages of a chat, as clients send them and as chat templates take them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Fields of answers, also of other servers, that clients send back with them. No template has a place for them.
_OF_ANSWERS = frozenset(
    {"annotations", "audio", "function_call", "provider_specific_fields", "reasoning", "reasoning_content", "refusal"}
)
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class FunctionCall(BaseModel):
    """A function that the model called, with its arguments as the text of a JSON object."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    arguments: str = "{}"

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, value: str) -> str:
        try:
            is_object = isinstance(json.loads(value or "{}"), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ValueError("expected the text of a JSON object")
        return value or "{}"


class MessageToolCall(BaseModel):
    """A call in an assistant's message."""

    model_config = _STRICT

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _drop_index(cls, value: Any) -> Any:
        # Clients that put a stream together leave the index in.
        return {key: item for key, item in value.items() if key != "index"} if isinstance(value, dict) else value


class Message(BaseModel):
    """One message of a chat. Content given in parts is joined; an assistant that calls tools needs none."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[MessageToolCall, ...] = Field((), strict=False)
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        # Clients send back the messages they received, with null for every field that these lack.
        if not isinstance(value, dict):
            return value
        is_assistant = value.get("role") == "assistant"
        return {
            key: item
            for key, item in value.items()
            if item not in (None, []) and not (is_assistant and key in _OF_ANSWERS)
        }

    @field_validator("content", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [_text_of(part) for part in value]
        if None in texts:
            raise ValueError('expected text, or a list of parts {"type": "text", "text": ...}; nothing else is served')
        return "".join(text for text in texts if text is not None)

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; only an assistant's message with tool_calls has none")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls are an assistant's, the role is {self.role}")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is missing; a tool's message answers a call")
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message as templates of transformers take it: arguments of calls are objects, not text."""
        # Templates join content to text; null would be the word "None" in some.
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        for key, value in (("name", self.name), ("tool_call_id", self.tool_call_id)):
            if value is not None:
                message[key] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        return message


def _text_of(part: Any) -> str | None:
    """Return the text of a part of a message, None if it is no text."""
    if not isinstance(part, dict):
        return None
    text = part.get(_TEXT_PARTS.get(str(part.get("type")), ""))
    return text if isinstance(text, str) else None
