"""Response bodies of both endpoints as JSON objects: complete, and in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished choice."""

    text: str
    finish_reason: str


class ResponseBody(Protocol):
    """The response of an endpoint, complete or in chunks."""

    def whole(self, choices: list[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of a choice, None if it has none of its own."""

    def text(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Return the last chunk of a choice."""

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the chunk after all choices."""


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the token counts in the form of the API."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class CompletionBody:
    """Responses of `/v1/completions`; `echoes` has the text before each choice's own, "" for none."""

    def __init__(self, model: str, echoes: list[str], *, is_usage_announced: bool) -> None:
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", **_created_now(model)}
        self._echoes = echoes
        self._tail = {"usage": None} if is_usage_announced else {}

    def whole(self, choices: list[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        records = [
            _completion(index, self._echoes[index] + choice.text, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": records, "usage": usage}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return a chunk with the echo, if there is one."""
        return self.text(index, self._echoes[index]) if self._echoes[index] else None

    def text(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return {**self._head, "choices": [_completion(index, text, None)], **self._tail}

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Return the last chunk of a choice."""
        return {**self._head, "choices": [_completion(index, "", finish_reason)], **self._tail}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the chunk after all choices."""
        return {**self._head, "choices": [], "usage": usage}


class ChatBody:
    """Responses of `/v1/chat/completions`."""

    def __init__(self, model: str, *, is_usage_announced: bool) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = _created_now(model)
        self._tail = {"usage": None} if is_usage_announced else {}

    def whole(self, choices: list[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        records = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {"id": self._id, "object": "chat.completion", **self._created, "choices": records, "usage": usage}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return a chunk with the role."""
        return self._chunk([_delta(index, {"role": "assistant", "content": ""}, None)])

    def text(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk([_delta(index, {"content": text}, None)])

    def end(self, index: int, finish_reason: str) -> dict[str, Any]:
        """Return the last chunk of a choice."""
        return self._chunk([_delta(index, {}, finish_reason)])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the chunk after all choices."""
        return {**self._chunk([]), "usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": "chat.completion.chunk", **self._created, "choices": choices, **self._tail}


def _created_now(model: str) -> dict[str, Any]:
    return {"created": int(time.time()), "model": model}


def _completion(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
