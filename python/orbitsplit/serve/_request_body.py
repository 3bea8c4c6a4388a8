"""Request bodies, validated: every parameter is served, deliberately ignored, or refused by name."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from ._api_error import ApiError, first_line, quoted
from ._parameters import served

_MAX_STOPS = 4
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

NewTokens = Annotated[int, Field(ge=1)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = _STRICT

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers, which no client reads


class GenerationRequest(BaseModel):
    """The parameters of all endpoints that generate."""

    model_config = _STRICT

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: tuple[str, ...] = ()

    @field_validator("stop", mode="before")
    @classmethod
    def _as_stops(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(_is_text(stop) for stop in stops):
            raise ValueError(f"expected a string or a list of at most {_MAX_STOPS} strings, none of them empty")
        return tuple(stops)

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether the last chunk of a stream has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, choice: int) -> dict[str, Any]:
        """Return the engine's arguments for one of the `n` choices; a seed gives each choice its own."""
        if self.temperature == 0:
            return {"do_sample": False}
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        # OpenAI has no top_k: 0 keeps all tokens, whatever the model's generation config says.
        return {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": self.top_p, "seed": seed}


class CompletionRequest(GenerationRequest):
    """Body of `/v1/completions`. A prompt is text or token ids."""

    prompt: tuple[str | tuple[int, ...], ...]
    max_tokens: NewTokens = 16
    echo: bool = False

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_prompts(cls, value: Any) -> Any:
        prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
        if not isinstance(prompts, list) or not prompts or not all(_is_text(p) or _are_tokens(p) for p in prompts):
            raise ValueError(
                "expected a string, a list of strings, a list of tokens or a list of such lists, none empty"
            )
        return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts)


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


def parse(body: bytes, kind: type[AnyRequest], *, model_name: str) -> AnyRequest:
    """Return the request in a body.

    Raises ApiError: 400 for a body that is not valid, 404 for another model.
    """
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:  # the parser's, which names the place in the body and nothing else
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, "the body is not a JSON object")
    try:
        request = kind.model_validate(served(given, kind.model_fields))
    except ValidationError as error:
        raise _first_error(error) from error
    if request.model != model_name:
        raise unknown_model(request.model, model_name)
    return request


def unknown_model(name: str, known: str) -> ApiError:
    """Return the error for a model that is not the server's."""
    message = f'there is no model {quoted(name)}; this server has "{known}"'
    return ApiError(404, message, param="model", code="model_not_found")


def _first_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(first_line(str(part), 40) for part in first["loc"]) or None
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else None
    return ApiError(400, f"{path}: {message}" if path else message, param=path, code=code)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
