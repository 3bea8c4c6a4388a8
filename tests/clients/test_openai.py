"""Ordinary calls of the `openai` package."""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.clients.conftest import Endpoint

MESSAGES: Any = [{"role": "user", "content": "What is the weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
LETTERS = {str(ord(letter) - 33): 50 for letter in string.ascii_lowercase}  # tokens of bytes begin with "!"


class Weather(BaseModel):
    """A structured answer."""

    city: Literal["Rome", "Paris"]
    is_sunny: bool


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[OpenAI]:
    with OpenAI(base_url=endpoint.v1, api_key="none", max_retries=0, timeout=100) as connected:
        yield connected


@pytest.fixture
def model(endpoint: Endpoint) -> str:
    return endpoint.model


def asked(model: str, **more: Any) -> Any:
    """Return the arguments of a short greedy chat, in letters: the model's weights are random."""
    return {
        "model": model,
        "messages": MESSAGES,
        "max_tokens": 6,
        "temperature": 0,
        "logit_bias": LETTERS,
        **more,
    }


def test_01_models_list(client: OpenAI, model: str) -> None:
    assert [one.id for one in client.models.list()] == [model]


def test_02_models_retrieve(client: OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model


def test_03_completion(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="The satellite", max_tokens=6, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6


def test_04_completion_streamed(client: OpenAI, model: str) -> None:
    options: Any = {"model": model, "prompt": "The satellite", "max_tokens": 6, "temperature": 0}
    chunks = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == client.completions.create(**options).choices[0].text


def test_05_completion_of_several_prompts_with_echo(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["ab", "cd"], n=2, echo=True, max_tokens=2)
    assert [choice.text[:2] for choice in answer.choices] == ["ab", "ab", "cd", "cd"]


def test_06_completion_with_logprobs_and_echo(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="abc", max_tokens=0, echo=True, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list("abc")
    first, *others = logprobs.token_logprobs or ()
    assert first is None
    assert all(value < 0 for value in others)
    assert len((logprobs.top_logprobs or ())[1]) in (3, 4)


def test_07_chat(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, logit_bias={}))
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_08_chat_streamed(client: OpenAI, model: str) -> None:
    chunks = client.chat.completions.create(**asked(model, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == client.chat.completions.create(**asked(model)).choices[0].message.content


def test_09_chat_streamed_with_usage(client: OpenAI, model: str) -> None:
    *_, last = client.chat.completions.create(**asked(model, stream=True, stream_options={"include_usage": True}))
    assert last.usage is not None
    assert last.usage.total_tokens > 6


def test_10_chat_with_system_and_developer_messages(client: OpenAI, model: str) -> None:
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, *MESSAGES]
        assert client.chat.completions.create(**asked(model, messages=messages)).choices


def test_11_chat_with_content_parts(client: OpenAI, model: str) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "the weather?"}]
    other = client.chat.completions.create(**asked(model, messages=[{"role": "user", "content": parts}]))
    assert other.choices[0].message.content == client.chat.completions.create(**asked(model)).choices[0].message.content


def test_12_several_choices(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, n=3, temperature=1))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_13_stop(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(**asked(model)).choices[0].message.content or ""
    assert len(whole) == 6
    answer = client.chat.completions.create(**asked(model, stop=[whole[3]])).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(whole[3])], "stop")


def test_14_seed(client: OpenAI, model: str) -> None:
    texts = {
        client.chat.completions.create(**asked(model, temperature=1, seed=7)).choices[0].message.content
        for _ in range(3)
    }
    assert len(texts) == 1


def test_15_temperature_and_top_p(client: OpenAI, model: str) -> None:
    assert client.chat.completions.create(**asked(model, temperature=0.7, top_p=0.9)).choices


def test_16_chat_with_logprobs(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, logprobs=True, top_logprobs=2, logit_bias={})).choices[0]
    assert answer.logprobs is not None
    content = answer.logprobs.content or []
    assert "".join(one.token for one in content if one.bytes) in (answer.message.content or "")
    # Greedy: each token is the likeliest one.
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)


