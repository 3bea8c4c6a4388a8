"""What transformers' generate does for a model beyond forwards with a cache: settings, and changes of the embedding."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from transformers import GenerationConfig, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig

from .source import model_class


class RopeChange(NamedTuple):
    """The number of tokens beyond which a rotary embedding of `kind` ("longrope", "dynamic") encodes all differently.

    `recomputes_cache`: the keys and values so far are computed anew when a text grows beyond it.
    """

    kind: str
    tokens: int
    recomputes_cache: bool


def settings_of(generation: GenerationConfig | None) -> dict[str, Any]:
    """Return the settings of a generation config that have a value, as JSON has them."""
    if generation is None:
        return {}
    values: dict[str, Any] = json.loads(generation.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if value is not None}


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
