"""The ASGI application: paths, keys, bodies."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio import fail_after
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ._admission import Admission
from ._answer import Answer, Service
from ._api_error import ApiError, api_error_response, http_exception_response, internal_error_response
from ._engine import Engine
from ._prompts import Prompts
from ._requests import ChatRequest, CompletionRequest, parse


def create_app(
    engine: Engine,
    tokenizer: Any,
    *,
    model_name: str,
    context_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    api_key: str | None = None,
    max_requests: int = 256,
    max_body_bytes: int = 2 << 20,
    body_timeout_s: float = 60.0,
) -> Starlette:
    """Return the ASGI application that serves `engine` to OpenAI clients.

    `tokenizer` is transformers', with a chat template if chats are to be served. A prompt and its answer have
    `context_tokens` tokens together. `eos_token_id` ends an answer; the tokenizer's by default. With an `api_key`
    every path but /health wants it. `max_requests` choices may run or wait, more are refused with 429; a body may
    have `max_body_bytes` and take `body_timeout_s` to arrive. `app.state.admission` holds what is running.

    Raises ValueError for limits that admit nothing and for an empty key.
    """
    limits = {"context_tokens": context_tokens, "max_requests": max_requests, "max_body_bytes": max_body_bytes}
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if api_key == "":
        raise ValueError("api_key is empty: None asks for no key")
    ends = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    eos_token_ids = (ends,) if isinstance(ends, int) else tuple(ends or ())
    service = Service(engine, Prompts(tokenizer, context_tokens), Admission(max_requests), model_name, eos_token_ids)
    api = _Api(service, _Bodies(max_body_bytes, body_timeout_s), int(time.time()))
    guarded = _Guard(api_key)
    app = Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", guarded(api.models)),
            Route("/v1/models/{name:path}", guarded(api.model)),
            Route("/v1/completions", guarded(api.completions), methods=["POST"]),
            Route("/v1/chat/completions", guarded(api.chat_completions), methods=["POST"]),
        ],
        exception_handlers={
            ApiError: api_error_response,
            HTTPException: http_exception_response,
            Exception: internal_error_response,
        },
        lifespan=_closing(service.admission),
    )
    app.state.admission = service.admission
    return app


Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Guard:
    """Lets requests with the key pass, all if there is none."""

    key: str | None

    def __call__(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Any:
            self._check(request.headers.get("authorization", ""))
            return await handler(request)

        return guarded

    def _check(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        # Bytes as they came: compare_digest takes no text beyond ASCII.
        is_right = self.key is None or hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        if not is_right or (self.key is not None and scheme.lower() != "bearer"):
            message = "this server wants its API key: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


@dataclass(frozen=True, slots=True)
class _Bodies:
    """Reads bodies of JSON, up to `limit` bytes."""

    limit: int
    timeout_s: float

    async def read(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "")
        # A page in a browser may post anything else to any address without being asked for permission.
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, f'the content-type is "{kind}", expected application/json')
        declared = request.headers.get("content-length", "")
        self._check(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        try:
            with fail_after(self.timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    self._check(len(body))
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {self.timeout_s:g} s") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client went away before its body was complete") from error
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ApiError(413, f"the body has {size} bytes or more, this server takes at most {self.limit}")


@dataclass(frozen=True, slots=True)
class _Api:
    """The endpoints."""

    service: Service
    bodies: _Bodies
    created: int

    async def health(self, request: Request) -> JSONResponse:
        """Say whether the pipeline worked when it was last used."""
        failure = self.service.admission.failure
        if failure is not None:
            return JSONResponse({"status": "failed", "reason": failure}, 503)
        return JSONResponse({"status": "ok", "choices": len(self.service.admission)})

    async def models(self, request: Request) -> JSONResponse:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> JSONResponse:
        """Describe the one model."""
        name, mine = request.path_params["name"], self.service.model_name
        if name != mine:
            message = f'there is no model "{name}"; this server has "{mine}"'
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Answer:
        """Continue text or tokens."""
        body = await self.bodies.read(request)
        return Answer(self.service, parse(body, CompletionRequest, model_name=self.service.model_name))

    async def chat_completions(self, request: Request) -> Answer:
        """Answer a chat."""
        body = await self.bodies.read(request)
        return Answer(self.service, parse(body, ChatRequest, model_name=self.service.model_name))

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.service.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "orbitsplit",
        }


def _closing(admission: Admission) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        admission.close()

    return lifespan
