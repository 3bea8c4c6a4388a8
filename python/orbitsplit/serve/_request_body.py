"""Request bodies, validated: every parameter is served, deliberately ignored, or refused by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from ._api_error import ApiError, first_line, quoted
from ._parameters import IGNORED, served

_MAX_STOPS = 4
_MAX_BIAS = 100
_FORMS = ("NamedTool", "str", "dict")
MAX_LOGPROBS = 20
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

NewTokens = Annotated[int, Field(ge=1)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = _STRICT

    include_usage: bool = False
    # Padding against eavesdroppers, and counts in every chunk: no client needs them, so they are not sent.
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(BaseModel):
    """The parameters of all endpoints that generate."""

    model_config = _STRICT

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, float] = Field(default_factory=dict)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: tuple[str, ...] = ()

    @field_validator("stop", mode="before")
    @classmethod
    def _as_stops(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(_is_text(stop) for stop in stops):
            raise ValueError(f"expected a string or a list of at most {_MAX_STOPS} strings, none of them empty")
        return tuple(stops)

    @field_validator("logit_bias")
    @classmethod
    def _check_biases(cls, value: dict[str, float]) -> dict[str, float]:
        for token, bias in value.items():
            if not (token.isdecimal() and abs(bias) <= _MAX_BIAS):
                raise ValueError(f"expected token ids with values of -{_MAX_BIAS} to {_MAX_BIAS}")
        return value

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
        settings = self._processing()
        if self.temperature == 0:
            return {"do_sample": False, **settings}
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        # 0 and -1 keep all tokens, whatever the model's generation config says.
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": max(0, self.top_k), "top_p": self.top_p}
        chances = {} if self.min_p is None else {"min_p": self.min_p}
        return {**drawn, "seed": seed, **chances, **settings}

    def _processing(self) -> dict[str, Any]:
        """Return what changes logits, also of greedy tokens; only what is given, the model's config has the rest."""
        given = {
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "min_new_tokens": self.min_tokens,
        }
        settings: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self.logit_bias:
            settings["sequence_bias"] = [[[int(token)], float(bias)] for token, bias in self.logit_bias.items()]
        return settings


class CompletionRequest(GenerationRequest):
    """Body of `/v1/completions`. A prompt is text or token ids."""

    prompt: tuple[str | tuple[int, ...], ...]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_max_tokens(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which needs echo")
        return self

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_prompts(cls, value: Any) -> Any:
        return as_prompts(value)

    def sampling(self, choice: int) -> dict[str, Any]:
        """Return the engine's arguments, those for log-probabilities included."""
        if self.logprobs is None:
            return super().sampling(choice)
        prompt = {"prompt_logprobs": self.logprobs} if self.echo else {}
        return {**super().sampling(choice), "logprobs": self.logprobs, **prompt}


AnyRequest = TypeVar("AnyRequest", bound=BaseModel)


def parse(body: bytes, kind: type[AnyRequest], *, model_name: str, ignored: Collection[str] = IGNORED) -> AnyRequest:
    """Return the request in a body. Where the model is optional, a request without it is for the server's.

    Raises ApiError: 400 for a body that is not valid, 404 for another model.
    """
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:  # the parser's, which names the place in the body and nothing else
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, "the body is not a JSON object")
    names = {field.alias or name for name, field in kind.model_fields.items()}
    try:
        request = kind.model_validate(served(given, names, ignored=ignored))
    except ValidationError as error:
        raise _first_error(error, names) from error
    model = getattr(request, "model", None)
    if model not in (None, model_name):
        raise unknown_model(model, model_name)
    return request


def unknown_model(name: str, known: str) -> ApiError:
    """Return the error for a model that is not the server's."""
    message = f'there is no model {quoted(name)}; this server has "{known}"'
    return ApiError(404, message, param="model", code="model_not_found")


def _first_error(error: ValidationError, names: Collection[str]) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Of a parameter with several forms, pydantic adds the name of the form.
    parts = [str(part) for part in first["loc"] if part not in _FORMS and "[" not in str(part)]
    path = ".".join(first_line(part, 40) for part in parts) or None
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else None
    if path is not None:
        return ApiError(400, f"{path}: {message}", param=path, code=code)
    # What is wrong of several parameters together begins with the name of one.
    name = message.partition(" ")[0]
    return ApiError(400, message, param=name if name in names else None, code=code)


def as_prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Return one or several texts, or token ids of one or several, as a tuple of them. Raises ValueError for others."""
    prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
    if not isinstance(prompts, list) or not prompts or not all(_is_text(p) or _are_tokens(p) for p in prompts):
        raise ValueError("expected a string, a list of strings, a list of tokens or a list of such lists, none empty")
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
