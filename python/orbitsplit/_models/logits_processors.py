"""Logits processors: those that transformers lacks, and how any of them travels to the stage that has the logits.

A processor travels as the name of its class and its attributes, plain values alone; nothing is pickled. Its class is
transformers' own, ours, or one that a package declares as an entry point of the group `orbitsplit.logits_processors`
("name = module:Class") where the stage runs. So whoever can send messages can choose among the classes that a node's
owner has installed and set their values, but cannot bring code.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process
from transformers.generation.logits_process import LogitsProcessor

from orbitsplit._io.validation import quoted

_TRANSFORMERS = logits_process.__name__
# Where classes of processors may be from, and the group of entry points that declare others.
_MODULES = (_TRANSFORMERS, __name__, "orbitsplit._models.json_grammar")
_ENTRY_POINTS = "orbitsplit.logits_processors"
# They hold a model, or a state of the tokens so far, which would be wrong after a guess or a loss.
_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "WhisperNoSpeechDetection",
)
# They look at the scores alone, so that the last stage need not know the tokens.
_WITHOUT_IDS = frozenset(
    {
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TopHLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "SuppressTokensLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
    }
)


class PresencePenaltyLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Subtracts `penalty` from the score of every token that was generated behind a prompt of `prompt_tokens` tokens.

    As OpenAI defines presence_penalty: the prompt does not count.
    """

    def __init__(self, penalty: float, prompt_tokens: int) -> None:
        self.penalty = penalty
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [b, V] of the tokens behind `input_ids` [b, S]."""
        return scores - self.penalty * (_counts(input_ids[:, self.prompt_tokens :], scores) > 0)


class FrequencyPenaltyLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Subtracts `penalty` from the score of a token for each time that it was generated behind the prompt.

    As OpenAI defines frequency_penalty.
    """

    def __init__(self, penalty: float, prompt_tokens: int) -> None:
        self.penalty = penalty
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [b, V] of the tokens behind `input_ids` [b, S]."""
        return scores - self.penalty * _counts(input_ids[:, self.prompt_tokens :], scores)


def _counts(tokens: Tensor, scores: Tensor) -> Tensor:
    """Return how often each token of the vocabulary occurs in each row [b, n]."""
    return torch.zeros_like(scores).scatter_add_(1, tokens, torch.ones_like(tokens, dtype=scores.dtype))


def needs_ids(processors: Iterable[LogitsProcessor]) -> bool:
    """Whether a processor looks at the tokens so far."""
    return any(type(processor).__name__ not in _WITHOUT_IDS for processor in processors)


def pack_processor(processor: Any) -> dict[str, Any]:
    """Return a processor as JSON values.

    Raises TypeError, with the way out, for one that is not of a class that every stage has, ValueError for one with a
    state that does not travel.
    """
    kind = type(processor)
    if not isinstance(processor, LogitsProcessor) or _class_of(kind.__module__, kind.__qualname__) is not kind:
        raise TypeError(
            f"logits_processor has {quoted(processor)}, of {kind.__module__}.{kind.__qualname__}: code does not travel "
            f"to the stage that has the logits. Give instances of the classes of {_TRANSFORMERS}, whose values do, "
            f'or of a LogitsProcessor that a package on all nodes declares as an entry point of "{_ENTRY_POINTS}"'
        )
    if kind.__name__ in _STATEFUL:
        raise ValueError(f"{kind.__name__} keeps a model or a state of one text, which no other process can have")
    state = {name: value for name, value in vars(processor).items() if name not in _remade(kind)}
    return {"kind": [kind.__module__, kind.__qualname__], "state": _packed(kind.__name__, state)}


def unpack_processor(data: dict[str, Any]) -> LogitsProcessor:
    """Return the processor of which `pack_processor` made the values. Raises ValueError for others."""
    module, name = data["kind"]
    kind = _class_of(module, name)
    if kind is None:
        raise ValueError(f"there is no logits processor {quoted(name)} of {quoted(module)} on this node")
    processor: Any = object.__new__(kind)
    vars(processor).update(_unpacked(data["state"]))
    if _remade(kind):
        processor.rng = torch.Generator().manual_seed(processor.hash_key)
        processor.fixed_table = torch.randperm(processor.table_size, generator=processor.rng)
    return processor


def _class_of(module: str, name: str) -> type[LogitsProcessor] | None:
    """Return a class of processors that may be used here, None if there is none of this name."""
    if module in _MODULES:
        kind = getattr(importlib.import_module(module), name, None)
    else:
        declared = metadata.entry_points(group=_ENTRY_POINTS)
        kind = next((point.load() for point in declared if (point.module, point.attr) == (module, name)), None)
    if inspect.isclass(kind) and issubclass(kind, LogitsProcessor) and kind.__module__ == module:
        return kind
    return None


def _remade(kind: type) -> tuple[str, ...]:
    """Return the attributes that are made anew from others: a watermark's table has a million entries."""
    return ("rng", "fixed_table") if kind is logits_process.WatermarkLogitsProcessor else ()


def _packed(owner: str, value: Any) -> Any:
    """Return a plain value as JSON; what JSON does not have is an object with its kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_packed(owner, item) for item in value]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, dict):
        return {"dict": [[_packed(owner, key), _packed(owner, item)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), value.flatten().tolist()]}
    raise TypeError(f"{owner} has {quoted(value)} of {type(value).__name__}: only numbers, texts and tensors travel")


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "list":
        return [_unpacked(item) for item in content]
    if kind == "tuple":
        return tuple(_unpacked(item) for item in content)
    if kind == "dict":
        return {_unpacked(key): _unpacked(item) for key, item in content}
    dtype, shape, numbers = content
    return torch.tensor(numbers, dtype=getattr(torch, dtype)).reshape(tuple(shape))


def run_processors(processors: Sequence[LogitsProcessor], input_ids: Tensor, scores: Tensor) -> Tensor:
    """Return the scores [b, V] that processors make of others, in their order."""
    for processor in processors:
        scores = processor(input_ids, scores)
    return scores
