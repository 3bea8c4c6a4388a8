"""Parameters of clients that no endpoint serves: accepted where they cannot change the answer, else refused by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ._api_error import ApiError, quoted

# What these ask for concerns OpenAI's billing, caches and storage, or hints at a text's style that a model takes from
# its template alone. Nothing of it changes the tokens of an answer here.
IGNORED = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)

# Parameters of OpenAI that are not served. Their neutral values, listed here, and null are accepted.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}


def served(given: dict[str, Any], fields: Collection[str], *, ignored: Collection[str] = IGNORED) -> dict[str, Any]:
    """Return the parameters that an endpoint with these fields serves, without null and what is ignored.

    Raises ApiError 400 for a parameter that is unknown, or not supported with its value.
    """
    kept = {}
    for key, value in given.items():
        if key in fields:
            if value is not None:
                kept[key] = value
        elif key in UNSUPPORTED:
            _check_neutral(key, value)
        elif key not in ignored:
            raise ApiError(400, f"unknown parameter {quoted(key)}", param=key, code="unknown_parameter")
    return kept


def _check_neutral(key: str, value: Any) -> None:
    # 0 == False and 1 == True in Python, but logprobs: 0 is not neutral.
    accepted = [(type(neutral), neutral) for neutral in UNSUPPORTED[key]]
    is_number = isinstance(value, float) and value.is_integer()
    compared = int(value) if is_number else value
    if value is None or (type(compared), compared) in accepted:
        return
    message = f"{key} is not supported"
    if accepted:
        message += f", except as {accepted[0][1]!r}"
    raise ApiError(400, message, param=key, code="unsupported_parameter")
