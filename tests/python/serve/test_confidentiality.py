"""What clients learn of a fault: one line of the server's own, never an exception's text, a traceback or a path."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jinja2 import TemplateSyntaxError

from orbitsplit import OrbitsplitError, TransportError
from tests.support.fake_engine import MODEL, FakeEngine, Served, byte_tokenizer, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SECRET = "/home/operator/models/secret.safetensors"
DETAILS = (
    f"RuntimeError('cannot read {SECRET}')\n"
    "Traceback (most recent call last):\n"
    f'  File "{SECRET}.py", line 3, in forward\n'
)
BODY = {"model": MODEL, "prompt": "a", "max_tokens": 9}
MESSAGES = [{"role": "user", "content": "a"}]


def check_message(text: str) -> None:
    """Assert that a body holds nothing of the exception, and that each message is one short line."""
    for leaked in ("Traceback", "RuntimeError", "File ", "/home", "secret"):
        assert leaked not in text
    for line in text.splitlines():
        if line.startswith(("{", "data: {")):
            error = json.loads(line.removeprefix("data: ")).get("error")
            assert error is None or ("\n" not in error["message"] and len(error["message"]) <= 300)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with serving(engine) as running:
        yield running


KINDS = ("killed", "hangs", "memory", "link", "corruption", "failed", "timeout", "peer", "unusable")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_pipeline_is_one_line(
    engine: FakeEngine, served: Served, kind: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine.die(TransportError(DETAILS, kind=kind, node="sat-1"), refuses=False)
    with caplog.at_level(logging.ERROR, "orbitsplit.serve"):
        response = httpx.post(served.url + COMPLETIONS, json={**BODY, "stream": stream})
    check_message(response.text)
    assert "the pipeline failed: " in response.text
    assert "pipeline_failed" in response.text
    assert response.status_code == (200 if stream else 503)
    # The operator gets all of it.
    assert DETAILS in caplog.text


def test_a_failure_before_a_request_is_one_line(engine: FakeEngine, served: Served) -> None:
    engine.die(TransportError(DETAILS, kind="unusable"))
    response = httpx.post(served.url + COMPLETIONS, json=BODY)
    assert response.status_code == 503
    check_message(response.text)


def test_an_error_of_another_kind_is_one_line(engine: FakeEngine, served: Served) -> None:
    engine.die(OrbitsplitError(DETAILS))
    response = httpx.post(served.url + COMPLETIONS, json=BODY)
    assert response.status_code == 503
    check_message(response.text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_500_without_its_text(
    engine: FakeEngine, served: Served, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine.die(RuntimeError(DETAILS), refuses=False)
    with caplog.at_level(logging.ERROR, "orbitsplit.serve"):
        response = httpx.post(served.url + COMPLETIONS, json={**BODY, "stream": stream})
    check_message(response.text)
    assert "internal error" in response.text
    assert SECRET in caplog.text


@pytest.mark.parametrize(
    ("kind", "arguments"), [(RuntimeError, (DETAILS,)), (TypeError, (DETAILS,)), (OSError, (2, "No such file", SECRET))]
)
def test_a_fault_of_the_engine_at_submission_is_500_without_its_text(
    engine: FakeEngine, served: Served, kind: type[Exception], arguments: tuple[Any, ...]
) -> None:
    engine.refusal = kind(*arguments)
    response = httpx.post(served.url + COMPLETIONS, json=BODY)
    assert response.status_code == 500
    check_message(response.text)


def test_what_the_engine_says_of_an_argument_is_the_first_line_of_it(engine: FakeEngine, served: Served) -> None:
    engine.refusal = ValueError(f"seed is {'9' * 5000}\n{DETAILS}")
    response = httpx.post(served.url + COMPLETIONS, json=BODY)
    assert response.status_code == 400
    assert "the pipeline refuses the request: seed is 999" in response.text
    check_message(response.text)


def test_health_has_no_text_of_the_exception(engine: FakeEngine, served: Served) -> None:
    engine.die(TransportError(DETAILS, kind="killed", node="sat-1"), refuses=False)
    httpx.post(served.url + COMPLETIONS, json=BODY)
    health = httpx.get(f"{served.url}/health")
    assert health.status_code == 503
    assert health.json() == {"status": "failed", "choices": 0, "reason": "the process of a node ended"}


@pytest.mark.parametrize("sent", [{}, {"authorization": "Bearer wrong"}, {"authorization": "open sesame"}])
def test_health_without_the_key_is_the_status_alone(sent: dict[str, str]) -> None:
    engine = FakeEngine()
    right = {"authorization": "Bearer open sesame"}
    with serving(engine, api_key="open sesame") as served:
        url = f"{served.url}/health"
        assert httpx.get(url, headers=sent).json() == {"status": "ok"}
        assert httpx.get(url, headers=right).json() == {"status": "ok", "choices": 0}
        engine.die(TransportError(DETAILS, kind="link"), refuses=False)
        httpx.post(served.url + COMPLETIONS, json=BODY, headers=right)
        refused = httpx.get(url, headers=sent)
        assert (refused.status_code, refused.json()) == (503, {"status": "failed"})
        assert httpx.get(url, headers=right).json()["reason"] == "a link does not deliver"


class BrokenTokenizer:
    """A tokenizer that fails at one of its calls, with a text that is nobody's business."""

    def __init__(self, broken: str, error: Exception) -> None:
        self._whole, self._broken, self._error = byte_tokenizer(), broken, error
        self._calls = 0

    def __len__(self) -> int:
        return len(self._whole)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self._calls += 1
        if self._broken == "__call__" and self._calls > 1:  # the first is the server's own, at its start
            raise self._error
        return self._whole(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: Any, **keywords: Any) -> Any:
            raise self._error

        return fail if name == self._broken else getattr(self._whole, name)


