"""The response to one request: its generations are submitted, sent as they proceed, and ended with the connection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, create_task_group, to_thread
from starlette.types import Receive, Scope, Send

from ._admission import Admission
from ._api_error import ApiError
from ._chat_request import ChatRequest
from ._engine import Engine
from ._generation import EngineRequest, Generation, Piece
from ._grammar import GrammarFactory
from ._log import log
from ._metrics import Metrics
from ._prompts import Prompts
from ._recovery_log import RecoveryLog
from ._request_body import CompletionRequest
from ._response_body import Choice, Event, Part, ResponseBody, usage_of
from ._tool_calls import CallParser, OneCall, parser_for

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer the stream until its end
]


@dataclass(frozen=True, slots=True)
class Service:
    """What all requests share. One request at a time is encoded and submitted: first come, first served.

    `grammar` returns what makes an answer follow a JSON schema, None where the engine cannot.
    """

    engine: Engine
    prompts: Prompts
    admission: Admission
    metrics: Metrics
    model_name: str
    eos_token_ids: tuple[int, ...]
    recoveries: RecoveryLog
    num_assistant_tokens: int | None = None
    grammar: GrammarFactory | None = None
    submission: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))


class Response:
    """The response (an ASGI application) to one request. A client that disconnects cancels it."""

    def __init__(self, service: Service, request: CompletionRequest | ChatRequest, body: ResponseBody) -> None:
        self._service = service
        self._request = request
        self._body = body
        self._changed = asyncio.Event()
        self._prompt_tokens = 0
        self._parsers: list[CallParser | None] = []
        self._has_called: set[int] = set()  # choices with a call so far

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond until the end, or until the client disconnects."""
        await while_connected(receive, lambda: self._respond(send))

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
            submitted = [generation for generation in generations if generation.submitted_s]
            if submitted:  # others were refused, which is logged as that
                self._service.metrics.observe(submitted, prompt_tokens=self._prompt_tokens)
                self._log(submitted)
            self._service.recoveries.update()

    def _log(self, generations: list[Generation]) -> None:
        tokens = sum(generation.tokens for generation in generations)
        seconds = time.monotonic() - min(generation.submitted_s for generation in generations)
        fields = {
            "choices": len(generations),
            "prompt_tokens": self._prompt_tokens,
            "tokens": tokens,
            "seconds": round(seconds, 4),
        }
        log.info(
            "finished: %d choices, %d tokens in %.3f s", len(generations), tokens, seconds, extra={"fields": fields}
        )

    def _start(self, generations: list[Generation]) -> None:
        service, requests = self._service, self._engine_requests()
        self._parsers = [self._parser() for _ in generations]
        for generation, one in zip(generations, requests, strict=True):
            try:
                generation.start(service.engine, service.prompts.decoder, one)
            except Exception as error:
                raise service.admission.explain(error) from error

    def _engine_requests(self) -> list[EngineRequest]:
        service, request = self._service, self._request
        schema = None
        if isinstance(request, CompletionRequest):
            prompts = [service.prompts.encode(prompt) for prompt in request.prompt]
            limit: tuple[str, int | None] = ("max_tokens", request.max_tokens)
        else:
            prompts = [service.prompts.encode_chat(request)]
            limit, schema = request.limit(), request.schema_of_answer
        self._prompt_tokens = sum(map(len, prompts))
        extra: dict[str, Any] = {}
        if service.num_assistant_tokens is not None:
            extra["num_assistant_tokens"] = service.num_assistant_tokens
        if schema is not None:
            extra["logits_processor"] = [self._grammar(schema, prompts[0])]
        return [
            EngineRequest(
                prompt,
                service.prompts.new_tokens(*limit, prompt),
                () if request.ignore_eos else service.eos_token_ids,
                request.stop,
                {**request.sampling(choice), **extra},
            )
            for prompt in prompts
            for choice in range(request.n)
        ]

    def _grammar(self, schema: dict[str, Any], prompt: list[int]) -> Any:
        is_format = isinstance(self._request, ChatRequest) and not self._request.calls_tools
        param = "response_format" if is_format else "tool_choice"
        if self._service.grammar is None:
            message = f"{param}: this server has no grammars for JSON: pip install llguidance"
            raise ApiError(400, message, param=param, code="unsupported_parameter")
        try:
            return self._service.grammar(schema, len(prompt), self._service.eos_token_ids)
        except ValueError as error:  # the grammar library's own words on the client's schema
            raise ApiError(400, f"{param}: the JSON schema cannot be used: {error}", param=param) from error

    def _parser(self) -> CallParser | None:
        request = self._request
        if not isinstance(request, ChatRequest) or not request.calls_tools:
            return None
        if request.schema_of_answer is not None:
            return OneCall(request.forced_tool)
        names = [tool.function.name for tool in request.tools]
        return parser_for(self._service.prompts.template(request), names)

    async def _send_whole(self, generations: list[Generation], send: Send) -> None:
        parts = [Part() for _ in generations]
        reasons = [""] * len(generations)

        async def keep(index: int, part: Part, finish_reason: str | None) -> None:
            parts[index] += part
            reasons[index] = finish_reason or ""

        try:
            await self._follow(generations, keep)
        except Exception as error:
            raise self._service.admission.explain(error) from error
        choices = [Choice(part, reason) for part, reason in zip(parts, reasons, strict=True)]
        body = json.dumps(self._body.whole(choices, self._usage(generations)), ensure_ascii=False).encode()
        await _send_start(send, 200, [(b"content-type", b"application/json")])
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, generations: list[Generation], send: Send) -> None:
        async def send_events(events: Iterable[Event]) -> None:
            for event in events:
                data = json.dumps(event, ensure_ascii=False)
                name = "" if self._body.ends_with_done else f"event: {event['type']}\n"
                await send_text(f"{name}data: {data}\n\n")

        async def send_text(text: str) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        async def send_part(index: int, part: Part, finish_reason: str | None) -> None:
            if part:
                await send_events(body.part(index, part))
            if finish_reason is not None:
                await send_events(body.end(index, finish_reason))

        body = self._body
        await _send_start(send, 200, _STREAM_HEADERS)
        try:
            await send_events(body.opening(len(generations)))
            await self._follow(generations, send_part)
            await send_events(body.closing(self._usage(generations)))
            if body.ends_with_done:
                await send_text("data: [DONE]\n\n")
        except Exception as error:  # too late for a status
            await send_events([body.failure(self._service.admission.explain(error).to_dict())])
        await send({"type": "http.response.body", "body": b""})

    async def _follow(
        self, generations: list[Generation], notify: Callable[[int, Part, str | None], Awaitable[None]]
    ) -> None:
        """Pass what is new of each generation and its end to `notify`. Raises the error of one that failed.

        While `notify` waits for a slow client, the generations buffer their text, which then comes in larger pieces.
        """
        running = dict(enumerate(generations))
        while running:
            await self._changed.wait()
            self._changed.clear()
            for index, generation in list(running.items()):
                finish_reason, piece = generation.finish_reason, generation.take()
                if generation.error is not None:
                    raise generation.error
                if finish_reason is not None:
                    del running[index]
                part = self._parsed(index, piece, is_last=finish_reason is not None)
                if finish_reason == "stop" and index in self._has_called:
                    finish_reason = "tool_calls"
                if part or finish_reason is not None:
                    await notify(index, part, finish_reason)
        self._service.admission.note_success()

    def _parsed(self, index: int, piece: Piece, *, is_last: bool) -> Part:
        parser = self._parsers[index]
        if parser is None:
            return Part(piece.text, (), piece.tokens, piece.prompt)
        parsed = parser.feed(piece.text)
        text, calls = parsed.text, parsed.calls
        if is_last:
            rest = parser.flush()
            text, calls = text + rest.text, calls + rest.calls
        if isinstance(self._request, ChatRequest) and not self._request.parallel_tool_calls:
            calls = () if index in self._has_called else calls[:1]
        if calls:
            self._has_called.add(index)
        return Part(text, calls, piece.tokens, piece.prompt)

    def _usage(self, generations: list[Generation]) -> dict[str, int]:
        return usage_of(self._prompt_tokens, sum(generation.tokens for generation in generations))


async def _send_start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
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
