"""Bodies of `/tokenize` and `/detokenize`, with vLLM's parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from ._chat_request import Chat

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class TokenizeText(BaseModel):
    """Body of `/tokenize` for text."""

    model_config = _STRICT

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(Chat):
    """Body of `/tokenize` for a chat."""

    model: str | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    return_token_strs: bool = False


def is_chat(body: bytes) -> bool:
    """Whether a body of `/tokenize` has messages."""
    try:
        given = from_json(body)
    except ValueError:  # of which the parser of bodies says what is wrong
        return False
    return isinstance(given, dict) and "messages" in given


class DetokenizeRequest(BaseModel):
    """Body of `/detokenize`."""

    model_config = _STRICT

    model: str | None = None
    tokens: list[int] = Field(min_length=1)
