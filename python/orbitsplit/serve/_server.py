"""A real server: a socket, signals, and an end in order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from transformers import GenerationConfig

from orbitsplit._models.source import load_tokenizer, read_config

from ._app import create_app
from ._engine import Engine

# Clients that do not read get no more than this after the last generation has ended.
_FLUSH_S = 2


def run(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grace_s: float = 10.0,
    log_level: str = "info",
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then return.

    `app` is from `create_app`. Port 0 takes a free one; `on_start` is told the URL once connections are accepted. On a
    signal no more connections are taken, and what runs has `grace_s` seconds to end, then it is cancelled and its
    clients are told so; a second SIGINT does not wait. Raises OSError if the port cannot be had.
    """
    with _listen(host, port) as listening:
        if on_start is not None:
            bound = listening.getsockname()
            on_start(f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}")
        Server(app, grace_s=grace_s, log_level=log_level).run(sockets=[listening])


def serve_model(
    engine: Engine,
    model: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    model_name: str | None = None,
    context_tokens: int | None = None,
    api_key: str | None = None,
    max_requests: int = 256,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve a model that `engine` runs, until SIGINT or SIGTERM.

    `model` is a directory or a hub id, for tokenizer, end tokens and context; its last part is the default name.
    Raises ValueError if the model does not say its context and `context_tokens` is not given; OSError as `run`.
    """
    tokenizer = load_tokenizer(model)
    context = context_tokens or getattr(read_config(model).get_text_config(), "max_position_embeddings", None)
    if context is None:
        raise ValueError(f"{model} does not say how many tokens its context has: give context_tokens")
    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a model without one
        ends = None
    app = create_app(
        engine,
        tokenizer,
        model_name=model_name or Path(model).name,
        context_tokens=context,
        eos_token_id=ends,
        api_key=api_key,
        max_requests=max_requests,
    )
    run(app, host, port, on_start=on_start)


class Server(uvicorn.Server):
    """uvicorn's server, which ends what runs before it gives up on connections, and leaves signals at that."""

    def __init__(self, app: Starlette, *, grace_s: float, log_level: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level=log_level,
                ws="none",
                lifespan="on",
                server_header=False,
                # A second is the unit here; the generations end before, at grace_s.
                timeout_graceful_shutdown=int(grace_s) + _FLUSH_S,
            )
        )
        self._admission = app.state.admission
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections; end generations after the grace."""
        asyncio.get_running_loop().call_later(self._grace_s, self._admission.close)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End in order, a second SIGINT at once. The signal is not raised again: the pipeline is still to be closed."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
