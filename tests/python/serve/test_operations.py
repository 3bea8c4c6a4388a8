"""What those who run a server need: health, readiness, metrics, request ids, JSON logs, HTTPS, tokens of a text."""

from __future__ import annotations

import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from orbitsplit import TransportError
from orbitsplit.serve import create_app, run
from tests.support.fake_engine import CONTEXT, MODEL, FakeEngine, Served, byte_tokenizer, serving
from tests.support.paths import DATA, ROOT

COMPLETIONS = "/v1/completions"
CERTIFICATE, KEY = DATA / "tls/certificate.pem", DATA / "tls/key.pem"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with serving(engine, max_requests=2) as running:
        yield running


def metrics_of(served: Served) -> dict[str, float]:
    """Return each sample of the metrics as name and labels, in Prometheus's own reading."""
    text = httpx.get(f"{served.url}/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        sample.name + "".join(f"|{sample.labels[name]}" for name in sorted(sample.labels)): sample.value
        for sample in samples
    }


def test_ready_is_whether_a_request_would_be_taken(engine: FakeEngine, served: Served) -> None:
    ready = f"{served.url}/ready"
    assert httpx.get(ready).json() == {"status": "ready", "choices": 0}
    engine.allow(0)
    body = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 1, "stream": True}
    with httpx.stream("POST", served.url + COMPLETIONS, json=body):
        full = httpx.get(ready)
        assert (full.status_code, full.json()["reason"]) == (503, "2 choices are running or queued, as many as may be")
        assert httpx.get(f"{served.url}/health").status_code == 200
    engine.allow(None)
    served.server.wait_until(served.is_idle)
    assert httpx.get(ready).status_code == 200
    other: Any = engine
    other.is_ready = False
    assert httpx.get(ready).json()["reason"] == "the pipeline is recovering from a loss, or going over to another plan"


def test_a_failure_of_a_request_makes_a_server_unhealthy_but_not_unready(engine: FakeEngine, served: Served) -> None:
    # Were it not ready, nobody would ask it again, and it would stay so.
    engine.die(TransportError("damaged", kind="corruption"), refuses=False)
    httpx.post(served.url + COMPLETIONS, json={"model": MODEL, "prompt": "a"})
    assert httpx.get(f"{served.url}/health").status_code == 503
    assert httpx.get(f"{served.url}/ready").status_code == 200


def test_metrics_count_tokens_choices_and_times(engine: FakeEngine, served: Served) -> None:
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 5}
    for _ in range(2):
        httpx.post(served.url + COMPLETIONS, json=body)
    served.server.wait_until(served.is_idle)
    found = metrics_of(served)
    assert found["orbitsplit_prompt_tokens_total"] == 6
    assert found["orbitsplit_generation_tokens_total"] == 10
    assert found["orbitsplit_choices_total|length"] == 2
    assert found["orbitsplit_time_to_first_token_seconds_count"] == 2
    assert found["orbitsplit_time_per_output_token_seconds_count"] == 2
    assert found["orbitsplit_choice_seconds_sum"] >= found["orbitsplit_time_to_first_token_seconds_sum"] > 0
    assert found["orbitsplit_live_choices|running"] == found["orbitsplit_live_choices|waiting"] == 0


