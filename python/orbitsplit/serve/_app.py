"""The ASGI application: routes, and what is around them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from ._admission import Admission
from ._api_error import ApiError, api_error_response, http_exception_response, internal_error_response
from ._api_key import ApiKey, Handler
from ._bodies import RequestBodies
from ._embeddings import Embedder
from ._endpoints import Endpoints
from ._engine import Engine
from ._grammar import json_grammars
from ._log import log
from ._metrics import Metrics
from ._options import ServerOptions, merged
from ._prompts import Prompts
from ._recovery_log import RecoveryLog
from ._request_id import RequestIds
from ._response import Service


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
    admission = Admission(options.max_requests)
    service = Service(
        engine=engine,
        prompts=Prompts(tokenizer, options.context_tokens),
        admission=admission,
        metrics=Metrics(engine, admission),
        model_name=options.model_name,
        eos_token_ids=(ends,) if isinstance(ends, int) else tuple(ends or ()),
        recoveries=RecoveryLog(engine),
        num_assistant_tokens=options.num_assistant_tokens,
        grammar=json_grammars(tokenizer.name_or_path),
    )
    app = Starlette(
        routes=_routes(service, options, _embedder(engine, tokenizer, options)),
        middleware=[Middleware(RequestIds)],
        exception_handlers={
            ApiError: api_error_response,
            HTTPException: http_exception_response,
            Exception: internal_error_response,
        },
        lifespan=_lifespan(admission, options),
    )
    # A redirect would name http:// and this port, whatever the address of the proxy that clients know.
    app.router.redirect_slashes = False
    app.state.admission = admission
    app.state.engine = engine
    return app


def _routes(service: Service, options: ServerOptions, embedder: Embedder | None) -> list[Route]:
    api_key = ApiKey(options.api_key)
    bodies = RequestBodies(options.max_body_bytes, options.body_timeout_s)
    api = Endpoints(service, api_key, bodies, embedder, created=int(time.time()))

    def get(path: str, handler: Handler) -> Route:
        return Route(path, api_key.required(handler))

    def post(path: str, handler: Handler) -> Route:
        return Route(path, api_key.required(handler), methods=["POST"])

    return [
        Route("/health", api.health),
        Route("/ready", api.ready),
        get("/metrics", api.metrics),
        get("/v1/models", api.models),
        get("/v1/models/{name:path}", api.model),
        post("/v1/completions", api.completions),
        post("/v1/chat/completions", api.chat_completions),
        post("/v1/responses", api.responses),
        post("/v1/embeddings", api.embeddings),
        post("/tokenize", api.tokenize),
        post("/detokenize", api.detokenize),
    ]


def _embedder(engine: Any, tokenizer: Any, options: ServerOptions) -> Embedder | None:
    if not hasattr(engine, "forward"):
        return None
    return Embedder(
        engine,
        pooling=options.pooling or "mean",
        normalizes=options.normalizes is not False,
        pad_token_id=tokenizer.pad_token_id,
        model=tokenizer.name_or_path,
    )


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
