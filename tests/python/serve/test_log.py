"""What the server logs: starts and stops, what it refused and to whom, recoveries; never prompts or keys."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orbitsplit import TransportError
from tests.support.fake_engine import CONTEXT, MODEL, FakeEngine, Served, byte_tokenizer, serving
from tests.support.paths import ROOT
from tests.support.tiny_models import save_tiny_model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT, KEY = "attack at dawn", "open sesame"
RIGHT = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with serving(engine, api_key=KEY, max_requests=3) as running:
        yield running


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "orbitsplit.serve")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged by the server."""
    return [record.getMessage() for record in log.records if record.name == "orbitsplit.serve"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"json": {"model": MODEL, "prompt": PROMPT}, "headers": {}}, "401 invalid_api_key"),
        ({"json": {"model": MODEL, "prompt": PROMPT}, "headers": {"authorization": "Bearer x"}}, "401 invalid_api_key"),
        ({"json": {"model": PROMPT, "prompt": PROMPT}}, "404 model_not_found (model)"),
        ({"json": {"model": MODEL, "prompt": PROMPT, "temperature": 9}}, "400 Bad Request (temperature)"),
        ({"json": {"model": MODEL, "prompt": PROMPT, "tools": [PROMPT]}}, "400 unsupported_parameter (tools)"),
        ({"json": {"model": MODEL, "prompt": PROMPT, PROMPT: 1}}, "400 unknown_parameter"),
        (
            {"json": {"model": MODEL, "prompt": PROMPT, "max_tokens": CONTEXT}},
            "400 context_length_exceeded (max_tokens)",
        ),
        ({"json": {"model": MODEL, "prompt": [PROMPT] * 4}}, "400 Bad Request"),
        ({"content": PROMPT, "headers": {**RIGHT, "content-type": "text/plain"}}, "415 Unsupported Media Type"),
    ],
)
def test_a_refused_request_is_logged_without_what_it_said(
    served: Served, log: pytest.LogCaptureFixture, request_: dict[str, Any], expected: str
) -> None:
    with httpx.Client(base_url=served.url) as client:
        assert client.post(COMPLETIONS, **{"headers": RIGHT, **request_}).is_client_error
    (line,) = (line for line in lines(log) if line.startswith("refused"))
    assert line.startswith(f"refused: {expected}, client 127.0.0.1:")
    assert PROMPT not in log.text
    assert KEY not in log.text


def test_a_path_that_does_not_exist_is_logged_without_it(served: Served, log: pytest.LogCaptureFixture) -> None:
    httpx.get(f"{served.url}/v1/{PROMPT}%0Afake line")
    assert "refused: 404 Not Found, client 127.0.0.1:" in log.text
    assert PROMPT not in log.text


def test_a_message_with_an_unknown_key_is_logged_without_it(served: Served, log: pytest.LogCaptureFixture) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a", PROMPT: 1}]}
    httpx.post(served.url + CHAT, json=body, headers=RIGHT)
    assert "refused: 400 Bad Request (messages)" in log.text
    assert PROMPT not in log.text


def test_what_is_refused_because_the_server_is_full_is_logged(
    engine: FakeEngine, served: Served, log: pytest.LogCaptureFixture
) -> None:
    engine.allow(0)
    body = {"model": MODEL, "prompt": [PROMPT] * 3, "max_tokens": 2, "stream": True}
    with httpx.stream("POST", served.url + COMPLETIONS, json=body, headers=RIGHT):
        httpx.post(served.url + COMPLETIONS, json={**body, "prompt": PROMPT}, headers=RIGHT)
    assert "refused: 429 rate_limit_exceeded, client 127.0.0.1:" in log.text


def test_a_failure_is_logged_once_however_many_requests_it_ends(
    engine: FakeEngine, served: Served, log: pytest.LogCaptureFixture
) -> None:
    engine.die(TransportError("node sat-1 was killed by signal 9", kind="killed", node="sat-1"))
    for _ in range(3):
        httpx.post(served.url + COMPLETIONS, json={"model": MODEL, "prompt": PROMPT}, headers=RIGHT)
    assert log.text.count("was killed by signal 9") == 1
    assert log.text.count("refused: 503 pipeline_failed") == 3


def test_recoveries_are_logged_with_the_next_request(
    engine: FakeEngine, served: Served, log: pytest.LogCaptureFixture
) -> None:
    request = {"json": {"model": MODEL, "prompt": PROMPT, "max_tokens": 2}, "headers": RIGHT}
    httpx.post(served.url + COMPLETIONS, **request)
    assert "recovered" not in log.text
    engine.recoveries += ("node sat-1 was killed; resumed after 3.2 s",)
    for _ in range(2):
        assert httpx.post(served.url + COMPLETIONS, **request).status_code == 200
        served.server.wait_until(served.is_idle)
    assert [line for line in lines(log) if "recovered" in line] == [
        "the pipeline recovered: node sat-1 was killed; resumed after 3.2 s"
    ]


def test_start_and_stop_are_logged(log: pytest.LogCaptureFixture) -> None:
    with serving() as served:
        httpx.get(f"{served.url}/health")
    assert [line.split(":")[0].split(",")[0] for line in lines(log)] == ["started", "stopping", "stopped"]
    assert f"model {MODEL}, {CONTEXT} tokens per request" in log.text


SCRIPT = """
import os, signal, sys, threading
import httpx
from tests.support.fake_engine import FakeEngine
from orbitsplit.serve import serve_model

def ask(url):
    engine.die(RuntimeError("the tokens ran out"), refuses=False)
    httpx.post(url + "/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=60)
    os.kill(os.getpid(), signal.SIGTERM)

engine = FakeEngine()
on_start = lambda url: threading.Thread(target=ask, args=[url]).start()
serve_model(engine, sys.argv[1], port=0, model_name="tiny", on_start=on_start)
engine.close()
"""


def test_errors_are_on_stderr_where_the_program_configured_no_logging(tmp_path: Path) -> None:
    # A logger with a NullHandler alone would be silent, and "the server's log has the details" untrue.
    save_tiny_model(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=True)
    assert "RuntimeError: the tokens ran out" in ended.stderr
