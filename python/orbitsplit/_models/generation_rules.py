"""What transformers' generate does for a model beyond forwards with a cache: settings, and changes of the embedding."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import GenerationConfig, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig

from .source import model_class

# Settings that change which tokens follow, with the values that leave them as they are beside None.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "stop_strings": ([],),
    "max_time": (),
}
# The same of settings that sampling alone has.
_NEUTRAL_SAMPLING: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}


class RopeChange(NamedTuple):
    """The number of tokens beyond which a rotary embedding of `kind` ("longrope", "dynamic") encodes all differently.

    `recomputes_cache`: the keys and values so far are computed anew when a text grows beyond it.
    """

    kind: str
    tokens: int
    recomputes_cache: bool


def unapplied_settings(generation: GenerationConfig | None, *, of_sampling: bool) -> tuple[str, ...]:
    """Return "name=value" of the settings that change the tokens of transformers' generate and are not applied here.

    `of_sampling` selects those that sampling alone has, or those of any decoding.
    """
    neutral = _NEUTRAL_SAMPLING if of_sampling else _NEUTRAL
    found = ((name, getattr(generation, name, None), values) for name, values in neutral.items())
    return tuple(f"{name}={value!r}"[:80] for name, value, values in found if value is not None and value not in values)


def rope_change(config: PreTrainedConfig) -> RopeChange | None:
    """Return where the rotary embedding of a model changes with the length of a text, None if it does not."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    for part in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = part.get("rope_type")
        if kind not in ("longrope", "dynamic"):
            continue
        trained = part.get("original_max_position_embeddings") if kind == "longrope" else None
        if kind == "longrope" and _recomputes_cache(config):  # where the model's own field says
            trained = getattr(config, "original_max_position_embeddings", None) or trained
        tokens = trained or getattr(text, "max_position_embeddings", None)
        if tokens is not None:
            return RopeChange(kind, int(tokens), kind == "longrope" and _recomputes_cache(config))
    return None


def _recomputes_cache(config: PreTrainedConfig) -> bool:
    # As Phi-3 and PhiMoE do; transformers has no other sign of it.
    own: Any = getattr(model_class(config), "prepare_inputs_for_generation", None)
    is_overridden = own is not GenerationMixin.prepare_inputs_for_generation
    return is_overridden and hasattr(config, "original_max_position_embeddings")
