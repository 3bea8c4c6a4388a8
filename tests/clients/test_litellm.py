"""Ordinary calls of `litellm`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.clients.conftest import Endpoint
from tests.clients.test_openai import LETTERS, MESSAGES, PARAMETERS, TOOLS

litellm = pytest.importorskip("litellm")
# It leaves its asynchronous clients open, and has models of pydantic whose fields differ from an answer's.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def options(endpoint: Endpoint) -> dict[str, Any]:
    model = f"openai/{endpoint.model}"
    given = {"model": model, "api_base": endpoint.v1, "api_key": "none", "max_tokens": 6, "temperature": 0}
    return {**given, "logit_bias": LETTERS}


def test_a_completion(options: dict[str, Any]) -> None:
    assert litellm.completion(messages=MESSAGES, **options).choices[0].message.content


def test_a_stream(options: dict[str, Any]) -> None:
    chunks = litellm.completion(messages=MESSAGES, stream=True, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == litellm.completion(messages=MESSAGES, **options).choices[0].message.content


def test_an_asynchronous_completion(options: dict[str, Any]) -> None:
    answer = asyncio.run(litellm.acompletion(messages=MESSAGES, **options))
    assert answer.choices[0].message.content


def test_tools(options: dict[str, Any]) -> None:
    answer = litellm.completion(
        messages=MESSAGES, tools=TOOLS, tool_choice="required", **{**options, "max_tokens": 600}
    )
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Paris")


def test_a_json_schema(options: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": PARAMETERS, "strict": True}}
    answer = litellm.completion(messages=MESSAGES, response_format=form, **{**options, "max_tokens": 400})
    assert json.loads(answer.choices[0].message.content)["city"] in ("Rome", "Paris")


def test_a_text_completion(options: dict[str, Any]) -> None:
    model = options["model"].replace("openai/", "text-completion-openai/")
    assert litellm.text_completion(prompt="The satellite", **{**options, "model": model}).choices[0].text


def test_its_responses(options: dict[str, Any]) -> None:
    given = {key: options[key] for key in ("model", "api_base", "api_key")}
    answer = litellm.responses(input="Hello", max_output_tokens=6, **given)
    assert answer.output[0].type == "message"


def test_embeddings(encoder: Endpoint) -> None:
    answer = litellm.embedding(
        model=f"openai/{encoder.model}", input=["a"], api_base=encoder.v1, api_key="none", encoding_format="float"
    )
    assert len(answer.data[0]["embedding"]) == 32
