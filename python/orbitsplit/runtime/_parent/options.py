"""Options of pipelines and of generation, and the keywords that may be given in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.validation import quoted

from .arguments import boolean, integer, number

_INT64 = 2**63
# What torch.Generator.manual_seed accepts.
_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1
# More guesses at once are hardly ever right, and keys and values of as many tokens are kept beside the window.
MOST_DRAFTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The time limits of a pipeline, in seconds.

    Processes must be ready after `start_s`. A process that sends no heartbeat for `heartbeat_s` is lost, and so is a
    link whose message is overdue by `stall_s`.

    Raises TypeError or ValueError, naming the field, unless all are positive and finite.
    """

    start_s: float = 600.0
    heartbeat_s: float = 8.0
    stall_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, number(field.name, getattr(self, field.name), above=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of `Pipeline.generate`, `submit` and `stream`, named as in transformers' generate.

    Generation stops after `max_new_tokens`, or in each row at a token of `eos_token_id`; ended rows are filled with
    `pad_token_id`. Both tokens default to those of the model's generation config (None); an empty sequence for
    `eos_token_id` ends no row early. Decoding is greedy, or with `do_sample` sampled with `temperature`, `top_k` (0:
    all tokens) and `top_p`, which default to the generation config, and with `seed` (None: a random one).

    With `prompt_lookup_num_tokens`, up to so many guesses of the next tokens go along with each, and tokens of a lap
    are all that were right and one more: the text goes on as it did where its last tokens came before. The text is that
    without them, but for rounding. How many are sent is decided from how many were right and how long laps take. With
    `num_assistant_tokens` the pipeline's `assistant_model` makes the guesses instead. By default as many are looked up
    as the plan has `draft_tokens`, where the model and the rows allow it; 0: none.

    Numbers of NumPy and 0-d tensors are accepted. Raises TypeError or ValueError, naming the field.

    Example:
        >>> GenerationOptions(max_new_tokens=64, do_sample=True, temperature=0.7)   # doctest: +ELLIPSIS
        GenerationOptions(max_new_tokens=64, ...)
    """

    max_new_tokens: int
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    prompt_lookup_num_tokens: int | None = None
    num_assistant_tokens: int | None = None

    def __post_init__(self) -> None:
        self._set("max_new_tokens", integer("max_new_tokens", self.max_new_tokens, least=1))
        self._set("do_sample", boolean("do_sample", self.do_sample))
        if self.eos_token_id is not None:
            self._set("eos_token_id", _tokens("eos_token_id", self.eos_token_id))
        if self.pad_token_id is not None:
            self._set("pad_token_id", integer("pad_token_id", self.pad_token_id, least=-_INT64, most=_INT64 - 1))
        if self.temperature is not None:
            # Zero is greedy decoding to many callers, so it is refused only where it would be divided by.
            limit = {"above": 0.0} if self.do_sample else {"least": 0.0}
            self._set("temperature", number("temperature", self.temperature, **limit))
        if self.top_k is not None:
            self._set("top_k", integer("top_k", self.top_k, least=0))
        if self.top_p is not None:
            self._set("top_p", number("top_p", self.top_p, above=0, most=1))
        for name, least in (("prompt_lookup_num_tokens", 0), ("num_assistant_tokens", 1)):
            if getattr(self, name) is not None:
                self._set(name, integer(name, getattr(self, name), least=least, most=MOST_DRAFTS))
        if self.prompt_lookup_num_tokens is not None and self.num_assistant_tokens is not None:
            raise ValueError("prompt_lookup_num_tokens and num_assistant_tokens exclude each other: give one of them")
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, least=_LEAST_SEED, most=_LARGEST_SEED))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keywords."""

    max_new_tokens: int
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    prompt_lookup_num_tokens: int | None
    num_assistant_tokens: int | None


# Keywords of `Pipeline`, and the fields of `Timeouts` that they stand for.
TIMEOUT_KEYWORDS = {"start_timeout_s": "start_s", "heartbeat_timeout_s": "heartbeat_s", "stall_timeout_s": "stall_s"}


def generation_options(
    function: str, options: GenerationOptions | None, keywords: Mapping[str, Any]
) -> GenerationOptions:
    """Return the options of a call of `function`, given as an object or as keywords. Raises TypeError for both."""
    if options is None and "max_new_tokens" not in keywords:
        raise TypeError(f"{function}() needs max_new_tokens, or options")
    left = dict(keywords)
    found = take_options(function, "options", GenerationOptions, options, left)
    refuse_keywords(function, left)
    return found


def timeouts_of(timeouts: Timeouts | None, keywords: dict[str, Any]) -> Timeouts:
    """Return the time limits of a pipeline, and remove their keywords. Raises TypeError for both at once."""
    limits = {field: keywords.pop(name) for name, field in TIMEOUT_KEYWORDS.items() if name in keywords}
    return take_options("Pipeline", "timeouts", Timeouts, timeouts, limits)


def _tokens(name: str, value: Any) -> tuple[int, ...]:
    """Return one token or several as a tuple."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {quoted(value)}, must be an integer or a sequence of integers")
    several = isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0
    return tuple(integer(name, token, least=-_INT64, most=_INT64 - 1) for token in (value if several else (value,)))
