"""Tools: shown to the model by its template, and its calls found in the text, in every format that is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from orbitsplit._models.json_grammar import JsonGrammarLogitsProcessor, closed
from orbitsplit.serve._tool_calls import CallParser, parser_for
from tests.support.fake_engine import MODEL, Served, byte_tokenizer, serving

HERMES, CODER, LLAMA, MISTRAL = "<tool_call>", "<tool_call> <function=", "<|python_tag|>", "[TOOL_CALLS]"
PARAMETERS: dict[str, Any] = {
    "add": {"type": "object"},
    "get_weather": {
        "properties": {"city": {"type": "string"}, "at": {"type": ["string", "null"]}, "days": {"type": "integer"}}
    },
}
CALL = '{"name": "add", "arguments": {"a": 1, "b": [2]}}'
ADD = ("add", {"a": 1, "b": [2]})
WEATHER = ("get_weather", {"city": "Rome"})
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}({{ t.function.parameters.required[0] }})]{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}{# <tool_call> #}>"
)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Paris"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}},
]
MESSAGES: Any = [{"role": "user", "content": "hi"}]

CASES = [
    (HERMES, "Sunny.", "Sunny.", []),
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [ADD]),
    (HERMES, f"Let me see.\n<tool_call>{CALL}</tool_call>\n", "Let me see.", [ADD]),
    (HERMES, f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [ADD, ADD]),
    (HERMES, f"<tool_call>{CALL}", "", [ADD]),  # the end token came first
    (HERMES, "<tool_call>{broken</tool_call> so", "<tool_call>{broken</tool_call> so", []),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, "<tool_call>{broken", "<tool_call>{broken", []),
    (
        CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "",
        [WEATHER],
    ),
    (
        CODER,
        "<tool_call><function=add><parameter=a>1</parameter><parameter=b>[2]</parameter></function></tool_call>",
        "",
        [ADD],
    ),
    (
        CODER,
        "<tool_call><function=get_weather><parameter=city>\n100\n</parameter><parameter=days>3</parameter>"
        "<parameter=at>12</parameter></function></tool_call>",
        "",
        [("get_weather", {"city": "100", "days": 3, "at": "12"})],
    ),
    (
        CODER,
        "<tool_call><function=get_weather><parameter=city>null</parameter><parameter=at>null</parameter></function>"
        "<function=get_weather><parameter=city>{}</parameter></function></tool_call>",
        "",
        [("get_weather", {"city": "null", "at": None}), ("get_weather", {"city": "{}"})],
    ),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Rome"}}', "", [WEATHER]),
    (LLAMA, f'{{"name": "get_weather", "parameters": {{"city": "Rome"}}}}; {CALL}', "", [WEATHER, ADD]),
    (LLAMA, '{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
    (LLAMA, '{"weather": "fine"}', '{"weather": "fine"}', []),
    (LLAMA, "It is fine.", "It is fine.", []),
    (MISTRAL, f"[{CALL}]", "", [ADD]),
    (MISTRAL, 'get_weather{"city": "Rome"}', "", [WEATHER]),
    (MISTRAL, "get well", "get well", []),
]


def parsed(parser: CallParser, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls that a parser finds."""
    found = [*(parser.feed(piece) for piece in pieces), parser.flush()]
    calls = [(call.name, json.loads(call.arguments)) for one in found for call in one.calls]
    return "".join(one.text for one in found), calls


def parser_of(template: str) -> CallParser:
    parser = parser_for(template, PARAMETERS)
    assert parser is not None
    return parser


@pytest.mark.parametrize(("template", "text", "left", "calls"), CASES)
def test_calls_are_found_in_every_known_format(template: str, text: str, left: str, calls: list[Any]) -> None:
    assert parsed(parser_of(template), [text]) == (left, calls)


@given(st.sampled_from(CASES), st.data())
def test_the_pieces_in_which_text_comes_make_no_difference(case: Any, data: st.DataObject) -> None:
    template, text, left, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parsed(parser_of(template), pieces) == (left, calls)


