"""Embeddings under load: they are admitted as choices are, and stop between batches."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from tests.support.fake_engine import MODEL, WAIT_S, FakeEngine, Served, serving

TWO_BATCHES, MANY_BATCHES = 64, 2048


class FakeEncoder(FakeEngine):
    """Returns hidden states of ones, each batch when it may `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.go = threading.Event()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        self.forwards += 1
        with self.changed:
            self.changed.notify_all()
        assert self.go.wait(WAIT_S)
        return {"last_hidden_state": torch.ones(*input_ids.shape, 4)}


@pytest.fixture
def engine() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def served(engine: FakeEncoder) -> Iterator[Served]:
    with serving(engine, max_requests=1) as running:
        yield running
        engine.go.set()


def embed(served: Served, texts: int, **options: Any) -> httpx.Response:
    body = {"model": MODEL, "input": ["a"] * texts}
    return httpx.post(f"{served.url}/v1/embeddings", json=body, **{"timeout": WAIT_S, **options})


def test_more_than_the_server_takes_is_429(engine: FakeEncoder, served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, served, TWO_BATCHES)
        engine.wait_until(lambda: engine.forwards == 1)
        refused = embed(served, 1)
        engine.go.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert len(first.result().json()["data"]) == TWO_BATCHES
    served.server.wait_until(served.is_idle)
    assert embed(served, 1).status_code == 200


def test_a_server_that_shuts_down_stops_before_the_next_batch(engine: FakeEncoder, served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed, served, TWO_BATCHES)
        engine.wait_until(lambda: engine.forwards == 1)
        served.server.ask(served.admission.close)
        engine.go.set()
        for response in (first.result(), embed(served, 1)):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert engine.forwards == 1


def test_a_client_that_disconnects_ends_its_batches(engine: FakeEncoder, served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        content = json.dumps({"model": MODEL, "input": ["a"] * MANY_BATCHES}).encode()
        head = "POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        engine.wait_until(lambda: engine.forwards == 1)
    served.server.wait_until(lambda: not served.server.server_state.connections)
    engine.go.set()
    served.server.wait_until(served.is_idle)
    forwards = engine.forwards
    assert forwards < MANY_BATCHES // 32
    time.sleep(0.5)
    assert engine.forwards == forwards
