"""The result of generate with return_dict_in_generate: transformers' own, with log-probabilities beside it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from .generation import Generation
from .logprobs import TokenLogprobs


@dataclass
class GenerationOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]  # transformers is untyped here
    """transformers' output of generate; caches and hidden states, which stay on the stages, are None.

    `logprobs` are those of the new tokens of each row up to its end, `prompt_logprobs` those of the prompts: lists of
    `TokenLogprobs`, None where a token has none (padding, and the first one).
    """

    logprobs: list[list[TokenLogprobs]] | None = None
    prompt_logprobs: list[list[TokenLogprobs | None]] | None = None


@dataclass
class EncoderDecoderOutput(GenerateEncoderDecoderOutput):  # type: ignore[misc]
    """The same of a model with an encoder, whose prompts are the first tokens of the decoder."""

    logprobs: list[list[TokenLogprobs]] | None = None
    prompt_logprobs: list[list[TokenLogprobs | None]] | None = None


def output_of(generation: Generation) -> GenerationOutput | EncoderDecoderOutput:
    """Return the result of a batch that has ended, with what was asked for of its tokens."""
    group = next(iter(generation.states.values())).group
    asked, kind = group.details, EncoderDecoderOutput if group.has_encoder else GenerationOutput
    return kind(
        sequences=generation.tokens(),
        scores=generation.scores() if asked is not None and asked.has_scores else None,
        logits=generation.logits() if asked is not None and asked.has_logits else None,
        logprobs=None if asked is None or asked.logprobs is None else generation.logprobs(),
        prompt_logprobs=None if asked is None or asked.prompt_logprobs is None else generation.prompt_logprobs(),
    )
