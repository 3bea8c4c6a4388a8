"""Response bodies as JSON objects: complete, and in the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ._scored_token import CompletionLogprobs, ScoredToken, chat_logprobs
from ._tool_calls import ToolCall

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What is new of a choice: text and calls of tools, and the tokens if their log-probabilities are asked for.

    `prompt` are the prompt's tokens, once, before everything else.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: tuple[ScoredToken, ...] = ()
    prompt: tuple[ScoredToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.tokens or self.prompt)

    def __add__(self, more: Part) -> Part:
        return Part(
            self.text + more.text, self.calls + more.calls, self.tokens + more.tokens, self.prompt + more.prompt
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished choice."""

    part: Part
    finish_reason: str


class ResponseBody(Protocol):
    """The response of an endpoint, complete or in events. In a stream, `ends_with_done` adds OpenAI's last line."""

    ends_with_done: bool

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""

    def opening(self, choices: int) -> list[Event]:
        """Return the events before all others."""

    def part(self, index: int, part: Part) -> list[Event]:
        """Return the events of a part of a choice."""

    def end(self, index: int, finish_reason: str) -> list[Event]:
        """Return the last events of a choice."""

    def closing(self, usage: dict[str, int]) -> list[Event]:
        """Return the events after all choices."""

    def failure(self, error: Event) -> Event:
        """Return the last event of a stream that failed, given the error as a response would have it."""


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the token counts in the form of the API."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class CompletionBody:
    """Responses of `/v1/completions`.

    `echoes` has the text before each choice's own, "" for none. With `logprobs`, so many tokens in place of each one
    are given, and an echo comes with the tokens of the prompt.
    """

    ends_with_done = True

    def __init__(self, model: str, echoes: list[str], *, logprobs: int | None, includes_usage: bool) -> None:
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", **_created_now(model)}
        self._echoes = echoes
        self._logprobs = None if logprobs is None else [CompletionLogprobs(logprobs) for _ in echoes]
        self._includes_usage = includes_usage
        self._tail = {"usage": None} if includes_usage else {}

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        records = [
            self._record(index, self._echoes[index] + choice.part.text, choice.part, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": records, "usage": usage}

    def opening(self, choices: int) -> list[Event]:
        """Return the echoes, unless they come with their tokens."""
        if self._logprobs is not None:
            return []
        return [self._chunk(index, echo, Part(), None) for index, echo in enumerate(self._echoes) if echo]

    def part(self, index: int, part: Part) -> list[Event]:
        """Return a chunk of text."""
        return [self._chunk(index, (self._echoes[index] if part.prompt else "") + part.text, part, None)]

    def end(self, index: int, finish_reason: str) -> list[Event]:
        """Return the last chunk of a choice."""
        return [self._chunk(index, "", Part(), finish_reason)]

    def closing(self, usage: dict[str, int]) -> list[Event]:
        """Return the chunk with the usage if it is asked for."""
        return [{**self._head, "choices": [], "usage": usage}] if self._includes_usage else []

    def failure(self, error: Event) -> Event:
        """Return the error as it is."""
        return error

    def _chunk(self, index: int, text: str, part: Part, finish_reason: str | None) -> Event:
        return {**self._head, "choices": [self._record(index, text, part, finish_reason)], **self._tail}

    def _record(self, index: int, text: str, part: Part, finish_reason: str | None) -> dict[str, Any]:
        tokens = (*part.prompt, *part.tokens)
        logprobs = self._logprobs[index].of(tokens) if self._logprobs is not None and tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class ChatBody:
    """Responses of `/v1/chat/completions`."""

    ends_with_done = True

    def __init__(self, model: str, *, logprobs: bool, includes_usage: bool) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = _created_now(model)
        self._has_logprobs = logprobs
        self._includes_usage = includes_usage
        self._tail = {"usage": None} if includes_usage else {}
        self._calls: Counter[int] = Counter()  # of each choice so far

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        records = [
            {
                "index": index,
                "message": _message(choice.part),
                "logprobs": chat_logprobs(choice.part.tokens) if self._has_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {"id": self._id, "object": "chat.completion", **self._created, "choices": records, "usage": usage}

    def opening(self, choices: int) -> list[Event]:
        """Return a chunk with the role for each choice."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(choices)]

    def part(self, index: int, part: Part) -> list[Event]:
        """Return a chunk with the text, and one for each call."""
        chunks = []
        if part.text or part.tokens:
            logprobs = chat_logprobs(part.tokens) if part.tokens else None
            chunks.append(self._chunk(index, {"content": part.text}, logprobs=logprobs))
        for call in part.calls:
            chunks.append(self._chunk(index, {"tool_calls": [{"index": self._calls[index], **_call(call)}]}))
            self._calls[index] += 1
        return chunks

    def end(self, index: int, finish_reason: str) -> list[Event]:
        """Return the last chunk of a choice."""
        return [self._chunk(index, {}, finish_reason)]

    def closing(self, usage: dict[str, int]) -> list[Event]:
        """Return the chunk with the usage if it is asked for."""
        return [{**self._chunks([]), "usage": usage}] if self._includes_usage else []

    def failure(self, error: Event) -> Event:
        """Return the error as it is."""
        return error

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
    ) -> Event:
        return self._chunks([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}])

    def _chunks(self, choices: list[dict[str, Any]]) -> Event:
        return {"id": self._id, "object": "chat.completion.chunk", **self._created, "choices": choices, **self._tail}


def _message(part: Part) -> dict[str, Any]:
    if not part.calls:
        return {"role": "assistant", "content": part.text, "refusal": None}
    calls = [_call(call) for call in part.calls]
    return {"role": "assistant", "content": part.text or None, "refusal": None, "tool_calls": calls}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _created_now(model: str) -> dict[str, Any]:
    return {"created": int(time.time()), "model": model}
