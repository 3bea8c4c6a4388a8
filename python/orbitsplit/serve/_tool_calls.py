"""Calls of tools in the text of an answer, in the formats that chat templates ask models for."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ._stop_strings import overlap

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_XML_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
# Mistral's control tokens have no text: what is left of [TOOL_CALLS]name[ARGS]{...} is the name and the object.
_NAME_AND_OBJECT = re.compile(r"\s*([a-zA-Z0-9_.-]+)\s*(\{.*\})\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, with its arguments as the text of a JSON object."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of an answer's text completes: text for the reader, and calls."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class CallParser(Protocol):
    """Separates the text of one answer, as it comes, into text and calls."""

    def feed(self, text: str) -> Parsed:
        """Return what is certain by now."""

    def flush(self) -> Parsed:
        """Return the rest: no more text comes."""


def parser_for(template: str, tools: Mapping[str, dict[str, Any]]) -> CallParser | None:
    """Return a parser of calls in the format of a chat template, None if it has none that is known.

    `tools` has the JSON schema of each function's parameters, by the function's name.

    <tool_call>{"name": ..., "arguments": ...}</tool_call>              Hermes, Qwen 2.5, Qwen 3
    <tool_call><function=...><parameter=...>...</tool_call>             Qwen 3 Coder
    {"name": ..., "parameters": ...}                                    Llama 3
    [TOOL_CALLS][{"name": ..., "arguments": ...}]                       Mistral, also [TOOL_CALLS]name[ARGS]{...}
    """
    if _OPEN in template:
        return _TaggedCalls(partial(_read_xml, tools=tools) if "<function=" in template else _read_json)
    if any(mark in template for mark in ("<|python_tag|>", "[TOOL_CALLS]", '"parameters": dictionary of')):
        return _BareCalls(frozenset(tools))
    return None


class OneCall:
    """The whole answer is one call, as its grammar has it: the arguments of a function, or its name with them."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._text = ""

    def feed(self, text: str) -> Parsed:
        """Keep the text."""
        self._text += text
        return Parsed()

    def flush(self) -> Parsed:
        """Return the call; an answer that its limit of tokens has cut is returned as it is."""
        if self._name is not None:
            return Parsed(calls=(ToolCall(self._name, self._text),))
        try:
            call = json.loads(self._text)
            return Parsed(calls=(ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False)),))
        except (ValueError, KeyError, TypeError):
            return Parsed(self._text)


class _TaggedCalls:
    """Calls between tags; the text around them is for the reader, without the white space next to a tag."""

    def __init__(self, read: Callable[[str], list[ToolCall]]) -> None:
        self._read = read
        self._held = ""
        self._has_called = False

    def feed(self, text: str) -> Parsed:
        self._held += text
        texts: list[str] = []
        calls: list[ToolCall] = []
        while True:
            before, is_open, rest = self._held.partition(_OPEN)
            if not is_open:
                break
            inside, is_closed, after = rest.partition(_CLOSE)
            if not is_closed:
                texts.append(self._text_before(before, is_call=True))
                self._held = _OPEN + rest
                return Parsed("".join(texts), tuple(calls))
            found = self._read(inside)
            texts.append(self._text_before(before, is_call=bool(found)))
            texts += [] if found else [_OPEN, inside, _CLOSE]
            calls += found
            self._has_called |= bool(found)
            self._held = after
        keep = overlap(self._held, _OPEN)
        certain = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(certain) :]
        texts.append(self._text_before(certain, is_call=False) if certain else "")
        return Parsed("".join(texts), tuple(calls))

    def flush(self) -> Parsed:
        held, self._held = self._held, ""
        if held.startswith(_OPEN):
            calls = self._read(held.removeprefix(_OPEN))  # an end token in place of the closing tag
            if calls:
                return Parsed(calls=tuple(calls))
        return Parsed(held.lstrip() if self._has_called else held)

    def _text_before(self, text: str, *, is_call: bool) -> str:
        text = text.lstrip() if self._has_called else text
        return text.rstrip() if is_call else text


class _BareCalls:
    """An answer that is nothing but calls as JSON. Any other one is text, from its first character that tells."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False

    def feed(self, text: str) -> Parsed:
        self._held += text
        start = self._held.lstrip()
        may_call = start[:1] in ("", "{", "[") or any(
            name.startswith(start) or start.startswith(name) for name in self._names
        )
        if self._is_text or not may_call:
            self._is_text = True
            text, self._held = self._held, ""
            return Parsed(text)
        return Parsed()

    def flush(self) -> Parsed:
        held, self._held = self._held, ""
        calls = self._read(held)
        return Parsed(calls=tuple(calls)) if calls else Parsed(held)

    def _read(self, text: str) -> list[ToolCall]:
        named = _NAME_AND_OBJECT.fullmatch(text)
        if named and named[1] in self._names:
            calls = [_call(named[1], _loaded(named[2]))]
        else:
            # Llama separates several calls by semicolons.
            parts = _loaded(text) if _loaded(text) is not None else [_loaded(part) for part in text.split(";")]
            calls = [_call_of(part) for part in (parts if isinstance(parts, list) else [parts])]
        known = [call for call in calls if call is not None and call.name in self._names]
        return known if len(known) == len(calls) else []


def _read_json(text: str) -> list[ToolCall]:
    call = _call_of(_loaded(text))
    return [] if call is None else [call]


def _read_xml(text: str, tools: Mapping[str, dict[str, Any]]) -> list[ToolCall]:
    calls = []
    for name, body in _XML_FUNCTION.findall(text):
        types = _types(tools.get(name, {}))
        arguments = {key: _value(value, types.get(key)) for key, value in _XML_PARAMETER.findall(body)}
        calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
    return calls or _read_json(text)


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    return _call(value["name"], value.get("arguments", value.get("parameters", {})))


def _call(name: str, arguments: Any) -> ToolCall | None:
    if isinstance(arguments, str):  # some models quote the object
        arguments = _loaded(arguments)
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _types(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the types that a schema names for its properties."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {key: one.get("type") for key, one in properties.items() if isinstance(one, dict)}


def _value(text: str, type_: Any) -> Any:
    """Return a parameter of the XML format, which marks no types: text where the schema says so, else what it reads as.

    Without a type in the schema that is JSON if it can be, else text.
    """
    if type_ in ("string", ["string"]):
        return text
    loaded = _loaded(text)
    if text.strip() != "null" and (loaded is None or type_ in (["string", "null"], ["null", "string"])):
        return text
    return loaded