@pytest.mark.parametrize("broken", ["__call__", "decode"])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tokenizer_that_fails_is_500_without_its_text(broken: str, kind: type[Exception], stream: bool) -> None:
    with serving(tokenizer=BrokenTokenizer(broken, kind(DETAILS))) as served:
        response = httpx.post(served.url + COMPLETIONS, json={**BODY, "stream": stream})
        assert "internal error" in response.text
        check_message(response.text)


@pytest.mark.parametrize(
    ("kind", "arguments", "status"),
    [
        (TypeError, (DETAILS,), 400),
        (ValueError, (DETAILS,), 400),
        (TemplateSyntaxError, (DETAILS, 3, "template", SECRET), 500),
        (OSError, (2, "No such file", SECRET), 500),
    ],
)
def test_a_chat_template_that_fails_is_no_text_of_python(
    kind: type[Exception], arguments: tuple[Any, ...], status: int
) -> None:
    with serving(tokenizer=BrokenTokenizer("apply_chat_template", kind(*arguments))) as served:
        response = httpx.post(served.url + CHAT, json={"model": MODEL, "messages": MESSAGES})
        assert response.status_code == status
        check_message(response.text)


def test_what_the_template_itself_says_is_the_first_line_of_it() -> None:
    template = "{{ raise_exception('roles must alternate: ' + messages[0].content * 300 + '\n' + 'File secret') }}"
    with serving(tokenizer=byte_tokenizer(chat_template=template)) as served:
        response = httpx.post(served.url + CHAT, json={"model": MODEL, "messages": MESSAGES})
        assert response.status_code == 400
        assert "roles must alternate: aaa" in response.text
        check_message(response.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {**BODY, "model": "m" * 100_000}),
        (COMPLETIONS, {**BODY, "u" * 100_000: 1}),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "a", "k" * 100_000: 1}]}),
        ("/v1/" + "p" * 10_000, BODY),
    ],
)
def test_what_a_client_sent_is_quoted_in_part(served: Served, path: str, body: Any) -> None:
    response = httpx.post(served.url + path, json=body)
    assert response.status_code in (400, 404)
    assert len(response.text) < 1000
    check_message(response.text)