def test_17_penalties(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, presence_penalty=2, frequency_penalty=2, max_tokens=12))
    assert answer.choices


def test_18_logit_bias(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, logit_bias={str(ord("A") - 33): 100}))
    assert answer.choices[0].message.content == "AAAAAA"


def test_19_json_object(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asked(model, response_format={"type": "json_object"}))
    assert (answer.choices[0].message.content or "").startswith("{")


def test_20_json_schema(client: OpenAI, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": PARAMETERS, "strict": True}}
    answer = client.chat.completions.create(**asked(model, response_format=form, max_tokens=400))
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Rome", "Paris")


def test_21_parse_into_a_class(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(**asked(model, response_format=Weather, max_tokens=600))
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_22_tools_offered(client: OpenAI, model: str) -> None:
    assert client.chat.completions.create(**asked(model, tools=TOOLS)).choices[0].message.content is not None


def test_23_a_tool_required(client: OpenAI, model: str) -> None:
    options = asked(model, tools=TOOLS, tool_choice="required", max_tokens=600)
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "get_weather"


def test_24_a_tool_named_streamed(client: OpenAI, model: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    arguments = ""
    for chunk in client.chat.completions.create(
        **asked(model, tools=TOOLS, tool_choice=named, max_tokens=400, stream=True)
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            arguments += call.function.arguments or ""
    assert json.loads(arguments)["city"] in ("Rome", "Paris")


def test_25_the_answer_of_a_tool(client: OpenAI, model: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert client.chat.completions.create(**asked(model, messages=messages, tools=TOOLS)).choices


def test_26_the_stream_helper(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(**asked(model, response_format=Weather, max_tokens=600)) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)


def test_27_raw_response(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked(model))
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices


def test_28_streaming_response(client: OpenAI, model: str) -> None:
    with client.chat.completions.with_streaming_response.create(**asked(model)) as response:
        assert json.loads("".join(response.iter_text()))["object"] == "chat.completion"


def test_29_async(endpoint: Endpoint) -> None:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=endpoint.v1, api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**asked(endpoint.model))
            chunks = await client.chat.completions.create(**asked(endpoint.model, stream=True))
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
            assert text == whole.choices[0].message.content
            return text

    assert asyncio.run(ask())


def test_30_hints_that_change_nothing(client: OpenAI, model: str) -> None:
    hints: Any = {"prompt_cache_key": "k", "safety_identifier": "s", "store": True, "metadata": {"a": "b"}, "user": "u"}
    more = {"reasoning_effort": "low", "verbosity": "low", "service_tier": "auto"}
    texts = [
        client.chat.completions.create(**asked(model, **given)).choices[0].message.content
        for given in ({**hints, **more}, {})
    ]
    assert texts[0] == texts[1]


def test_31_response(client: OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, input="Hello", instructions="Be brief.", max_output_tokens=6)
    assert answer.object == "response"


def test_32_response_streamed(client: OpenAI, model: str) -> None:
    kinds = [
        event.type for event in client.responses.create(model=model, input="Hello", max_output_tokens=6, stream=True)
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_33_response_parsed(client: OpenAI, model: str) -> None:
    answer = client.responses.parse(model=model, input="Hello", text_format=Weather, temperature=0)
    assert isinstance(answer.output_parsed, Weather)


def test_34_embeddings(encoder: Endpoint) -> None:
    with OpenAI(base_url=encoder.v1, api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=encoder.model, input=["a", "b"])
        assert [len(one.embedding) for one in answer.data] == [32, 32]


def test_35_errors_are_those_of_the_package(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(**asked("gpt-5"))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked(model, temperature=9))
    assert refused.value.param == "temperature"
    assert refused.value.request_id is not None
