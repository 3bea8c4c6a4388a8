"""Responses of `/v1/responses`: complete, and in the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from ._response_body import Choice, Event, Part
from ._responses_request import ResponsesRequest
from ._tool_calls import ToolCall


class ResponsesBody:
    """Responses of `/v1/responses`: a message, and an item for each call of a tool."""

    ends_with_done = False

    def __init__(self, request: ResponsesRequest) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._request = request
        self._created_at = int(time.time())
        self._number = 0  # of the next event
        self._text: str | None = None  # of the message that is open
        self._message_id = ""
        self._output: list[dict[str, Any]] = []
        self._finish_reason = "stop"

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        (choice,) = choices
        self.part(0, choice.part)
        self.end(0, choice.finish_reason)
        return self._response(usage)

    def opening(self, choices: int) -> list[Event]:
        """Return the events that announce the response."""
        response = {**self._response(None), "status": "in_progress"}
        return [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def part(self, index: int, part: Part) -> list[Event]:
        """Return the events of text and calls."""
        events = [] if not part.text else self._add_text(part.text)
        for call in part.calls:
            events += [*self._close_message(), *self._add_call(call)]
        return events

    def end(self, index: int, finish_reason: str) -> list[Event]:
        """Return the events that close the message; an answer without text or calls is an empty message."""
        self._finish_reason = finish_reason
        opened = [] if self._output or self._text is not None else self._add_text("")
        return [*opened, *self._close_message()]

    def closing(self, usage: dict[str, int]) -> list[Event]:
        """Return the complete response."""
        response = self._response(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def failure(self, error: Event) -> Event:
        """Return the error as an event."""
        said = error["error"]  # whose "type" is that of the error, not of the event
        return self._event("error", message=said["message"], param=said["param"], code=said["code"])

    def _add_text(self, text: str) -> list[Event]:
        events = []
        if self._text is None:
            self._text, self._message_id = "", f"msg_{uuid.uuid4().hex}"
            item = {**self._message(), "status": "in_progress", "content": []}
            events.append(self._event("response.output_item.added", output_index=len(self._output), item=item))
            events.append(self._content_event("content_part.added", part=_text_part("")))
        self._text += text
        if text:
            events.append(self._content_event("output_text.delta", delta=text, logprobs=[]))
        return events

    def _close_message(self) -> list[Event]:
        if self._text is None:
            return []
        item = self._message()
        events = [
            self._content_event("output_text.done", text=self._text, logprobs=[]),
            self._content_event("content_part.done", part=_text_part(self._text)),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        self._text = None
        return events

    def _add_call(self, call: ToolCall) -> list[Event]:
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        place = {"output_index": len(self._output), "item_id": item["id"]}
        begun = {**item, "status": "in_progress", "arguments": ""}
        arguments = "response.function_call_arguments"
        events = [
            self._event("response.output_item.added", output_index=len(self._output), item=begun),
            self._event(f"{arguments}.delta", **place, delta=call.arguments),
            self._event(f"{arguments}.done", **place, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        return events

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [_text_part(self._text or "")],
        }

    def _content_event(self, kind: str, **fields: Any) -> Event:
        place = {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}
        return self._event(f"response.{kind}", **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _response(self, usage: dict[str, int] | None) -> dict[str, Any]:
        request = self._request
        is_cut = self._finish_reason == "length"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": list(self._output),
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning and request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": request.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": request.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in request.tools],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "metadata": request.metadata,
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
