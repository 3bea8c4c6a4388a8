"""Many clients, slow ones, ones that go away, and the end of the server: nothing is lost and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import AsyncOpenAI

from orbitsplit.serve import run
from orbitsplit.serve._generation import Generation
from orbitsplit.serve._response import Response
from orbitsplit.serve._server import bound
from tests.support.fake_engine import CONTEXT, MODEL, WAIT_S, FakeEngine, Served, byte_tokenizer, serving
from tests.support.paths import ROOT
from tests.support.tiny_models import save_tiny_model

COMPLETIONS = "/v1/completions"

# Echoes of more than all buffers between server and client hold.
SLOW: dict[str, Any] = {"prompt": "slow " * 800, "echo": True, "n": 64, "max_tokens": 50, "stream": True}


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(send_buffer_bytes=4096) as running:
        yield running


def open_client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def post_by_hand(served: Served, body: dict[str, Any]) -> socket.socket:
    """Send a request and read nothing, into little memory of the system."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(WAIT_S)
    connection.connect(("127.0.0.1", served.port))
    content = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def events_of(connection: socket.socket) -> list[dict[str, Any]]:
    """Return the events of a stream, read to its end."""
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    lines = [line for line in received.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def ask(client: AsyncOpenAI, prompt: str, *, stream: bool, max_tokens: int) -> str:
    if not stream:
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens)
        return answer.choices[0].text
    chunks = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, stream=True)
    return "".join([chunk.choices[0].text async for chunk in chunks])


def expected(prompt: str, max_tokens: int) -> str:
    return (prompt * max_tokens)[:max_tokens]


def test_32_clients_at_once_get_their_own_text_beside_a_slow_and_a_leaving_one(served: Served) -> None:
    prompts = [f"request {index}, " for index in range(32)]

    async def ask_all() -> list[str]:
        async with open_client(served) as client:
            asked = (ask(client, p, stream=index % 2 == 0, max_tokens=100) for index, p in enumerate(prompts))
            return await asyncio.gather(*asked)

    with post_by_hand(served, SLOW) as slow, post_by_hand(served, {**SLOW, "prompt": "leaving"}) as leaving:
        assert leaving.recv(1)
        leaving.close()
        assert asyncio.run(ask_all()) == [expected(prompt, 100) for prompt in prompts]
        # The engine does not wait for the slow client either.
        served.engine.wait_until(lambda: all(one.is_ended for one in served.engine.seen))
        served.server.wait_until(lambda: len(served.admission) == SLOW["n"])
        events = events_of(slow)
    for index in range(SLOW["n"]):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        # Text waited as text, not as an event for each token: that is what bounds it.
        assert [choice["text"] for choice in mine] == [SLOW["prompt"], expected("slow ", 50), ""]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "length"]
    served.server.wait_until(served.is_idle)


def test_a_client_that_goes_away_amid_a_stream_is_forgotten(served: Served) -> None:
    served.engine.allow(5)
    with served.client() as client:
        chunks = client.completions.create(model=MODEL, prompt="ab", max_tokens=CONTEXT - 9, stream=True)
        assert next(chunks).choices[0].text.startswith("a")
        chunks.close()
    served.engine.wait_until(lambda: served.engine.seen[0].is_ended)
    assert served.engine.seen[0].is_cancelled
    assert 1 <= len(served.engine.seen[0].sent) <= 5  # it may leave before all that may come have come
    served.server.wait_until(served.is_idle)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_before_any_token_is_forgotten(served: Served, stream: bool) -> None:
    served.engine.allow(0)
    with post_by_hand(served, {"prompt": ["ab", "c"], "n": 3, "stream": stream}):
        served.engine.wait_until(lambda: len(served.engine.seen) == 6)
    served.engine.wait_until(lambda: all(one.is_ended for one in served.engine.seen))
    assert all(one.is_cancelled for one in served.engine.seen)
    served.server.wait_until(served.is_idle)


def test_a_slow_client_that_goes_away_is_forgotten(served: Served) -> None:
    with post_by_hand(served, SLOW):
        served.engine.wait_until(lambda: len(served.engine.seen) == SLOW["n"])
        served.engine.wait_until(lambda: all(one.is_ended for one in served.engine.seen))
        assert len(served.admission) == SLOW["n"]
    served.server.wait_until(served.is_idle)


def test_a_stop_string_ends_the_generation_of_a_client_that_does_not_read(served: Served) -> None:
    said = served.tokenizer("x" * 40 + "END" + "y" * 8000)["input_ids"]
    served.engine.say = lambda prompt: said
    body = {**SLOW, "stop": "END", "max_tokens": 4000}
    with post_by_hand(served, body) as slow:
        served.engine.wait_until(lambda: len(served.engine.seen) == SLOW["n"])
        served.engine.wait_until(lambda: all(one.is_ended for one in served.engine.seen))
        assert all(one.is_cancelled and len(one.sent) < 4000 for one in served.engine.seen)
        texts = [event["choices"][0]["text"] for event in events_of(slow)]
    assert sorted(texts) == sorted([SLOW["prompt"], "x" * 40, ""] * SLOW["n"])


