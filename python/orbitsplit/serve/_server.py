"""A complete server: a socket, signals and an orderly shutdown."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from transformers import GenerationConfig

from orbitsplit._errors import TransportError
from orbitsplit._models.source import load_tokenizer, read_config, refuse_encoder
from orbitsplit._plans.plan import Plan

from ._app import create_app
from ._embeddings import base_model_advice, embedding_settings
from ._engine import Engine
from ._json_log import json_on_stderr, uvicorn_config
from ._log import log, warnings_on_stderr
from ._options import ServerOptions, merged

# After the last generation has ended, responses have this long to reach their clients.
_FLUSH_S = 2
# Connections that wait to be accepted.
_WAITING = 2048
# Models whose first token has the position pad_token_id + 1, as RoBERTa's: 514 positions are for 512 tokens.
_POSITIONS_BEHIND_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def run(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grace_s: float = 10.0,
    log_level: str = "info",
    log_format: str = "text",
    ssl_certfile: str | Path | None = None,
    ssl_keyfile: str | Path | None = None,
    on_start: Callable[[str], None] | None = None,
    listening: socket.socket | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then return.

    `app` is from `create_app`. Port 0 takes a free one; `on_start` is called with the URL once connections are
    accepted and signals handled, and must return at once. After a signal no connections are accepted, and running
    requests have `grace_s` seconds to finish. Then they are cancelled, and their clients receive an error. A second
    SIGINT does not wait. `log_level` is that of uvicorn; with `log_format` "json" all that server and pipeline log is
    lines of JSON on stderr. With a certificate (PEM; its key in the same file or in `ssl_keyfile`) the server speaks
    HTTPS. `listening` is a socket of `bound` or `listen`, in place of host and port; it is closed at the end.

    Raises:
        ValueError: `log_format` is neither "text" nor "json", or the certificate or its key cannot be used.
        OSError: The address cannot be bound, or a file cannot be read.
        TransportError: The engine has ended and cannot go on. The server has shut down then, as after a signal.
    """
    if log_format not in ("text", "json"):
        raise ValueError(f'log_format is "{log_format}", must be text or json')
    tls = _tls_files(ssl_certfile, ssl_keyfile)
    logging_ = json_on_stderr() if log_format == "json" else warnings_on_stderr()
    with listening or listen(host, port) as listening, logging_:
        _start_listening(listening)
        address, number = listening.getsockname()[:2]
        url = f"{'https' if tls else 'http'}://{f'[{address}]' if ':' in address else address}:{number}"

        def report() -> None:
            log.info("listening at %s", url)
            if on_start is not None:
                on_start(url)

        settings = {**tls, "log_level": log_level, "log_config": uvicorn_config(log_format)}
        Server(app, grace_s=grace_s, on_start=report, **settings).run(sockets=[listening])
        failure = engine_failure(app)
        if failure is not None:
            raise TransportError(f"the server has ended with its pipeline: {failure}", kind="unusable")


def engine_failure(app: Starlette) -> str | None:
    """Return why the engine of an application can serve no more, None if it can or does not say."""
    return getattr(app.state.engine, "failure", None)


def serve_model(
    engine: Engine,
    model: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    options: ServerOptions | None = None,
    log_level: str = "info",
    log_format: str = "text",
    ssl_certfile: str | Path | None = None,
    ssl_keyfile: str | Path | None = None,
    on_start: Callable[[str], None] | None = None,
    listening: socket.socket | None = None,
    **keywords: Any,
) -> None:
    """Serve a model that `engine` runs, until SIGINT or SIGTERM.

    `model` is a directory or a hub id, from which the tokenizer, the end tokens and the context are read. `keywords`
    are fields of `ServerOptions`, the other arguments those of `run`.

    A request that exceeds `context_tokens` is refused. By default that is what the plan of the engine reserves memory
    for, its prompt and new tokens together, or the model's context where the plan has no memory limits.

    Raises:
        TypeError: An option is unknown or of a wrong type.
        ValueError: An option is out of range, `context_tokens` exceeds the model's context, or is not given and
            neither the plan nor the model limits the context.
        ValueError, OSError, TransportError: As `run`.
    """
    options = merged(options, keywords)
    _tls_files(ssl_certfile, ssl_keyfile)
    refuse_encoder(read_config(model), "the server is for models that continue texts: run it by Pipeline.generate")
    tokenizer = load_tokenizer(model)
    tokenizer.name_or_path = str(model)
    pooling, normalizes = embedding_settings(model)
    advice = base_model_advice(model)
    with warnings_on_stderr():
        if advice is not None:
            log.warning("/v1/embeddings will refuse every request: %s", advice)
        options = replace(
            options,
            model_name=options.model_name or Path(model).name,
            context_tokens=_context_tokens(engine, model, options.context_tokens),
            eos_token_id=_end_tokens(model) if options.eos_token_id is None else options.eos_token_id,
            pooling=options.pooling or pooling,
            normalizes=normalizes if options.normalizes is None else options.normalizes,
        )
    run(
        create_app(engine, tokenizer, options),
        host,
        port,
        log_level=log_level,
        log_format=log_format,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        on_start=on_start,
        listening=listening,
    )


