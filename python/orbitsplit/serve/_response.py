"""The response to one request: its generations are submitted, sent as they proceed, and ended with the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, create_task_group, to_thread
from starlette.types import Receive, Scope, Send

from ._admission import Admission
from ._chat_request import ChatRequest
from ._engine import Engine
from ._generation import EngineRequest, Generation
from ._prompts import Prompts
from ._recovery_log import RecoveryLog
from ._request_body import CompletionRequest
from ._response_body import ChatBody, Choice, CompletionBody, ResponseBody, usage_of

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer the stream until its end
]


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share. One request at a time is encoded and submitted: first come, first served."""

    engine: Engine
    prompts: Prompts
    admission: Admission
    model_name: str
    eos_token_ids: tuple[int, ...]
    recoveries: RecoveryLog
    num_assistant_tokens: int | None = None
    submission: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))


class Response:
    """The response (an ASGI application) to one request. A client that disconnects cancels it."""

    def __init__(self, service: Service, request: CompletionRequest | ChatRequest) -> None:
        self._service = service
        self._request = request
        self._changed = asyncio.Event()
        self._prompt_tokens = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _while_connected(receive, lambda: self._respond(send))

    async def _respond(self, send: Send) -> None:
        request = self._request
        prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
        generations = self._service.admission.admit(prompts * request.n, self._changed.set)
        try:
            await to_thread.run_sync(self._start, generations, limiter=self._service.submission)
            if request.stream:
                await self._send_stream(generations, send)
            else:
                await self._send_whole(generations, send)
        finally:
            for generation in generations:
                generation.close()
            self._service.recoveries.update()

    def _start(self, generations: list[Generation]) -> None:
        service, request = self._service, self._request
        if isinstance(request, CompletionRequest):
            prompts = [service.prompts.encode(prompt) for prompt in request.prompt]
            limit: tuple[str, int | None] = ("max_tokens", request.max_tokens)
        else:
            prompts = [service.prompts.encode_chat(request)]
            limit = request.limit()
        self._prompt_tokens = sum(map(len, prompts))
        drafts = service.num_assistant_tokens
        guesses = {} if drafts is None else {"num_assistant_tokens": drafts}
        requests = [
            EngineRequest(
                prompt,
                service.prompts.new_tokens(*limit, prompt),
                service.eos_token_ids,
                request.stop,
                {**request.sampling(choice), **guesses},
            )
            for prompt in prompts
            for choice in range(request.n)
        ]
        for generation, one in zip(generations, requests, strict=True):
            try:
                generation.start(service.engine, service.prompts.decoder, one)
            except Exception as error:
                raise service.admission.explain(error) from error

    async def _send_whole(self, generations: list[Generation], send: Send) -> None:
        pieces: list[list[str]] = [[] for _ in generations]

        async def keep(index: int, text: str, finish_reason: str | None) -> None:
            pieces[index].append(text)

        try:
            await self._follow(generations, keep)
        except Exception as error:
            raise self._service.admission.explain(error) from error
        choices = [
            Choice("".join(texts), str(generation.finish_reason))
            for texts, generation in zip(pieces, generations, strict=True)
        ]
        body = json.dumps(self._body().whole(choices, self._usage(generations)), ensure_ascii=False).encode()
        await _send_start(send, 200, [(b"content-type", b"application/json")])
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, generations: list[Generation], send: Send) -> None:
        async def send_event(event: dict[str, Any] | str) -> None:
            data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        async def send_piece(index: int, text: str, finish_reason: str | None) -> None:
            if text:
                await send_event(body.text(index, text))
            if finish_reason is not None:
                await send_event(body.end(index, finish_reason))

        body = self._body()
        await _send_start(send, 200, _STREAM_HEADERS)
        try:
            for index in range(len(generations)):
                opening = body.opening(index)
                if opening is not None:
                    await send_event(opening)
            await self._follow(generations, send_piece)
            if self._request.includes_usage:
                await send_event(body.usage(self._usage(generations)))
            await send_event("[DONE]")
        except Exception as error:  # too late for a status
            await send_event(self._service.admission.explain(error).to_dict())
        await send({"type": "http.response.body", "body": b""})

    async def _follow(
        self, generations: list[Generation], notify: Callable[[int, str, str | None], Awaitable[None]]
    ) -> None:
        """Pass each generation's new text and its end to `notify`. Raises the error of one that failed.

        While `notify` waits for a slow client, the generations buffer their text, which then comes in larger pieces.
        """
        running = dict(enumerate(generations))
        while running:
            await self._changed.wait()
            self._changed.clear()
            for index, generation in list(running.items()):
                finish_reason, text = generation.finish_reason, generation.take()
                if generation.error is not None:
                    raise generation.error
                if finish_reason is not None:
                    del running[index]
                if text or finish_reason is not None:
                    await notify(index, text, finish_reason)
        self._service.admission.note_success()

    def _body(self) -> ResponseBody:
        request, name = self._request, self._service.model_name
        if isinstance(request, ChatRequest):
            return ChatBody(name, is_usage_announced=request.includes_usage)
        echoes = [self._service.prompts.echo(prompt) if request.echo else "" for prompt in request.prompt]
        of_choices = [echo for echo in echoes for _ in range(request.n)]
        return CompletionBody(name, of_choices, is_usage_announced=request.includes_usage)

    def _usage(self, generations: list[Generation]) -> dict[str, int]:
        return usage_of(self._prompt_tokens, sum(generation.tokens for generation in generations))


async def _send_start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Await `work`; cancel it when the client disconnects. Raises what it raises."""
    failure: Exception | None = None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with create_task_group() as group:
        group.start_soon(watch)
        try:
            await work()
        except Exception as error:  # the task group would wrap it in an ExceptionGroup
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
