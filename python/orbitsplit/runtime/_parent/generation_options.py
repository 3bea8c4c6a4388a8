"""Options of generation, named as in transformers' generate, and the keywords that may be given in their place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from orbitsplit._io.keyword_options import refuse_keywords, take_options
from orbitsplit._io.validation import check_kind, quoted

from .arguments import boolean, integer, number
from .unsupported import refuse, refuse_unsupported

if TYPE_CHECKING:
    from transformers import GenerationConfig

_INT64 = 2**63
# What torch.Generator.manual_seed accepts.
_LEAST_SEED, _LARGEST_SEED = -(2**63), 2**64 - 1
# More guesses at once are hardly ever right, and keys and values of as many tokens are kept beside the window.
MOST_DRAFTS = 32
# The most alternatives of a token whose log-probabilities are returned: each takes 16 bytes of every message.
MOST_LOGPROBS = 128

# The limits of options that are numbers: (above, least, most).
_NUMBERS: dict[str, tuple[float | None, float | None, float]] = {
    "top_p": (0, None, 1),
    "min_p": (None, 0, 1),
    "top_h": (0, None, 1),
    "typical_p": (0, None, 1),
    "epsilon_cutoff": (None, 0, 1),
    "eta_cutoff": (None, 0, 1),
    "repetition_penalty": (0, None, float("inf")),
    "encoder_repetition_penalty": (0, None, float("inf")),
    "presence_penalty": (None, None, float("inf")),
    "frequency_penalty": (None, None, float("inf")),
    "max_time": (None, 0, float("inf")),
}
# The least values of options that are integers, and the largest.
_INTEGERS: dict[str, tuple[int, int]] = {
    "max_new_tokens": (1, 2**31 - 1),
    "max_length": (1, 2**31 - 1),
    "min_new_tokens": (0, 2**31 - 1),
    "min_length": (0, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
    "no_repeat_ngram_size": (0, 2**31 - 1),
    "encoder_no_repeat_ngram_size": (0, 2**31 - 1),
    "num_beams": (1, 2**31 - 1),
    "num_return_sequences": (1, 2**31 - 1),
    "pad_token_id": (-_INT64, _INT64 - 1),
    "seed": (_LEAST_SEED, _LARGEST_SEED),
    "prompt_lookup_num_tokens": (0, MOST_DRAFTS),
    "num_assistant_tokens": (1, MOST_DRAFTS),
    "logprobs": (0, MOST_LOGPROBS),
    "prompt_logprobs": (0, MOST_LOGPROBS),
}
_BOOLEANS = (
    "do_sample",
    "renormalize_logits",
    "remove_invalid_values",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
)
# Options that are ours: transformers has none of the name, or gives it another meaning.
_OWN = frozenset(
    {
        "generation_config",
        "logits_processor",
        "stopping_criteria",
        "tokenizer",
        "seed",
        "prompt_lookup_num_tokens",
        "num_assistant_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "prompt_logprobs",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of `Pipeline.generate`, `submit` and `stream`, named as in transformers' generate.

    What is None has the value of `generation_config`, else that of the model's own generation config, else
    transformers' default: without any limit 20 new tokens. What transformers documents for an option of the same name
    holds here, and its own logits processors and stopping criteria are run. Ended rows are filled with `pad_token_id`;
    an empty sequence for `eos_token_id` ends no row early.

    `logits_processor` are instances of transformers' processors (or of ours), which run on the last stage;
    `stopping_criteria` are any of transformers' form, which run in the caller's process, `tokenizer` is for
    `stop_strings`. `seed` is that of sampling (None: a random one): tokens are those of transformers after
    `torch.manual_seed(seed)`. `presence_penalty` and `frequency_penalty` are subtracted from the logits of a token for
    having been generated, and for each time it was, as OpenAI defines them.

    With `logprobs`, the log-probability of each new token is returned, and those of so many of the likeliest ones; with
    `prompt_logprobs` those of the prompts' tokens too. Both are of the model itself, before any processor.

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

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    max_time: float | None = None
    stop_strings: str | Sequence[str] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    sequence_bias: Any = None
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | Sequence[int] | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    watermarking_config: Any = None
    renormalize_logits: bool | None = None
    remove_invalid_values: bool | None = None
    num_beams: int | None = None
    num_return_sequences: int | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    generation_config: GenerationConfig | None = None
    logits_processor: Sequence[Any] | None = None
    stopping_criteria: Sequence[Any] | None = None
    tokenizer: Any = None
    seed: int | None = None
    prompt_lookup_num_tokens: int | None = None
    num_assistant_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _INTEGERS.items():
            self._convert(name, functools.partial(integer, least=least, most=most))
        for name in _BOOLEANS:
            self._convert(name, boolean)
        for name, (above, least_number, most_number) in _NUMBERS.items():
            self._convert(name, functools.partial(number, above=above, least=least_number, most=most_number))
        self._convert("eos_token_id", _tokens)
        # Zero is greedy decoding to many callers, so it is refused only where it would be divided by.
        above_zero = 0.0 if self.do_sample else None
        self._convert("temperature", functools.partial(number, above=above_zero, least=0.0))
        if self.num_beams is not None:
            refuse("num_beams", self.num_beams)  # 1 overrules a generation config
        if self.prompt_lookup_num_tokens is not None and self.num_assistant_tokens is not None:
            raise ValueError("prompt_lookup_num_tokens and num_assistant_tokens exclude each other: give one of them")
        if self.generation_config is not None:
            from transformers import GenerationConfig  # not needed by a program that only plans

            check_kind("generation_config", self.generation_config, GenerationConfig)

    def of_transformers(self) -> dict[str, Any]:
        """Return the values that are given, of options that are transformers' own."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name not in _OWN)
        return {name: value for name, value in values if value is not None}

    def _convert(self, name: str, convert: Callable[[str, Any], Any]) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, convert(name, value))


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keywords."""

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    max_time: float | None
    stop_strings: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    top_h: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    sequence_bias: Any
    forced_bos_token_id: int | None
    decoder_start_token_id: int | Sequence[int] | None
    forced_eos_token_id: int | Sequence[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    watermarking_config: Any
    renormalize_logits: bool | None
    remove_invalid_values: bool | None
    num_beams: int | None
    num_return_sequences: int | None
    return_dict_in_generate: bool | None
    output_scores: bool | None
    output_logits: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    generation_config: GenerationConfig | None
    logits_processor: Sequence[Any] | None
    stopping_criteria: Sequence[Any] | None
    tokenizer: Any
    seed: int | None
    prompt_lookup_num_tokens: int | None
    num_assistant_tokens: int | None


def generation_options(
    function: str, options: GenerationOptions | None, keywords: Mapping[str, Any]
) -> GenerationOptions:
    """Return the options of a call of `function`, given as an object or as keywords. Raises TypeError for both.

    Raises ValueError for what transformers has and a pipeline does not, TypeError for other unknown keywords.
    """
    left = dict(keywords)
    found = take_options(function, "options", GenerationOptions, options, left)
    refuse_unsupported(left)
    refuse_keywords(function, left, known=[field.name for field in fields(GenerationOptions)])
    return found


def _tokens(name: str, value: Any) -> tuple[int, ...]:
    """Return one token or several as a tuple."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {quoted(value)}, must be an integer or a sequence of integers")
    several = isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0
    return tuple(integer(name, token, least=-_INT64, most=_INT64 - 1) for token in (value if several else (value,)))
