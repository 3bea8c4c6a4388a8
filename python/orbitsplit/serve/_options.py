"""Options of a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orbitsplit._io.validation import LARGEST_BYTES, check_count, check_number


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of a server.

    `create_app` and `serve_model` take them as one object, as keywords, or as an object with keywords that replace
    some of its values.

    Attributes:
        model_name: The name that clients give the model. `serve_model` uses the last part of the model's path by
            default, `create_app` has no default.
        context_tokens: The most tokens that a prompt and its answer have together. `serve_model` uses those that the
            engine's plan reserves memory for by default, at most the model's context; `create_app` has no default.
        eos_token_id: The tokens that end an answer; by default those of the model's generation config in
            `serve_model`, the tokenizer's in `create_app`.
        api_key: The key that every path but /health and /ready requires; None: no key.
        max_requests: The most choices that run or wait; more are refused with 429.
        max_body_bytes: The largest request body.
        body_timeout_s: The longest time that a body may take to arrive, in seconds.
        num_assistant_tokens: The most tokens that the assistant of the engine guesses with each one, for all requests;
            None: no guesses.
        pooling: How an encoder's hidden states become an embedding: "mean" of the tokens, or "cls", the first one's.
            `serve_model` reads it from the files of sentence-transformers by default; without any it is "mean".
        normalizes: Whether embeddings have length 1; by default as `pooling`, without files True.

    Raises:
        TypeError, ValueError: An option is of a wrong type or out of range; the message names it.
    """

    model_name: str | None = None
    context_tokens: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    api_key: str | None = field(default=None, repr=False)
    max_requests: int = 256
    max_body_bytes: int = 2 << 20
    body_timeout_s: float = 60.0
    num_assistant_tokens: int | None = None
    pooling: str | None = None
    normalizes: bool | None = None

    def __post_init__(self) -> None:
        for name, value in (("model_name", self.model_name), ("api_key", self.api_key)):
            if value is not None and not isinstance(value, str):
                # Not the value: it may be a key.
                raise TypeError(f"{name} is a {type(value).__name__}, must be a string or None")
            if value == "":
                raise ValueError(f"{name} is empty, must be a string of at least one character or None")
        if self.context_tokens is not None:
            check_count("context_tokens", self.context_tokens, 1)
        if self.num_assistant_tokens is not None:
            check_count("num_assistant_tokens", self.num_assistant_tokens, 1)
        if self.pooling not in (None, "mean", "cls"):
            raise ValueError(f"pooling is {self.pooling!r}, must be mean or cls")
        check_count("max_requests", self.max_requests, 1)
        check_count("max_body_bytes", self.max_body_bytes, 1, most=LARGEST_BYTES)
        check_number("body_timeout_s", self.body_timeout_s)
        if not (math.isfinite(self.body_timeout_s) and self.body_timeout_s > 0):
            raise ValueError(f"body_timeout_s is {self.body_timeout_s}, must be finite and above 0")


def merged(options: ServerOptions | None, keywords: Mapping[str, Any]) -> ServerOptions:
    """Return options with the keywords in place of their values. Raises TypeError for an unknown keyword."""
    return replace(options or ServerOptions(), **keywords)