def test_metrics_show_what_runs_and_what_the_pipeline_does(engine: FakeEngine, served: Served) -> None:
    pipeline: Any = engine
    pipeline.recoveries = ("node sat-1 was killed",)
    pipeline.status = lambda: SimpleNamespace(
        nodes=[
            SimpleNamespace(name="sat-1", resident_bytes=7 << 20, memory_bytes=1 << 30, busy_s=1.5),
            SimpleNamespace(name="sat-2", resident_bytes=8 << 20, memory_bytes=None, busy_s=0.0),
        ],
        links=[SimpleNamespace(source="sat-1", destination="sat-2", sent_bytes=4096, bytes_per_s=125e3)],
    )
    engine.allow(3)
    body = {"model": MODEL, "prompt": "ab", "max_tokens": 9, "stream": True}
    with httpx.stream("POST", served.url + COMPLETIONS, json=body):
        served.server.wait_until(lambda: sum(one.tokens for one in served.admission.open_generations()) == 3)
        running = metrics_of(served)
        engine.allow(None)
    assert running["orbitsplit_live_choices|running"] == 1
    assert running["orbitsplit_generation_tokens_total"] == 3
    assert running["orbitsplit_recoveries_total"] == 1
    assert running["orbitsplit_node_memory_bytes|sat-2"] == 8 << 20
    assert running["orbitsplit_node_memory_limit_bytes|sat-1"] == 1 << 30
    assert "orbitsplit_node_memory_limit_bytes|sat-2" not in running
    assert running["orbitsplit_link_bytes_total|sat-2|sat-1"] == 4096
    assert running["orbitsplit_link_rate_bytes_per_second|sat-2|sat-1"] == 125e3
    assert running["orbitsplit_node_busy_seconds_total|sat-1"] == 1.5


@pytest.mark.parametrize(
    "more",
    [{"max_tokens": CONTEXT}, {"seed": 13}, {"prompt": [999]}],
    ids=["too long", "refused by the engine", "unknown token"],
)
def test_a_request_that_is_refused_counts_as_no_choice(
    served: Served, caplog: pytest.LogCaptureFixture, more: dict[str, Any]
) -> None:
    with caplog.at_level(logging.INFO, "orbitsplit.serve"):
        response = httpx.post(served.url + COMPLETIONS, json={"model": MODEL, "prompt": "abc", **more})
        assert response.status_code == 400
        served.server.wait_until(served.is_idle)
        found = metrics_of(served)
    assert found["orbitsplit_prompt_tokens_total"] == 0
    assert not any(name.startswith("orbitsplit_choices_total") for name in found)
    assert "refused" in caplog.text
    assert "finished" not in caplog.text


def test_a_choice_whose_client_left_is_counted_as_cancelled(engine: FakeEngine, served: Served) -> None:
    engine.allow(1)
    body = {"model": MODEL, "prompt": "ab", "max_tokens": 9, "stream": True}
    with httpx.stream("POST", served.url + COMPLETIONS, json=body) as stream:
        next(stream.iter_lines())
    served.server.wait_until(served.is_idle)
    assert metrics_of(served)["orbitsplit_choices_total|cancelled"] == 1


