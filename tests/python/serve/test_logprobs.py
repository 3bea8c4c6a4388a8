"""Log-probabilities of tokens, in the forms of both endpoints, and the settings that change logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.support.fake_engine import MODEL, Served, logprob_of, serving

MESSAGES: Any = [{"role": "user", "content": "ü!"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def ids(served: Served, text: str) -> list[int]:
    tokens: list[int] = served.tokenizer(text)["input_ids"]
    return tokens


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_completion(client: OpenAI, served: Served, stream: bool) -> None:
    answer: Any = client.completions.create(model=MODEL, prompt="abc", max_tokens=4, logprobs=2, stream=stream)
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in answer if stream else [answer]:
        for name, values in found.items():
            values += [] if part.choices[0].logprobs is None else getattr(part.choices[0].logprobs, name)
    expected = [logprob_of(token) for token in ids(served, "abca")]
    assert found["tokens"] == list("abca")
    assert found["token_logprobs"] == pytest.approx(expected)
    assert found["top_logprobs"][0] == pytest.approx({"a": expected[0], "b": -5.0})
    assert found["text_offset"] == [0, 1, 2, 3]


def test_with_no_others_asked_for_the_token_itself_is_still_there(client: OpenAI, served: Served) -> None:
    answer = client.completions.create(model=MODEL, prompt="ab", max_tokens=1, logprobs=0)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.top_logprobs == [{"a": logprob_of(ids(served, "a")[0])}]
    assert served.engine.seen[0].arguments["logprobs"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_the_prompts_tokens_first(client: OpenAI, served: Served, stream: bool) -> None:
    # What lm-evaluation-harness asks for: the prompt's log-probabilities, and one token that it drops.
    answer: Any = client.completions.create(
        model=MODEL, prompt=["ab", "cd"], max_tokens=1, echo=True, logprobs=1, stream=stream
    )
    texts, tokens, offsets = ["", ""], [[], []], [[], []]
    scores: list[list[Any]] = [[], []]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.tokens
                scores[choice.index] += choice.logprobs.token_logprobs
                offsets[choice.index] += choice.logprobs.text_offset
    assert texts == ["aba", "cdc"]
    assert tokens == [list("aba"), list("cdc")]
    assert offsets == [[0, 1, 2]] * 2
    assert scores[0] == [None, *(pytest.approx(logprob_of(token)) for token in ids(served, "ba"))]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_without_new_tokens(client: OpenAI, served: Served, stream: bool) -> None:
    answer: Any = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=0, echo=True, logprobs=1, stream=stream
    )
    parts = list(answer) if stream else [answer]
    choices = [part.choices[0] for part in parts]
    assert "".join(choice.text for choice in choices) == "abc"
    assert [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens] == list("abc")
    assert choices[-1].finish_reason == "length"
    # The engine gives one token at least.
    assert served.engine.seen[0].arguments["max_new_tokens"] == 1
    if not stream:
        assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(client: OpenAI, served: Served, stream: bool) -> None:
    answer: Any = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, stream=stream
    )
    found = []
    for part in answer if stream else [answer]:
        found += [] if part.choices[0].logprobs is None else part.choices[0].logprobs.content
    first = logprob_of(ids(served, "u")[0])
    assert [one.token for one in found] == list("use")
    assert found[0].bytes == [ord("u")]
    assert found[0].logprob == pytest.approx(first)
    assert [(one.token, one.logprob) for one in found[0].top_logprobs] == [("u", pytest.approx(first)), ("v", -5.0)]


def test_without_top_logprobs_there_are_none(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1, logprobs=True)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


def test_part_of_a_character_has_no_bytes_and_the_end_token_is_no_content(client: OpenAI, served: Served) -> None:
    half = ids(served, "ü")[0]
    served.engine.say = lambda prompt: [half, served.tokenizer.eos_token_id]
    try:
        chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=9, logprobs=True)
        text = client.completions.create(model=MODEL, prompt="a", max_tokens=9, logprobs=0)
    finally:
        served.engine.say = list
    assert chat.choices[0].logprobs is not None
    assert [(one.token, one.bytes) for one in chat.choices[0].logprobs.content or ()] == [("\ufffd", None)]
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens == ["\ufffd", "</s>"]


def test_settings_reach_the_engine_and_only_those_given(client: OpenAI, served: Served) -> None:
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2}
    client.completions.create(
        model=MODEL, prompt="a", presence_penalty=0.5, frequency_penalty=-1, logit_bias={"7": -100}, extra_body=more
    )
    client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=1, temperature=0, presence_penalty=0, frequency_penalty=1
    )
    client.completions.create(model=MODEL, prompt="a", extra_body={"top_k": -1})
    client.completions.create(model=MODEL, prompt="a", extra_body={"ignore_eos": True})
    given, greedy, plain, endless = (one.arguments for one in served.engine.seen)
    assert {key: given[key] for key in ("top_k", "min_p", "repetition_penalty", "min_new_tokens")} == {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "min_new_tokens": 2,
    }
    assert (given["presence_penalty"], given["frequency_penalty"]) == (0.5, -1.0)
    assert given["sequence_bias"] == [[[7], -100.0]]
    assert greedy["frequency_penalty"] == 1.0
    assert greedy.keys() == {"do_sample", "frequency_penalty", "max_new_tokens", "eos_token_id"}
    assert endless["eos_token_id"] == ()
    assert plain["top_k"] == 0
    assert plain.keys() == {"do_sample", "temperature", "top_k", "top_p", "seed", "max_new_tokens", "eos_token_id"}
