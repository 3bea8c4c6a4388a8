"""Settings of generation as transformers' generate settles them, without the model: its own code decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """The settings of one call of generate, for prompts of `prompt_tokens` tokens each, padding included.

    `criteria` are those beside a number of tokens and the tokens of `eos_token_ids`, which end a row of themselves.
    `config` has what was settled; `processors` makes those of a part of the batch.
    """

    config: GenerationConfig
    prompt_tokens: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    criteria: StoppingCriteriaList
    _host: GenerationMixin
    _own_processors: LogitsProcessorList

    def processors(self, input_ids: Tensor, attention_mask: Tensor | None) -> list[LogitsProcessor]:
        """Return what transformers makes scores of logits with, for prompts [b, S] (mask None: without padding).

        Of a model with an encoder they are what that reads.
        """
        return list(
            self._host._get_logits_processor(
                generation_config=self.config,
                input_ids_seq_length=self.prompt_tokens,
                encoder_input_ids=input_ids,
                logits_processor=self._own_processors,
                device="cpu",
                model_kwargs={"attention_mask": attention_mask},
            )
        )


class _Host(GenerationMixin):  # type: ignore[misc]  # transformers is untyped here
    """The part of a model that settles options of generate: its generation config, and facts of its configuration."""

    def __init__(
        self, config: GenerationConfig, *, vocabulary: int, positions: int | None, encoder_type: str | None = None
    ) -> None:
        text = SimpleNamespace(vocab_size=vocabulary)
        self.generation_config = config
        self.config = SimpleNamespace(
            is_encoder_decoder=encoder_type is not None,
            model_type=encoder_type,
            max_position_embeddings=positions,
            get_text_config=lambda: text,
            _get_generation_parameters=dict,
        )


def generation_settings(
    of_model: Mapping[str, Any],
    given: GenerationConfig | None,
    options: Mapping[str, Any],
    *,
    input_ids: Tensor,
    vocabulary: int,
    positions: int | None = None,
    processors: Sequence[LogitsProcessor] = (),
    criteria: Sequence[StoppingCriteria] = (),
    tokenizer: Any = None,
    encoder_type: str | None = None,
) -> GenerationSettings:
    """Return the settings of a call: `options` before those of `given`, the model's own, and transformers' defaults.

    `of_model` is the model's generation config as a dictionary. `processors` and `criteria` are the caller's own, in
    the place of those of the same class. `encoder_type` is the type of a model with an encoder, whose `input_ids` are
    the decoder's. Raises ValueError as transformers does.
    """
    host = _Host(
        GenerationConfig.from_dict(dict(of_model)),
        vocabulary=vocabulary,
        positions=positions,
        encoder_type=encoder_type,
    )
    defaults = {
        name: all(getattr(source, name, None) is None for source in (host.generation_config, given))
        and options.get(name) is None
        for name in ("max_length", "min_length")
    }
    config, _ = host._prepare_generation_config(given, **_without_endings(options))
    if options.get("eos_token_id") == ():
        config.eos_token_id = None  # it ends no row
    host._prepare_special_tokens(config, True, device="cpu", batch_size=len(input_ids))
    tokens = input_ids.shape[1]
    config = host._prepare_generated_length(
        generation_config=config,
        has_default_max_length=defaults["max_length"],
        has_default_min_length=defaults["min_length"],
        model_input_name="input_ids",
        inputs_tensor=input_ids,
        input_ids_length=tokens,
    )
    host._validate_generated_length(config, tokens, defaults["max_length"])
    found = host._get_stopping_criteria(config, StoppingCriteriaList(criteria), tokenizer)
    ends = [one for one in found if isinstance(one, EosTokenCriteria)]
    pad = config._pad_token_tensor
    return GenerationSettings(
        config=config,
        prompt_tokens=tokens,
        max_new_tokens=max(1, found.max_length - tokens),
        eos_token_ids=tuple(token for one in ends for token in one.eos_token_id.tolist()),
        pad_token_id=None if pad is None else int(pad),
        criteria=StoppingCriteriaList(
            one for one in found if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))
        ),
        _host=host,
        _own_processors=LogitsProcessorList(processors),
    )


def decoder_prompt(
    of_model: Mapping[str, Any],
    given: GenerationConfig | None,
    options: Mapping[str, Any],
    *,
    rows: int,
    given_ids: Tensor | None,
    model_type: str,
    input_name: str,
) -> Tensor:
    """Return the tokens [rows, T] with which the decoder of a model with an encoder starts.

    Of `given_ids`, or without any the model's own start. Raises ValueError as transformers does, where there is none.
    """
    host = _Host(GenerationConfig.from_dict(dict(of_model)), vocabulary=0, positions=None, encoder_type=model_type)
    config, _ = host._prepare_generation_config(given, **_without_endings(options))
    host._prepare_special_tokens(config, True, device="cpu", batch_size=rows)
    ids, _ = host._prepare_decoder_input_ids_for_generation(
        batch_size=rows,
        model_input_name=input_name,
        model_kwargs={} if given_ids is None else {"decoder_input_ids": given_ids},
        decoder_start_token_id=config._decoder_start_token_tensor,
        device="cpu",
    )
    made: Tensor = ids
    return made


def _without_endings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as transformers takes them: several tokens as a list, none as no option."""
    found = dict(options)
    eos = found.pop("eos_token_id", None)
    if eos:
        found["eos_token_id"] = list(eos) if len(eos) > 1 else eos[0]
    return found
