"""`/v1/responses`: conversations of items, calls of tools, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.fake_engine import MODEL, Served, byte_tokenizer, serving

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %};{% endfor %}"
    "{# <tool_call> #}>"
)
TOOL: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 7}}</tool_call>'


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(tokenizer=byte_tokenizer(chat_template=TEMPLATE)) as running:
        yield running


def prompt_of(served: Served) -> str:
    """Return the prompt of the last request."""
    return str(served.tokenizer.decode(served.engine.seen[-1].prompt))


def test_a_text_is_answered(client: OpenAI, served: Served) -> None:
    served.say("Hello there.")
    answer = client.responses.create(
        model=MODEL, input="hi", instructions="Be brief.", max_output_tokens=99, metadata={"run": "7"}, store=True
    )
    assert prompt_of(served) == "system:Be brief.;user:hi;>"
    assert (answer.output_text, answer.status, answer.object) == ("Hello there.", "completed", "response")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(prompt_of(served)), 13)
    assert answer.metadata == {"run": "7"}
    assert answer.store is False
    assert answer.id.startswith("resp_")


def test_an_answer_that_is_cut_is_incomplete(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_with_calls_goes_on(client: OpenAI, served: Served) -> None:
    served.say(f"Let me add. {CALL}")
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "7?"}]}]
    first = client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert [item.type for item in first.output] == ["message", "function_call"]
    call: Any = first.output[1]
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 7})
    served.say("Seven.")
    items += first.output
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "7"})
    second = client.responses.create(model=MODEL, input=items, tools=[TOOL], reasoning={"effort": "low"})
    assert second.output_text == "Seven."
    assert prompt_of(served) == "[add]user:7?;assistant:Let me add.add(7);tool:7;>"


def test_a_stream_has_the_events_of_openai(client: OpenAI, served: Served) -> None:
    served.say(f"Über {CALL}")
    events = list(client.responses.create(model=MODEL, input="hi", tools=[TOOL], stream=True))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Über"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert [item.type for item in last.response.output] == ["message", "function_call"]
    assert last.response.usage.output_tokens > 0


def test_the_stream_helper_of_the_client_puts_it_together(client: OpenAI, served: Served) -> None:
    served.say("All is well.")
    with client.responses.stream(model=MODEL, input="hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "All is well."


def test_names_of_events_are_in_the_stream(served: Served) -> None:
    body = {"model": MODEL, "input": "hi", "max_output_tokens": 2, "stream": True}
    lines = httpx.post(f"{served.url}/v1/responses", json=body).text.splitlines()
    assert lines[0] == "event: response.created"
    assert json.loads(lines[1].removeprefix("data: "))["type"] == "response.created"
    assert "event: response.incomplete" in lines
    assert "data: [DONE]" not in lines


def test_a_stream_that_fails_ends_with_an_event_named_error() -> None:
    with serving() as served:
        served.engine.die(RuntimeError("secret"), refuses=False)
        body = {"model": MODEL, "input": "hi", "stream": True}
        response = httpx.post(f"{served.url}/v1/responses", json=body)
    *_, name, data = response.text.strip().splitlines()
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert event.keys() == {"type", "sequence_number", "message", "param", "code"}
    assert event["type"] == "error"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "1"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": None}]}, "input.0"),
        ({"input": [{"content": "x"}, {"type": "function_call", "name": "f", "call_id": "1"}]}, "input.0.role"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_at_fault_is_named(client: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": MODEL, "input": "hi", **more})
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
