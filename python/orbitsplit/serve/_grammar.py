"""Answers that follow a JSON schema: a logits processor on the stage that has the logits."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import Any

# Makes the processor of one choice from the schema, the number of tokens of the prompt, and the end tokens. Raises
# ValueError for a schema that cannot be used.
GrammarFactory = Callable[[dict[str, Any], int, Sequence[int]], Any]


def json_grammars(model: str | None) -> GrammarFactory | None:
    """Return the factory for a model, whose tokenizer every stage can load by this name.

    None without a name, or where llguidance, which reads the schemas, is not installed.
    """
    if not model or importlib.util.find_spec("llguidance") is None:
        return None
    from orbitsplit._models.json_grammar import JsonGrammarLogitsProcessor, check_schema, closed

    def grammar(schema: dict[str, Any], prompt_tokens: int, eos_token_ids: Sequence[int]) -> Any:
        text = json.dumps(closed(schema))
        check_schema(text)
        return JsonGrammarLogitsProcessor(text, model, prompt_tokens, list(eos_token_ids))

    return grammar
