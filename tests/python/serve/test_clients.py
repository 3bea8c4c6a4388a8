"""What ordinary OpenAI clients get from a real server: both endpoints, streamed and not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from orbitsplit import TransportError
from tests.support.fake_engine import CONTEXT, MODEL, FakeEngine, Served, byte_tokenizer, serving

POEM = "Über den Satelliten — 🛰️ – zieht ein stiller Schein. "


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def loss() -> TransportError:
    """Return a new error each time: one that was raised keeps the frames of its requests alive."""
    return TransportError("node sat-1 was killed by signal 9", kind="killed", node="sat-1")


def continued(prompt: str, count: int) -> str:
    """Return the first bytes of a prompt repeated: what the engine says, one byte a token."""
    endless = itertools.islice(itertools.cycle(prompt.encode()), count)
    return bytes(endless).decode(errors="replace")


@pytest.mark.parametrize("count", [1, 5, 6, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 200])
def test_a_completion_is_the_same_streamed_or_not(client: OpenAI, count: int) -> None:
    whole = client.completions.create(model=MODEL, prompt=POEM, max_tokens=count)
    assert whole.choices[0].text == continued(POEM, count)
    assert whole.choices[0].finish_reason == "length"
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.to_dict() == {
        "prompt_tokens": len(POEM.encode()),
        "completion_tokens": count,
        "total_tokens": len(POEM.encode()) + count,
    }
    chunks = list(client.completions.create(model=MODEL, prompt=POEM, max_tokens=count, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == continued(POEM, count)
    # Only the very end, cut amid a character, may hold a replacement.
    assert all("\ufffd" not in chunk.choices[0].text for chunk in chunks[:-2])
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}


def test_every_request_asks_the_assistant_for_guesses_where_the_server_says_so(client: OpenAI, served: Served) -> None:
    client.completions.create(model=MODEL, prompt=POEM, max_tokens=1)
    assert "num_assistant_tokens" not in served.engine.seen[0].arguments
    with serving(num_assistant_tokens=5) as assisted, assisted.client() as other:
        other.completions.create(model=MODEL, prompt=POEM, max_tokens=1, temperature=0)
        messages: Any = [{"role": "user", "content": "Where are you?"}]
        other.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=1)
        assert [one.arguments["num_assistant_tokens"] for one in assisted.engine.seen] == [5, 5]


def test_a_chat_is_the_same_streamed_or_not(client: OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß Gott 🛰️"}]
    prompt = "system: Be brief.\nuser: Grüß Gott 🛰️\nassistant: "
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=60)
    assert whole.choices[0].message.to_dict() == {
        "role": "assistant",
        "content": continued(prompt, 60),
        "refusal": None,
    }
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt.encode())
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=60, stream=True, stream_options={"include_usage": True}
        )
    )
    *texts, last, usage = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == continued(prompt, 60)
    assert last.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert all(chunk.usage is None for chunk in [*texts, last])


def test_a_chat_may_go_on_with_the_message_it_got(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    first = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5)
    messages += [first.choices[0].message, {"role": "user", "content": "c"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=100)
    assert second.choices[0].message.content == continued("user: ab\nassistant: user:\nuser: c\nassistant: ", 100)


def test_a_chat_may_go_on_after_a_call_of_a_tool(served: Served) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}"
        "{% if m.tool_call_id %} for {{ m.tool_call_id }}{% endif %}\n{% endfor %}"
        "{% if loud %}!{% endif %}{{ reasoning_effort }}: "
    )
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}
    messages: list[Any] = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "12"}]},
    ]
    expected = "user: goassistant: add(7)tool: 12 for c1!low: "  # transformers trims newlines of a template
    with serving(tokenizer=byte_tokenizer(chat_template=template)) as other, other.client() as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            reasoning_effort="low",
            max_tokens=len(expected),
            extra_body={"chat_template_kwargs": {"loud": True}},
        )
    assert answer.choices[0].message.content == expected


def test_a_chat_without_a_limit_may_fill_the_context(client: OpenAI, served: Served) -> None:
    say = [ord("x") - 33] * 3 + [served.tokenizer.eos_token_id]
    served.engine.say = lambda prompt: say
    try:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    finally:
        served.engine.say = list
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == served.tokenizer.decode(say[:3])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert served.engine.seen[0].arguments["max_new_tokens"] == CONTEXT - len("user: a\nassistant: ")


def test_prompts_are_text_or_tokens_one_or_many(client: OpenAI, served: Served) -> None:
    tokens = served.tokenizer("abc")["input_ids"]
    for prompt, expected in (
        ("abc", ["abcabcab"]),
        (["abc", "xy"], ["abcabcab", "xyxyxyxy"]),
        (tokens, ["abcabcab"]),
        ([tokens, tokens[:1]], ["abcabcab", "aaaaaaaa"]),
    ):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == list(range(len(expected)))


@pytest.mark.parametrize("stream", [False, True])
def test_choices_and_echo(client: OpenAI, served: Served, stream: bool) -> None:
    answer: Any = client.completions.create(
        model=MODEL, prompt=["ab", "c"], n=2, echo=True, max_tokens=4, seed=2**63 - 1, stream=stream, user="me"
    )
    texts = ["", "", "", ""]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == ["ababab", "ababab", "ccccc", "ccccc"]
    assert [one.arguments["seed"] for one in served.engine.seen] == [
        2**63 - 1,
        0,
    ] * 2  # a choice's own, whatever beside


def test_an_echo_and_its_continuation_share_a_character(client: OpenAI, served: Served) -> None:
    tokens = served.tokenizer("x🛰")["input_ids"]
    served.engine.say = lambda prompt: tokens[3:]
    try:
        answer = client.completions.create(model=MODEL, prompt=tokens[:3], echo=True, max_tokens=2)
    finally:
        served.engine.say = list
    assert answer.choices[0].text == "x🛰"


def test_sampling_reaches_the_engine(client: OpenAI, served: Served) -> None:
    client.completions.create(model=MODEL, prompt="a", temperature=0, top_p=0.5, seed=1)
    client.completions.create(model=MODEL, prompt="a")
    client.completions.create(model=MODEL, prompt="a", temperature=0.5, top_p=0.25, seed=7)
    eos = (served.tokenizer.eos_token_id,)
    common = {"max_new_tokens": 16, "eos_token_id": eos}
    assert [one.arguments for one in served.engine.seen] == [
        {**common, "do_sample": False},
        {**common, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None},
        {**common, "do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 0.25, "seed": 7},
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [("nd the", "Over a"), (["the s", "station, a"], "Over and "), (["zzz", "and"], "Over "), ("Over", "")],
)
def test_stop_strings_are_cut_off_and_end_the_generation(
    client: OpenAI, served: Served, stop: Any, expected: str, stream: bool
) -> None:
    answer: Any = client.completions.create(
        model=MODEL, prompt="Over and the station, ", stop=stop, max_tokens=CONTEXT - 100, stream=stream
    )
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == expected
    assert parts[-1].choices[0].finish_reason == "stop"
    served.engine.wait_until(lambda: served.engine.seen[0].is_ended)
    assert served.engine.seen[0].is_cancelled
    assert len(served.engine.seen[0].sent) < CONTEXT - 100


def test_half_a_stop_string_at_the_end_is_text(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="ab", stop="abc", max_tokens=4)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abab", "length")


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "orbitsplit"
    # The context, which clients had to know from elsewhere.
    assert client.models.retrieve(MODEL).to_dict()["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("other")


def test_the_asynchronous_client(served: Served) -> None:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(model=MODEL, prompt=POEM, max_tokens=90, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(ask()) == continued(POEM, 90)


def test_a_model_without_a_chat_template_says_so() -> None:
    with serving(tokenizer=byte_tokenizer(chat_template=None)) as served, served.client() as client:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
        assert client.completions.create(model=MODEL, prompt="a", max_tokens=2).choices[0].text == "aa"


def test_a_pipeline_that_dies_amid_a_stream_says_so_in_it() -> None:
    engine = FakeEngine()
    engine.allow(3)
    with serving(engine) as served, served.client() as client:
        chunks = client.completions.create(model=MODEL, prompt="a", max_tokens=9, stream=True)
        assert next(chunks).choices[0].text.startswith("a")
        engine.die(loss())
        with pytest.raises(openai.APIError, match="the pipeline failed: the process of a node ended"):
            list(chunks)
        served.server.wait_until(served.is_idle)


def test_a_pipeline_that_dies_is_503_from_then_on() -> None:
    engine = FakeEngine()
    engine.allow(3)

    async def ask_and_die(served: Served) -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asked = asyncio.create_task(client.completions.create(model=MODEL, prompt="a", max_tokens=9))
            await asyncio.to_thread(engine.wait_until, lambda: engine.budget == 0)
            engine.die(loss())
            with pytest.raises(openai.InternalServerError, match="the process of a node ended") as refused:
                await asked
            assert refused.value.status_code == 503

    with serving(engine) as served, served.client() as client:
        assert httpx.get(f"{served.url}/health").json() == {"status": "ok", "choices": 0}
        asyncio.run(ask_and_die(served))
        with pytest.raises(openai.InternalServerError, match="the process of a node ended") as refused:
            client.completions.create(model=MODEL, prompt="a")
        assert refused.value.status_code == 503
        health = httpx.get(f"{served.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        served.server.wait_until(served.is_idle)