def test_every_response_has_a_request_id(engine: FakeEngine, served: Served) -> None:
    url = served.url + COMPLETIONS
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    ids = {httpx.post(url, json=body).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    refused = httpx.post(url, json={"model": "other"}, headers={"x-request-id": "mine-7"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "mine-7")
    for bad in ("a b", "x" * 129, "ü"):
        headers = {"x-request-id": bad.encode()}
        assert httpx.post(url, json=body, headers=headers).headers["x-request-id"].startswith("req_")
    streamed = httpx.post(url, json={**body, "stream": True}, headers={"x-request-id": "mine-8"})
    assert streamed.headers["x-request-id"] == "mine-8"
    with served.client() as client:
        assert (client.completions.create(**body)._request_id or "").startswith("req_")  # type: ignore[call-overload]


def test_tokens_of_a_text_and_back(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        found = client.post("/tokenize", json={"model": MODEL, "prompt": "aü", "return_token_strs": True}).json()
        assert found == {
            "count": 3,
            "max_model_len": CONTEXT,
            "tokens": served.tokenizer("aü")["input_ids"],
            "token_strs": ["a", "Ã", "¼"],
        }
        assert client.post("/tokenize", json={"prompt": "messages"}).json()["count"] == 8
        assert client.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
        assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "aü"}
        end = [served.tokenizer.eos_token_id]
        assert client.post("/detokenize", json={"tokens": end}).json() == {"prompt": "</s>"}
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        tokens = client.post("/tokenize", json=chat).json()["tokens"]
        assert served.tokenizer.decode(tokens) == "user: hi\nassistant: "
        bare = client.post("/tokenize", json={**chat, "add_generation_prompt": False}).json()["tokens"]
        assert served.tokenizer.decode(bare) == "user: hi\n"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", [], 400, None),
        ("/detokenize", {"tokens": [257]}, 400, "tokens"),
        ("/detokenize", {"tokens": []}, 400, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens.0"),
    ],
)
def test_what_is_at_fault_is_named(served: Served, path: str, body: Any, status: int, param: str | None) -> None:
    refused = httpx.post(served.url + path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


SCRIPT = """
import os, signal, sys, threading
import httpx
from tests.support.fake_engine import CONTEXT, MODEL, FakeEngine, byte_tokenizer
from orbitsplit.serve import create_app, run

def ask(url):
    body = {"model": MODEL, "prompt": "attack at dawn", "max_tokens": 2}
    httpx.post(url + "/v1/completions", json=body, headers={"x-request-id": "mine-1"}, timeout=60)
    httpx.post(url + "/v1/completions", json={**body, "warp": 9}, headers={"x-request-id": "mine-2"}, timeout=60)
    os.kill(os.getpid(), signal.SIGTERM)

engine = FakeEngine()
app = create_app(engine, byte_tokenizer(), model_name=MODEL, context_tokens=CONTEXT)
run(app, port=0, log_format="json", on_start=lambda url: threading.Thread(target=ask, args=[url]).start())
engine.close()
"""


def test_the_log_as_json_is_one_object_a_line_with_the_request_ids() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=240, check=True
    )
    # uvicorn's access log goes to stdout.
    entries = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    assert all(entry.keys() >= {"time", "level", "logger", "message"} for entry in entries)
    of_requests = [entry for entry in entries if entry.get("request_id") == "mine-1"]
    assert any(entry.get("status") == 200 and entry["path"] == COMPLETIONS for entry in of_requests)
    (finished,) = (entry for entry in of_requests if entry["message"].startswith("finished"))
    assert (finished["prompt_tokens"], finished["tokens"], finished["choices"]) == (14, 2, 1)
    (refused,) = (entry for entry in entries if entry["message"].startswith("refused"))
    assert refused["request_id"] == "mine-2"
    assert "dawn" not in ended.stdout + ended.stderr


def ask_securely(url: str) -> Any:
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    try:
        with (
            httpx.Client(verify=context) as transport,
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=transport) as client,
        ):
            return client.completions.create(model=MODEL, prompt="ab", max_tokens=3).choices[0].text
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def test_with_a_certificate_the_server_speaks_https(engine: FakeEngine) -> None:
    answers: list[Any] = []
    app = create_app(engine, byte_tokenizer(), model_name=MODEL, context_tokens=CONTEXT)

    def on_start(url: str) -> None:
        assert url.startswith("https://127.0.0.1:")
        threading.Thread(target=lambda: answers.append(ask_securely(url))).start()

    try:
        run(app, port=0, log_level="error", ssl_certfile=CERTIFICATE, ssl_keyfile=KEY, on_start=on_start)
    finally:
        engine.close()
    assert answers == ["aba"]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"ssl_keyfile": KEY}, ValueError, "ssl_keyfile is given without ssl_certfile"),
        ({"ssl_certfile": "none.pem"}, FileNotFoundError, "none.pem"),
        ({"ssl_certfile": CERTIFICATE}, ValueError, "cannot be used"),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": CERTIFICATE}, ValueError, "cannot be used"),
        ({"log_format": "xml"}, ValueError, 'log_format is "xml"'),
    ],
)
def test_what_cannot_be_served_with_is_refused(engine: FakeEngine, files: Any, error: Any, message: str) -> None:
    app = create_app(engine, byte_tokenizer(), model_name=MODEL, context_tokens=CONTEXT)
    try:
        with pytest.raises(error, match=message):
            run(app, port=0, **files)
    finally:
        engine.close()