def test_a_template_without_a_known_format_has_no_parser() -> None:
    assert parser_for("{{ messages }}", PARAMETERS) is None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    tokenizer.name_or_path = str(folder)
    with serving(tokenizer=tokenizer) as running:
        yield running


def streamed(chunks: Any) -> tuple[str, list[dict[str, str]], str | None]:
    """Return text, calls and finish reason of a stream, put together as clients do."""
    text, calls, reason = "", [], None
    for chunk in chunks:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for part in delta.tool_calls or ():
            if part.index == len(calls):
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            calls[part.index]["arguments"] += part.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, calls, reason


def test_a_call_comes_as_tool_calls(client: OpenAI, served: Served) -> None:
    served.say(f"Wait. <tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>")
    options: Any = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "max_tokens": 300}
    choice = client.chat.completions.create(**options).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Wait.")
    assert choice.message.tool_calls is not None
    names = [(one.type, one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls]
    assert names == [("function", *ADD)] * 2
    assert len({one.id for one in choice.message.tool_calls}) == 2
    text, calls, reason = streamed(client.chat.completions.create(**options, stream=True))
    assert (text, reason) == ("Wait.", "tool_calls")
    assert [(one["name"], json.loads(one["arguments"])) for one in calls] == [ADD, ADD]
    # The template showed the tools to the model.
    assert served.tokenizer.decode(served.engine.seen[0].prompt) == "[get_weather(city)][add(a)]hi>"
    one = client.chat.completions.create(**options, parallel_tool_calls=False).choices[0].message
    assert len(one.tool_calls or ()) == 1


def test_with_tool_choice_none_the_model_sees_no_tools_and_calls_none(client: OpenAI, served: Served) -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    served.say(text)
    choice = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice="none", max_tokens=300
    ).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", text, None)
    assert served.tokenizer.decode(served.engine.seen[0].prompt) == "hi>"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"]
)
def test_a_call_that_must_be_made_is_made_whatever_the_model_says(client: OpenAI, served: Served, choice: Any) -> None:
    served.say("No, thank you; " * 20)
    options: Any = {"messages": MESSAGES, "tools": TOOLS[:1], "tool_choice": choice, "max_tokens": 300}
    answer = client.chat.completions.create(model=MODEL, **options).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Paris")
    text, calls, reason = streamed(client.chat.completions.create(model=MODEL, **options, stream=True))
    assert (text, reason, calls[0]["arguments"]) == ("", "tool_calls", call.function.arguments)


CITY: Any = {"type": "object", "properties": {"$ref": {"enum": ["Rome"]}}, "required": ["$ref"]}
NOTHING: Any = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@pytest.mark.parametrize("definitions", ["$defs", "definitions"])
@pytest.mark.parametrize("count", [1, 2])
def test_definitions_of_a_tool_are_found_in_a_call_that_must_be_made(
    client: OpenAI, served: Served, definitions: str, count: int
) -> None:
    call = {"name": "go", "arguments": {"to": {"$ref": "Rome"}, "via": {"to": {"$ref": "Rome"}}}}
    parameters = {
        "type": "object",
        "properties": {"to": {"$ref": f"#/{definitions}/city"}, "via": {"$ref": "#"}},
        "required": ["to"],
        definitions: {"city": CITY},
    }
    other = {"type": "function", "function": {"name": "stay", "parameters": {**NOTHING, definitions: {"city": {}}}}}
    tools: Any = [other, {"type": "function", "function": {"name": "go", "parameters": parameters}}][-count:]
    served.say(json.dumps(call))
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=200
    ).choices[0]
    (made,) = answer.message.tool_calls or ()
    assert made.type == "function"
    assert (made.function.name, json.loads(made.function.arguments)) == ("go", call["arguments"])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ],
)
def test_tools_at_fault_are_named(served: Served, more: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, **more}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}, "city": {"enum": ["Rome", "Paris"]}},
    "required": ["answer", "city"],
    "additionalProperties": False,
}