async def mixed_requests(served: Served, count: int) -> None:
    """Ask in every way there is, 16 at a time."""
    at_once = asyncio.Semaphore(16)

    async def one(index: int, client: httpx.AsyncClient) -> None:
        prompt, kind = f"r{index} ", index % 4
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "stream": kind == 1}
        async with at_once:
            if kind == 2:
                assert (await client.post(COMPLETIONS, json={**body, "n": 0})).status_code == 400
            elif kind == 3:
                async with client.stream("POST", COMPLETIONS, json={**body, "stream": True}) as response:
                    assert response.status_code == 200  # and goes away
            else:
                answer = await client.post(COMPLETIONS, json=body)
                lines = answer.text.split("data: ") if kind == 1 else [answer.text]
                parts = [json.loads(line) for line in lines if line.startswith("{")]
                assert "".join(part["choices"][0]["text"] for part in parts) == expected(prompt, 8)

    async with httpx.AsyncClient(base_url=served.url, timeout=WAIT_S) as client:
        await asyncio.gather(*(one(index, client) for index in range(count)))


def in_use(served: Served) -> dict[str, int]:
    """Return how much of everything a quiet server holds."""
    served.server.wait_until(lambda: served.is_idle() and not served.server.server_state.connections)
    served.engine.seen.clear()
    gc.collect()
    return {
        "requests": sum(type(thing) in (Response, Generation) for thing in gc.get_objects()),
        "tasks": served.server.ask(lambda: len(asyncio.all_tasks())),
        "threads": threading.active_count(),
        "files": psutil.Process().num_fds(),
    }


def test_a_thousand_requests_leave_nothing(served: Served) -> None:
    asyncio.run(mixed_requests(served, 60))
    before = in_use(served)
    assert before["requests"] == 0
    asyncio.run(mixed_requests(served, 1000))
    assert in_use(served) == before


def test_running_requests_are_ended_and_told_when_the_server_ends() -> None:
    engine = FakeEngine()
    engine.allow(3)
    with serving(engine, grace_s=0.1) as served, served.client() as client:
        chunks = client.completions.create(model=MODEL, prompt="a", max_tokens=9, stream=True)
        assert next(chunks).choices[0].text.startswith("a")
        served.server.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            list(chunks)
        engine.wait_until(lambda: engine.seen[0].is_ended)
        assert engine.seen[0].is_cancelled


def test_running_requests_may_end_within_the_grace() -> None:
    engine = FakeEngine()
    engine.allow(3)
    with serving(engine, grace_s=60) as served, served.client() as client:
        chunks = client.completions.create(model=MODEL, prompt="a", max_tokens=9, stream=True)
        assert next(chunks).choices[0].text.startswith("a")
        served.server.should_exit = True
        served.server.wait_until(lambda: not served.server.servers[0].is_serving())
        engine.allow(None)
        assert "".join(chunk.choices[0].text for chunk in chunks).endswith("a")
        assert not engine.seen[0].is_cancelled


SCRIPT = """
import sys
from tests.support.fake_engine import FakeEngine
from orbitsplit.serve import serve_model

engine = FakeEngine()
serve_model(engine, sys.argv[1], port=0, on_start=lambda url: print(url, flush=True))
engine.close()
print("closed", flush=True)
"""


def test_a_model_is_served_until_a_signal_which_frees_the_port(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        processes = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
            stack.callback(process.kill)
            processes.append(process)
        for process, sent in zip(processes, (signal.SIGINT, signal.SIGTERM), strict=True):
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            answer = httpx.post(
                url + COMPLETIONS, json={"model": tmp_path.name, "prompt": "ab", "max_tokens": 3}, timeout=60
            )
            assert answer.json()["choices"][0]["text"] == "aba"
            too_long = httpx.post(url + COMPLETIONS, json={"model": tmp_path.name, "prompt": "a" * 512}, timeout=60)
            assert "the prompt has 512 tokens, the context is 512" in too_long.text
            process.send_signal(sent)
            assert process.stdout.read().endswith("closed\n")  # after the log of requests
            assert process.wait(WAIT_S) == 0
            with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
                pass


def test_a_port_in_use_is_an_error_at_once(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        run(served.server.config.app, port=served.port)


def test_a_port_is_taken_before_anybody_listens() -> None:
    with bound(port=0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is in use: choose another one"):
            bound(port=port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['starlette'] = None\ntry: import orbitsplit.serve\nexcept ImportError as e: print(e)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert 'pip install "orbitsplit[serve]"' in printed
