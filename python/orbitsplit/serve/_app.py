"""The ASGI application: routes, the API key, request bodies."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
from ._api_error import ApiError, api_error_response, http_exception_response, internal_error_response, quoted
from ._chat_request import ChatRequest
from ._engine import Engine
from ._log import log
from ._options import ServerOptions, merged
from ._prompts import Prompts
from ._recovery_log import RecoveryLog
from ._request_body import CompletionRequest, parse, unknown_model
from ._response import Response, Service


def create_app(engine: Engine, tokenizer: Any, options: ServerOptions | None = None, **keywords: Any) -> Starlette:
    """Return the ASGI application that serves `engine` to OpenAI clients.

    `tokenizer` is one of transformers, with a chat template if chats are to be served. `keywords` are fields of
    `ServerOptions`; `model_name` and `context_tokens` are required.

    Raises:
        TypeError, ValueError: An option is missing, unknown, of a wrong type or out of range.
    """
    options = merged(options, keywords)
    if options.model_name is None or options.context_tokens is None:
        raise ValueError("create_app needs model_name and context_tokens")
    ends = tokenizer.eos_token_id if options.eos_token_id is None else options.eos_token_id
    service = Service(
        engine=engine,
        prompts=Prompts(tokenizer, options.context_tokens),
        admission=Admission(options.max_requests),
        model_name=options.model_name,
        eos_token_ids=(ends,) if isinstance(ends, int) else tuple(ends or ()),
        recoveries=RecoveryLog(engine),
        num_assistant_tokens=options.num_assistant_tokens,
    )
    api_key = _ApiKey(options.api_key)
    api = _Api(service, api_key, _RequestBodies(options.max_body_bytes, options.body_timeout_s), int(time.time()))
    app = Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api_key.required(api.models)),
            Route("/v1/models/{name:path}", api_key.required(api.model)),
            Route("/v1/completions", api_key.required(api.completions), methods=["POST"]),
            Route("/v1/chat/completions", api_key.required(api.chat_completions), methods=["POST"]),
        ],
        exception_handlers={
            ApiError: api_error_response,
            HTTPException: http_exception_response,
            Exception: internal_error_response,
        },
        lifespan=_lifespan(service.admission, options),
    )
    # A redirect would name http:// and this port, whatever the address of the proxy that clients know.
    app.router.redirect_slashes = False
    app.state.admission = service.admission
    app.state.engine = engine
    return app


Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _ApiKey:
    """The key that requests must send; None: none is needed."""

    key: str | None

    def required(self, handler: Handler) -> Handler:
        """Return the handler, for requests with the key only."""

        async def guarded(request: Request) -> Any:
            if not self.is_in(request):
                message = "this server requires its API key: Authorization: Bearer KEY"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return guarded

    def is_in(self, request: Request) -> bool:
        """Return whether a request has the key, True if none is needed."""
        if self.key is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # The bytes received: compare_digest takes no text beyond ASCII.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        return is_right and scheme.lower() == "bearer"


@dataclass(frozen=True, slots=True)
class _RequestBodies:
    """Reads JSON bodies of at most `limit` bytes."""

    limit: int
    timeout_s: float

    async def read(self, request: Request) -> bytes:
        """Return the body. Raises ApiError 400, 408, 413 or 415."""
        kind = request.headers.get("content-type", "")
        # A page in a browser may post other types to any address without asking for permission first.
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, f"the content-type is {quoted(kind)}, expected application/json")
        encoding = ", ".join(request.headers.getlist("content-encoding"))
        if encoding.strip().lower() not in ("", "identity"):
            message = f"the content-encoding is {quoted(encoding)}; this server takes bodies without an encoding only"
            raise ApiError(415, message, headers={"Accept-Encoding": "identity"})
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
            raise ApiError(400, "the client disconnected before its body was complete") from error
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ApiError(413, f"the body has {size} bytes or more, this server takes at most {self.limit}")


@dataclass(frozen=True, slots=True)
class _Api:
    """The endpoints."""

    service: Service
    api_key: _ApiKey
    bodies: _RequestBodies
    created: int

    async def health(self, request: Request) -> JSONResponse:
        """Report whether the pipeline worked when it was last used; with the key, details as well."""
        failure = self.service.admission.failure
        report: dict[str, Any] = {"status": "ok" if failure is None else "failed"}
        if self.api_key.is_in(request):
            report["choices"] = len(self.service.admission)
            if failure is not None:
                report["reason"] = failure
        return JSONResponse(report, 200 if failure is None else 503)

    async def models(self, request: Request) -> JSONResponse:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> JSONResponse:
        """Describe the one model."""
        if request.path_params["name"] != self.service.model_name:
            raise unknown_model(request.path_params["name"], self.service.model_name)
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """Continue text or tokens."""
        body = await self.bodies.read(request)
        return Response(self.service, parse(body, CompletionRequest, model_name=self.service.model_name))

    async def chat_completions(self, request: Request) -> Response:
        """Answer a chat."""
        body = await self.bodies.read(request)
        return Response(self.service, parse(body, ChatRequest, model_name=self.service.model_name))

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.service.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "orbitsplit",
            "max_model_len": self.service.prompts.context_tokens,  # vLLM's name, which its clients read
        }


def _lifespan(admission: Admission, options: ServerOptions) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        log.info(
            "started: model %s, %d tokens per request, at most %d choices",
            options.model_name,
            options.context_tokens,
            options.max_requests,
        )
        yield
        admission.close()
        log.info("stopped")

    return lifespan
