"""What the server refuses, and that it says why: the status, the parameter, the numbers."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from orbitsplit.serve import ServerOptions, create_app
from tests.support.fake_engine import CONTEXT, MODEL, WAIT_S, FakeEngine, Served, byte_tokenizer, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "a"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WRONG_CALL = {**CALL, "function": {"name": "f", "arguments": "{"}}
LIST_CALL = {**CALL, "function": {"name": "f", "arguments": "[1]"}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_requests=8, max_body_bytes=60_000, body_timeout_s=0.2) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url) as connected:
        yield connected
    # Whatever was refused left nothing behind, and the server goes on.
    served.server.wait_until(served.is_idle)
    answer = httpx.post(served.url + COMPLETIONS, json={"model": MODEL, "prompt": "ab", "max_tokens": 3})
    assert answer.json()["choices"][0]["text"] == "aba"


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error in a response, checked for form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (COMPLETIONS, "logprobs", 21),
        (COMPLETIONS, "logprobs", True),
        (COMPLETIONS, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (COMPLETIONS, "response_format", {"type": "json_object"}),
        (CHAT, "logprobs", 1),
        (CHAT, "top_logprobs", 2),
        (CHAT, "top_logprobs", 21),
        (CHAT, "tool_choice", "required"),
        (CHAT, "tool_choice", "sometimes"),
        (CHAT, "presence_penalty", 2.5),
        (COMPLETIONS, "frequency_penalty", -3),
        (COMPLETIONS, "repetition_penalty", 0),
        (COMPLETIONS, "top_k", -2),
        (COMPLETIONS, "min_p", 1.5),
        (COMPLETIONS, "min_tokens", -1),
        (COMPLETIONS, "logit_bias", {"a": 1}),
        (COMPLETIONS, "logit_bias", {"5": 101}),
        (COMPLETIONS, "logit_bias", {"5": "high"}),
        (COMPLETIONS, "best_of", 2),
        (COMPLETIONS, "suffix", "b"),
        (COMPLETIONS, "warp", 9),
        (COMPLETIONS, "chat_template_kwargs", {}),
        (CHAT, "chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
        (CHAT, "chat_template_kwargs", {"truncation": True}),
        (CHAT, "chat_template_kwargs", "thinking"),
        (CHAT, "audio", {"voice": "ash"}),
        (CHAT, "web_search_options", {}),
        (COMPLETIONS, "max_completion_tokens", 9),
        (CHAT, "echo", True),
        (COMPLETIONS, "temperature", -0.1),
        (COMPLETIONS, "temperature", "hot"),
        (COMPLETIONS, "top_p", 0),
        (COMPLETIONS, "top_p", 1.5),
        (COMPLETIONS, "n", 0),
        (COMPLETIONS, "n", True),
        (COMPLETIONS, "max_tokens", 0),
        (COMPLETIONS, "max_tokens", "5"),
        (CHAT, "max_completion_tokens", -1),
        (COMPLETIONS, "seed", 2**63),
        (COMPLETIONS, "seed", 1.5),
        (COMPLETIONS, "stop", ["a", "b", "c", "d", "e"]),
        (COMPLETIONS, "stop", ""),
        (COMPLETIONS, "stop", [1]),
        (COMPLETIONS, "stream", "yes"),
        (COMPLETIONS, "prompt", ""),
        (COMPLETIONS, "prompt", []),
        (COMPLETIONS, "prompt", [[]]),
        (COMPLETIONS, "prompt", ["a", 1]),
        (COMPLETIONS, "prompt", [1.5]),
        (COMPLETIONS, "prompt", [257]),
        (COMPLETIONS, "prompt", [-1]),
        (COMPLETIONS, "prompt", {"text": "a"}),
        (CHAT, "messages", []),
        (CHAT, "messages", "a"),
        (COMPLETIONS, "model", 1),
    ],
)
def test_a_parameter_at_fault_is_named(client: httpx.Client, path: str, key: str, value: Any) -> None:
    body = {"model": MODEL, **({"messages": MESSAGES} if path == CHAT else {"prompt": "a"}), key: value}
    error = refusal(client.post(path, json=body), 400)
    assert str(error["param"]).partition(".")[0] == key
    assert key in error["message"]


@pytest.mark.parametrize("prompt", [[-1], [257], [[65], [66, -1]]])
def test_a_prompt_that_is_echoed_is_checked_too(client: httpx.Client, prompt: Any) -> None:
    body = {"model": MODEL, "prompt": prompt, "echo": True, "max_tokens": 1}
    error = refusal(client.post(COMPLETIONS, json=body), 400)
    assert (error["param"], "is not one of 0 to 256" in error["message"]) == ("prompt", True)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user"}], "messages.0"),
        ([{"role": "user", "content": None}], "messages.0"),
        ([{"role": "assistant", "content": None}], "messages.0"),
        ([{"role": "function", "content": "a"}], "messages.0.role"),
        ([{"role": "tool", "content": "a"}], "messages.0"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "messages.0"),
        ([*MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.1.content"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages.0.tool_calls.0.function"),
        ([{"role": "assistant", "tool_calls": [WRONG_CALL]}], "messages.0.tool_calls.0.function.arguments"),
        ([{"role": "assistant", "tool_calls": [LIST_CALL]}], "messages.0.tool_calls.0.function.arguments"),
        (["a"], "messages.0"),
        ([*MESSAGES, {"role": "system", "content": "late"}], "messages"),
    ],
)
def test_a_message_at_fault_is_named(client: httpx.Client, messages: Any, param: str) -> None:
    assert refusal(client.post(CHAT, json={"model": MODEL, "messages": messages}), 400)["param"] == param


def test_what_a_template_refuses_is_told(client: httpx.Client) -> None:
    messages = [*MESSAGES, {"role": "system", "content": "late"}]
    assert "the system speaks first" in client.post(CHAT, json={"model": MODEL, "messages": messages}).text


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_parameters_that_ask_for_nothing_are_accepted(client: httpx.Client, path: str) -> None:
    nothing = {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": None, "stop": None}
    mine = {"response_format": {"type": "text"}, "tools": None} if path == CHAT else {"best_of": 1, "suffix": ""}
    what = {"messages": MESSAGES} if path == CHAT else {"prompt": "a"}
    response = client.post(path, json={"model": MODEL, **what, "max_tokens": 2, **nothing, **mine})
    assert response.status_code == 200, response.text


def test_parameters_that_cannot_change_the_answer_are_accepted(client: httpx.Client) -> None:
    hints = {
        "metadata": {"run": "7"},
        "prediction": {"type": "content", "content": "a"},
        "prompt_cache_key": "key",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "safety_identifier": "someone",
        "service_tier": "flex",
        "store": True,
        "user": "me",
        "verbosity": "low",
    }
    for path, what in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})):
        plain = {"model": MODEL, **what, "max_tokens": 20}
        response = client.post(path, json={**plain, **hints})
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == client.post(path, json=plain).json()["choices"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"a"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 50_000,
        b'{"model": "tiny/echo", "prompt": "\\ud800"}',
        b'{"model": "tiny/echo", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny/echo"}',
        b"{}",
    ],
)
def test_nonsense_is_400(client: httpx.Client, body: bytes) -> None:
    refusal(client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"}), 400)


def test_another_model_is_404(client: httpx.Client) -> None:
    error = refusal(client.post(COMPLETIONS, json={"model": "gpt-4", "prompt": "a"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert '"gpt-4"' in error["message"]
    assert f'"{MODEL}"' in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_400_with_both_numbers(client: httpx.Client, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "a" * CONTEXT, "stream": stream}
    error = refusal(client.post(COMPLETIONS, json=body), 400)
    assert error["message"] == f"prompt: the prompt has {CONTEXT} tokens, the context is {CONTEXT} with the answer"
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    error = refusal(client.post(COMPLETIONS, json={**body, "prompt": "a" * 8000, "max_tokens": 193}), 400)
    assert error["message"].endswith("the context is 8192 tokens: the prompt's 8000 and 193 new ones are 8193")
    assert error["param"] == "max_tokens"


def test_what_the_pipeline_refuses_is_400(client: httpx.Client) -> None:
    error = refusal(client.post(COMPLETIONS, json={"model": MODEL, "prompt": "a", "seed": 13, "n": 2}), 400)
    assert error["message"] == "the pipeline refuses the request: seed is 13, expected a lucky number"


def test_a_large_body_is_413(client: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a" * 60_000}).encode()
    kind = {"content-type": "application/json"}
    assert "60000" in refusal(client.post(COMPLETIONS, content=body, headers=kind), 413)["message"]
    parts = (body[at : at + 20_000] for at in range(0, len(body), 20_000))  # sent without saying how large it is
    refusal(client.post(COMPLETIONS, content=parts, headers=kind), 413)


def test_a_body_that_does_not_arrive_is_408(client: httpx.Client, served: Served) -> None:
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_S) as slow:
        slow.sendall(head.encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_other_content_types_paths_and_methods(client: httpx.Client) -> None:
    text = {"content-type": "text/plain"}
    assert "text/plain" in refusal(client.post(COMPLETIONS, content=b"{}", headers=text), 415)["message"]
    refusal(client.get("/v1/images"), 404)
    assert client.get(COMPLETIONS).headers["allow"] == "POST"
    refusal(client.get(COMPLETIONS), 405)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "compress, gzip"])
def test_an_encoded_body_is_415_naming_the_encoding(client: httpx.Client, encoding: str) -> None:
    # It was 400, "not JSON".
    body = gzip.compress(json.dumps({"model": MODEL, "prompt": "a"}).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    for path in (COMPLETIONS, CHAT):
        response = client.post(path, content=body, headers=headers)
        assert f'the content-encoding is "{encoding}"' in refusal(response, 415)["message"]
        assert response.headers["accept-encoding"] == "identity"


def test_an_encoding_given_twice_is_415(client: httpx.Client) -> None:
    headers = [("content-type", "application/json"), ("content-encoding", "identity"), ("content-encoding", "gzip")]
    assert "gzip" in refusal(client.post(COMPLETIONS, content=b"{}", headers=headers), 415)["message"]


def test_a_body_without_an_encoding_may_say_so(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 2}
    assert client.post(COMPLETIONS, json=body, headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", ["/health/", "/v1/models/", "/v1/completions/", "/v1/chat/completions/", "/v1/"])
def test_a_path_with_a_slash_at_its_end_is_404_and_no_redirect(client: httpx.Client, path: str) -> None:
    # It was redirected to http:// and the server's own port, also behind a proxy with TLS.
    for method in ("GET", "POST"):
        response = client.request(method, path, json={})
        assert response.status_code in (404, 405)
        assert "location" not in response.headers
    refusal(client.get(path), 404)


def test_more_choices_than_there_can_be_is_400(client: httpx.Client) -> None:
    error = refusal(client.post(COMPLETIONS, json={"model": MODEL, "prompt": ["a"] * 3, "n": 3}), 400)
    assert error["message"] == "the request asks for 9 choices, this server takes at most 8"


def test_more_requests_than_allowed_are_429_until_one_ends() -> None:
    engine = FakeEngine(at_once=1)
    engine.allow(0)
    with serving(engine, max_requests=3) as served, httpx.Client(base_url=served.url) as client:
        body = {"model": MODEL, "prompt": "ab", "max_tokens": 4}

        async def ask() -> list[int]:
            async with httpx.AsyncClient(base_url=served.url) as several:
                asked = [asyncio.create_task(several.post(COMPLETIONS, json=body)) for _ in range(3)]
                await asyncio.to_thread(engine.wait_until, lambda: len(engine.seen) == 3)
                refused = await several.post(COMPLETIONS, json=body)
                assert refused.headers["retry-after"] == "1"
                assert "3 choices are running or queued" in refusal(refused, 429)["message"]
                engine.allow(None)
                return [response.status_code for response in await asyncio.gather(*asked)]

        assert asyncio.run(ask()) == [200] * 3
        served.server.wait_until(served.is_idle)
        assert client.post(COMPLETIONS, json=body).status_code == 200


@pytest.mark.parametrize("key", ["secret", "geheim-ü"])
def test_a_key_is_wanted_everywhere_but_for_health(key: str) -> None:
    with serving(api_key=key) as served:
        with httpx.Client(base_url=served.url) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/ready").json() == {"status": "ready"}
            for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer"}, {"authorization": key}):
                sent = {name: value.encode() for name, value in wrong.items()}
                for path in ("/v1/models", f"/v1/models/{MODEL}"):
                    assert refusal(client.get(path, headers=sent), 401)["code"] == "invalid_api_key"
                refusal(client.get("/metrics", headers=sent), 401)
                for path in (COMPLETIONS, CHAT, "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"):
                    refusal(client.post(path, headers=sent), 401)
            right = {"authorization": f"Bearer {key}".encode()}
            assert client.get("/v1/models", headers=right).status_code == 200
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as of_openai,
            pytest.raises(openai.AuthenticationError, match="requires its API key"),
        ):
            of_openai.models.list()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 0}, "context_tokens is 0"),
        ({"max_requests": 0}, "max_requests is 0"),
        ({"max_body_bytes": -1}, "max_body_bytes is -1"),
        ({"api_key": ""}, "api_key is empty"),
        ({"model_name": ""}, "model_name is empty"),
        ({"body_timeout_s": 0}, "body_timeout_s is 0"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"num_assistant_tokens": 0}, "num_assistant_tokens is 0"),
        ({"body_timeout_s": math.inf}, "body_timeout_s is inf"),
        ({"body_timeout_s": math.nan}, "body_timeout_s is nan"),
        ({"model_name": None}, "needs model_name and context_tokens"),
        ({"context_tokens": None}, "needs model_name and context_tokens"),
    ],
)
def test_limits_that_admit_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    engine = FakeEngine()
    try:
        with pytest.raises(ValueError, match=message):
            create_app(engine, byte_tokenizer(), **{"model_name": MODEL, "context_tokens": 9, **options})
    finally:
        engine.close()


def test_options_of_a_wrong_type_are_refused_by_name_without_the_key() -> None:
    for name, value in (("model_name", 1), ("api_key", b"open sesame")):
        with pytest.raises(TypeError, match=f"{name} is a {type(value).__name__}, must be a string") as refused:
            ServerOptions(**{name: value})
        assert "sesame" not in str(refused.value)
    for name in ("context_tokens", "max_requests", "max_body_bytes", "body_timeout_s", "num_assistant_tokens"):
        with pytest.raises((TypeError, ValueError), match=name):
            ServerOptions(**{name: "9"})
    assert "sesame" not in repr(ServerOptions(api_key="open sesame"))


def test_options_are_an_object_or_keywords_or_both() -> None:
    engine, tokenizer = FakeEngine(), byte_tokenizer()
    options = ServerOptions(model_name=MODEL, context_tokens=9, max_requests=2)
    try:
        for app, expected in (
            (create_app(engine, tokenizer, options), 2),
            (create_app(engine, tokenizer, model_name=MODEL, context_tokens=9, max_requests=2), 2),
            (create_app(engine, tokenizer, options, max_requests=3), 3),
        ):
            with TestClient(app) as client:
                body = {"model": MODEL, "prompt": ["a"] * 4, "max_tokens": 1}
                message = client.post(COMPLETIONS, json=body).json()["error"]["message"]
                assert message == f"the request asks for 4 choices, this server takes at most {expected}"
        with pytest.raises(TypeError, match="colour"):
            create_app(engine, tokenizer, options, colour="red")
    finally:
        engine.close()
