"""`/v1/embeddings`: an encoder's hidden states, pooled to one vector for each text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers.utils.hub import cached_file

from orbitsplit._io.files import read_text
from orbitsplit._models.source import can_generate, model_class, read_config

from ._api_error import ApiError
from ._request_body import as_prompts
from ._response_body import usage_of

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
POOLINGS = ("mean", "cls")
_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers
_FLAGS = {"cls_token": "cls", "mean_tokens": "mean"}  # its names of poolings as flags
_MAX_INPUTS = 2048
# Texts of one forward: longer ones would wait for memory, shorter ones for each other.
_BATCH = 32


class EmbeddingsRequest(BaseModel):
    """Body of `/v1/embeddings`. An input is text or token ids."""

    model_config = _STRICT

    model: str
    input: tuple[str | tuple[int, ...], ...]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _as_inputs(cls, value: Any) -> Any:
        inputs = as_prompts(value)
        if len(inputs) > _MAX_INPUTS:
            raise ValueError(f"{len(inputs)} inputs, at most {_MAX_INPUTS} are taken at once")
        return inputs


class Embedder:
    """Runs texts through an engine with `forward`, and pools their last hidden states as `pooling` says.

    "mean" over a text's tokens, or "cls", the first one, and vectors of length 1 where `normalizes`: as
    sentence-transformers does. `model` is its directory or hub id, for the advice in an error.
    """

    def __init__(
        self, engine: Any, *, pooling: str, normalizes: bool, pad_token_id: int | None, model: str | None = None
    ) -> None:
        self._engine = engine
        self._pooling = pooling
        self._normalizes = normalizes
        self._pad = pad_token_id or 0
        self._model = model

    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors [B, H] of a batch of texts of token ids. Raises whatever `Pipeline.forward` does."""
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[self._pad] * (longest - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        output = self._engine.forward(input_ids=ids, attention_mask=mask)
        hidden = output.get("last_hidden_state")
        if hidden is None:
            message = "the model gives no hidden states, from which embeddings are made"
            message = (self._model and base_model_advice(self._model)) or message
            raise ApiError(400, message, param="model", code="unsupported_model")
        vectors = _pooled(hidden.float(), mask, self._pooling)
        return torch.nn.functional.normalize(vectors, dim=1) if self._normalizes else vectors


def batches(texts: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    """Yield the texts in the batches that run in one forward each."""
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[:, :, None].float()
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def embeddings_body(request: EmbeddingsRequest, vectors: Sequence[Tensor], tokens: int) -> dict[str, Any]:
    """Return the response. Raises ApiError 400 for more dimensions than the model has."""
    size = vectors[0].shape[0]
    if request.dimensions is not None and request.dimensions > size:
        message = f"dimensions is {request.dimensions}, the model has {size}"
        raise ApiError(400, message, param="dimensions")
    data = []
    for index, vector in enumerate(vectors):
        cut = vector[: request.dimensions]
        if len(cut) < size:
            cut = torch.nn.functional.normalize(cut, dim=0)
        data.append({"object": "embedding", "index": index, "embedding": _encoded(cut, request.encoding_format)})
    usage = usage_of(tokens, 0)
    del usage["completion_tokens"]
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _encoded(vector: Tensor, encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4", copy=False).tobytes()).decode()


def base_model_advice(model: str | Path) -> str | None:
    """Return why an encoder with a head makes no embeddings and what to do; None for other models."""
    try:
        config = read_config(model)
        name = model_class(config).__name__
    except (OSError, ValueError):  # a tokenizer without a model
        return None
    if can_generate(config) or "For" not in name:
        return None
    return (
        f"{name} gives no hidden states, from which embeddings are made: "
        "save the base model, AutoModel.from_pretrained(...).save_pretrained(...), with its tokenizer, and serve that"
    )


def embedding_settings(model: str | Path) -> tuple[str | None, bool | None]:
    """Return pooling and normalisation that a model's files of sentence-transformers say, None where they do not.

    Raises ValueError for another pooling or module than those that are served.
    """
    modules = _json_file(model, "modules.json")
    if modules is None:
        return None, None
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    others = sorted(kinds.keys() - set(_MODULES))
    if others:
        raise ValueError(f"{model} has a module of the type {others[0]}, served are {', '.join(_MODULES)}")
    config = _json_file(model, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else None
    found = "+".join(_pooling_modes(config or {})) or "mean"
    if found not in POOLINGS:
        raise ValueError(f"{model} pools its hidden states by {found}, served are {' and '.join(POOLINGS)}")
    return found, "Normalize" in kinds


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return the names of the modes in a configuration of sentence-transformers, old (flags) or new."""
    given = config.get("pooling_mode")
    if given is not None:
        return [given] if isinstance(given, str) else list(given)
    prefix = "pooling_mode_"
    is_on = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True]
    return [_FLAGS.get(name, name) for name in is_on]


def _json_file(model: str | Path, name: str) -> Any:
    try:
        path = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False, local_files_only=True)
    except OSError:  # a GGUF file, which is no name of a repository
        path = None
    return None if path is None else json.loads(read_text(path))