def form(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_a_json_schema_whatever_the_model_says(client: OpenAI, served: Served, stream: bool) -> None:
    served.say("true love in Paris ")
    options: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "response_format": form(SCHEMA)}
    answer: Any = client.chat.completions.create(**options, stream=stream)
    text = streamed(answer)[0] if stream else answer.choices[0].message.content
    read = json.loads(text)
    assert read.keys() == {"answer", "city"}
    assert read["city"] in ("Rome", "Paris")


def test_a_json_object_is_one(client: OpenAI, served: Served) -> None:
    served.say("x}")
    options: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200}
    answer = client.chat.completions.create(**options, response_format={"type": "json_object"})
    assert answer.choices[0].message.content == "{}"


@pytest.mark.parametrize(
    "more",
    [{"response_format": {"type": "json_object"}}, {"tools": TOOLS, "tool_choice": "required"}],
    ids=["format", "tool"],
)
def test_a_least_number_of_tokens_does_not_go_with_a_schema(served: Served, more: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 9, **more}
    response = httpx.post(f"{served.url}/v1/chat/completions", json={**body, "min_tokens": 5})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["message"].partition(",")[0]) == ("min_tokens", "min_tokens is 5")
    assert httpx.post(f"{served.url}/v1/chat/completions", json={**body, "min_tokens": 0}).status_code == 200


@pytest.mark.parametrize(
    ("schema", "message"),
    [({"type": "nonsense"}, "nonsense"), ({"$ref": "#/nowhere"}, "nowhere")],
)
def test_a_schema_that_cannot_be_used_is_refused_by_name(client: OpenAI, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=form(schema))
    assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {"a": {}}}, {"additionalProperties": False}),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, {}),
        ({"type": "object", "properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, {}),
        ({"type": "object"}, {}),
        ({"type": "array", "items": {"properties": {}}}, {"items": {"properties": {}, "additionalProperties": False}}),
        # Branches beside properties: each must leave room for those of the other.
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]}, {}),
        ({"properties": {"a": {}}, "oneOf": [{"anyOf": [{"properties": {"b": {}}}]}]}, {}),
        ({"properties": {"a": {}}, "$ref": "#/$defs/d", "$defs": {"d": {"properties": {"b": {}}}}}, {}),
        ({"properties": {"a": {}}, "anyOf": [{"$ref": "#/$defs/d"}], "$defs": {"d": {"properties": {}}}}, {}),
        ({"anyOf": [{"properties": {"b": {}}}]}, {"anyOf": [{"properties": {"b": {}}, "additionalProperties": False}]}),
        # A property that is called "properties" is no keyword.
        (
            {"properties": {"properties": {"type": "string"}}, "$defs": {"d": {"properties": {"x": {}}}}},
            {
                "additionalProperties": False,
                "$defs": {"d": {"properties": {"x": {}}, "additionalProperties": False}},
            },
        ),
    ],
)
def test_objects_have_no_properties_but_those_named(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == {**schema, **expected}


def test_a_schema_with_branches_beside_properties_can_be_followed(client: OpenAI, served: Served) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "anyOf": [{"properties": {"b": {"const": 2}}, "required": ["b"]}],
    }
    served.say('{"a": 1, "b": 2}')
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=60, response_format=form(schema))
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1, "b": 2}


def test_the_grammar_is_a_function_of_the_tokens_alone(served: Served) -> None:
    # Guesses that were wrong, and a text that resumes after a loss, ask for earlier positions once more.
    end = served.tokenizer.eos_token_id
    prompt = [1, 2, 3]
    text = served.tokenizer('{"answer": true, "city": "Rome"}')["input_ids"]

    def allowed(processor: Any, count: int) -> Any:
        return processor(torch.tensor([prompt + text[:count]]), torch.zeros(1, end + 1)).isfinite()

    def new() -> Any:
        return JsonGrammarLogitsProcessor(json.dumps(SCHEMA), served.tokenizer.name_or_path, len(prompt), [end])

    used = new()
    for count in (0, 1, 5, 3, len(text), 4, 0, 12):
        assert torch.equal(allowed(used, count), allowed(new(), count))
    assert allowed(used, len(text)).nonzero().tolist() == [[0, end]]