def reserved_tokens(plan: Plan) -> int | None:
    """Return the tokens of a sequence whose keys and values a plan reserves memory for, None without memory limits."""
    if all(stage.memory_bytes is None for stage in plan.stages):
        return None
    return plan.workload.prompt_tokens + plan.workload.new_tokens


def _context_tokens(engine: Engine, model: str | Path, given: int | None) -> int:
    """Return the most tokens that a request may have, prompt and answer together."""
    plan = getattr(engine, "plan", None)
    reserved = reserved_tokens(plan) if isinstance(plan, Plan) else None
    of_model = _positions(read_config(model).get_text_config())
    if given is not None:
        if of_model is not None and given > of_model:
            raise ValueError(f"context_tokens is {given}, the context of {model} is {of_model}")
        if reserved is not None and given > reserved:
            log.warning(
                "requests may have %d tokens, the plan reserves memory for %d: nodes may exceed their limits",
                given,
                reserved,
            )
        return given
    limits = [limit for limit in (reserved, of_model) if limit is not None]
    if not limits:
        raise ValueError(f"{model} does not say how many tokens its context has: give context_tokens")
    if min(limits) != of_model:
        log.warning(
            "requests may have %d tokens, as many as the plan reserves memory for; context_tokens changes that",
            min(limits),
        )
    return min(limits)


def _positions(config: Any) -> int | None:
    """Return how many tokens a model has positions for, None if it does not say."""
    rows: int | None = getattr(config, "max_position_embeddings", None)
    if rows is None or config.model_type not in _POSITIONS_BEHIND_PADDING:
        return rows
    return rows - (config.pad_token_id or 0) - 1


def _end_tokens(model: str | Path) -> int | list[int] | None:
    try:
        ends: int | list[int] | None = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a model without a generation config
        ends = None
    return ends


class Server(uvicorn.Server):
    """uvicorn's server, which ends the generations before their connections and does not raise signals again."""

    def __init__(
        self, app: Starlette, *, grace_s: float, on_start: Callable[[], None] = lambda: None, **settings: Any
    ) -> None:
        """Serve `app`; `settings` are further ones of uvicorn's."""
        super().__init__(
            uvicorn.Config(
                app,
                **settings,
                ws="none",
                lifespan="on",
                server_header=False,
                # Whole seconds; the generations end earlier, at grace_s.
                timeout_graceful_shutdown=int(grace_s) + _FLUSH_S,
            )
        )
        self._app = app
        self._admission = app.state.admission
        self._grace_s = grace_s
        self._on_start = on_start

    async def on_tick(self, counter: int) -> bool:
        """Return whether to shut down: after a signal, or when the engine has ended."""
        return await super().on_tick(counter) or engine_failure(self._app) is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections; signals are handled from then on."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections; end the generations after the grace period."""
        log.info("stopping: %d choices have %g s to finish", len(self._admission), self._grace_s)
        asyncio.get_running_loop().call_later(self._grace_s, self._admission.close)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down in order, after a second SIGINT at once. The caller still has to close the pipeline."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def bound(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Return a socket that has an address, on which nobody can connect before there is a server for it.

    Port 0 takes a free one. Raises OSError if the address cannot be bound.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if ":" in host:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # It may have the port of connections that ended a moment ago, but from then on nobody else may have it.
        _share_address(found, True)
        found.bind((host, port))
        _share_address(found, False)
    except OSError as error:
        found.close()
        if error.errno != errno.EADDRINUSE:
            raise OSError(error.errno, f"{error.strerror}: {host}, port {port}") from error
        message = f"port {port} of {host} is in use: choose another one, or 0 for a free one"
        raise OSError(error.errno, message) from None
    return found


def listen(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Return a socket on which clients may connect, and wait, before there is a server for it; port 0: a free one.

    Raises OSError if the address cannot be bound.
    """
    found = bound(host, port)
    _start_listening(found)
    return found


def _start_listening(found: socket.socket) -> None:
    _share_address(found, True)  # without it, connections that ended a moment ago would be in the way again
    found.listen(_WAITING)


def _share_address(found: socket.socket, is_shared: bool) -> None:
    if sys.platform != "win32":  # where it would let another program take the port at any time
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, is_shared)


def _tls_files(certificate: str | Path | None, key: str | Path | None) -> dict[str, Any]:
    """Return uvicorn's settings for a certificate, none without one. Raises ValueError or OSError for bad files."""
    if certificate is None:
        if key is not None:
            raise ValueError("ssl_keyfile is given without ssl_certfile")
        return {}
    for file in (certificate, key):
        if file is not None:
            Path(file).read_bytes()  # an error that names the file, which ssl's do not
    try:
        # A key with a passphrase would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        of = "" if key is None else f" with the key {key}"
        raise ValueError(f"the certificate {certificate}{of} cannot be used: {error}") from error
    return {"ssl_certfile": str(certificate), "ssl_keyfile": None if key is None else str(key)}
