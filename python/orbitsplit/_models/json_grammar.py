"""A logits processor that lets only tokens through with which a text can still follow a JSON schema (llguidance)."""

from __future__ import annotations

import functools
import json
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor

# Models indent JSON; a bad one would do nothing else for ever.
_OPTIONS: Any = {"whitespace_pattern": r"[ \t\n\r]{0,40}"}


# Where a schema says more than this of its properties, another part of it may name some.
_SAYS_MORE = {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "anyOf", "oneOf", "if"}
_MAPS, _LISTS, _SCHEMAS = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "prefixItems"), ("items",)
_BRANCHES = ("anyOf", "oneOf")


def closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties that it names and no others, unless it speaks of others.

    What follows it follows the given one too. Without it a model may add properties for ever. Left as it is if parts
    of it apply together (`allOf`, or references beside `properties`), each with properties of its own.
    """
    return schema if "allOf" in json.dumps(schema) or _refers_beside_properties(schema) else _closed(schema)


def _closed(schema: Any, *, is_branch: bool = False) -> Any:
    """Close a schema and what is in it; one that `is_branch` of a schema with properties stays open itself."""
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    are_branches = is_branch or "properties" in schema
    for key in schema:
        if key in _MAPS and isinstance(schema[key], dict):
            result[key] = {name: _closed(one) for name, one in schema[key].items()}
        elif key in _LISTS and isinstance(schema[key], list):
            result[key] = [_closed(one, is_branch=are_branches and key in _BRANCHES) for one in schema[key]]
        elif key in _SCHEMAS:
            result[key] = _closed(schema[key])
    if "properties" in schema and not is_branch and not _SAYS_MORE & schema.keys():
        result["additionalProperties"] = False
    return result


def _refers_beside_properties(value: Any) -> bool:
    """Say whether a definition may apply to an object together with other properties, which it must not exclude."""
    if isinstance(value, list):
        return any(map(_refers_beside_properties, value))
    if not isinstance(value, dict):
        return False
    beside = {key: value[key] for key in ("$ref", *_BRANCHES) if key in value}
    if "properties" in value and '"$ref"' in json.dumps(beside):
        return True
    return any(map(_refers_beside_properties, value.values()))


def check_schema(schema: str) -> None:
    """Raise ValueError, in one line, for a text that is no JSON schema that can be followed."""
    message = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS))
    if message and not message.startswith("WARNING"):
        raise ValueError(message.strip().partition("\n")[0])


class JsonGrammarLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Forbids every token behind a prompt of `prompt_tokens` tokens with which the text leaves a JSON `schema`.

    `model` is the directory or hub id of the tokenizer, which is loaded at the first call. For one row.
    """

    def __init__(self, schema: str, model: str, prompt_tokens: int, eos_token_ids: list[int]) -> None:
        self.schema = schema
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.eos_token_ids = eos_token_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [1, V] of the tokens behind `input_ids` [1, S]."""
        matcher = self._matcher(input_ids[0, self.prompt_tokens :].tolist(), scores.shape[1])
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_error():
            raise ValueError(f"the grammar of the JSON schema failed: {matcher.get_error().partition(chr(10))[0]}")
        is_forbidden = torch.from_numpy(allowed[: scores.shape[1]] == 0)
        return scores.masked_fill(is_forbidden.to(scores.device), -torch.inf)

    def _matcher(self, tokens: list[int], vocabulary: int) -> LLMatcher:
        """Return the matcher behind these tokens: that of the last call, taken back as far as they differ."""
        # Not made in __init__: an object that has travelled is not initialised, and what travels are plain values.
        state = self.__dict__
        if "_live" not in state:
            tokenizer = _tokenizer(self.model, vocabulary, tuple(self.eos_token_ids))
            grammar = LLMatcher.grammar_from_json_schema(self.schema, overrides=_OPTIONS)
            state["_live"], state["_consumed"] = LLMatcher(tokenizer, grammar), []
        matcher, consumed = state["_live"], state["_consumed"]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(consumed, tokens, strict=False)))
        if same < len(consumed):  # guesses that were wrong, or a text that resumes after a loss
            matcher.rollback(len(consumed) - same)
        matcher.consume_tokens(tokens[same:])
        state["_consumed"] = tokens
        return matcher


@functools.lru_cache(maxsize=2)
def _tokenizer(model: str, vocabulary: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    from .source import load_tokenizer

    return from_tokenizer(load_tokenizer(model), n_vocab=vocabulary, eos_token=list(eos_token_ids) or None)
