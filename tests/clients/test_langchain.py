"""Ordinary calls of `langchain-openai`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.clients.conftest import Endpoint
from tests.clients.test_openai import LETTERS, Weather

langchain_openai = pytest.importorskip("langchain_openai")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of its own dependencies


@pytest.fixture
def chat(endpoint: Endpoint) -> Any:
    return model_of(endpoint)


def model_of(endpoint: Endpoint, **more: Any) -> Any:
    options = {"max_tokens": 6, "temperature": 0, "max_retries": 0, "logit_bias": LETTERS, **more}
    return langchain_openai.ChatOpenAI(model=endpoint.model, base_url=endpoint.v1, api_key="none", **options)


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def test_invoke(chat: Any) -> None:
    answer = chat.invoke("Hello")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] <= 6


def test_stream(chat: Any) -> None:
    assert "".join(chunk.content for chunk in chat.stream("Hello")) == chat.invoke("Hello").content


def test_batch(chat: Any) -> None:
    assert len(chat.batch(["Hello", "Hi"])) == 2


def test_ainvoke(chat: Any) -> None:
    assert asyncio.run(chat.ainvoke("Hello")).content


def test_tools_and_their_answers(endpoint: Endpoint) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    named: dict[str, Any] = {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    chat = model_of(endpoint, max_tokens=600).bind_tools([named], tool_choice="any")
    question = HumanMessage("What is the weather?")
    answer = chat.invoke([question])
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    result = ToolMessage(get_weather(call["args"]["city"]), tool_call_id=call["id"])
    assert model_of(endpoint).invoke([question, answer, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(endpoint: Endpoint, method: str) -> None:
    chat = model_of(endpoint, max_tokens=600).with_structured_output(Weather, method=method)
    assert isinstance(chat.invoke("What is the weather?"), Weather)


def test_logprobs(endpoint: Endpoint) -> None:
    answer = model_of(endpoint).bind(logprobs=True).invoke("Hello")
    assert answer.response_metadata["logprobs"]["content"]


def test_its_responses(endpoint: Endpoint) -> None:
    answer = model_of(endpoint, use_responses_api=True, logit_bias=None).invoke("Hello")
    assert answer.response_metadata["object"] == "response"


def test_a_completion(endpoint: Endpoint) -> None:
    model = langchain_openai.OpenAI(
        model=endpoint.model, base_url=endpoint.v1, api_key="none", max_tokens=6, logit_bias=LETTERS
    )
    assert model.invoke("The satellite")


def test_embeddings(encoder: Endpoint) -> None:
    # Without the check, which counts tokens with OpenAI's own tokenizers.
    model = langchain_openai.OpenAIEmbeddings(
        model=encoder.model, base_url=encoder.v1, api_key="none", check_embedding_ctx_length=False
    )
    assert [len(vector) for vector in model.embed_documents(["a", "b"])] == [32, 32]
