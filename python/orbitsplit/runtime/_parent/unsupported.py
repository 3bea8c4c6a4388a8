"""Options of transformers' generate that a pipeline does not have: refused by name, with the way out."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

from orbitsplit._io.validation import quoted


class _Unsupported(NamedTuple):
    """What an option would do, and what to do instead; the `neutral` values change nothing and are accepted."""

    neutral: tuple[Any, ...]
    reason: str


_UNSPLIT = "in the unsplit model, transformers' own generate has it"
_GUESSES = "guesses are made by prompt_lookup_num_tokens or num_assistant_tokens here"
_BEAMS = _Unsupported(
    (1, 0),
    "beams would reorder the caches of all stages after each token: num_beams=1 decodes one text per row, "
    f"do_sample=True with num_return_sequences draws several; {_UNSPLIT}",
)
_REPEATED = _Unsupported((), f"it runs the model several times for a token; {_UNSPLIT}")
_IMAGES = _Unsupported((), "this model generates no texts about images, or not in stages: leave them out")
_INPUT = _Unsupported((), "a pipeline's first stage gets input_ids and attention_mask alone: leave it out")
_NO_ENCODER = _Unsupported((), "this model has no encoder: leave it out")
_IN_MODEL = _Unsupported((False,), f"stages send on hidden states of the last position alone; {_UNSPLIT}")

_UNSUPPORTED: dict[str, _Unsupported] = {
    "num_beams": _BEAMS,
    "num_beam_groups": _BEAMS,
    "diversity_penalty": _BEAMS,
    "force_words_ids": _Unsupported(
        ([],), f"forced words need constrained beams: bad_words_ids and sequence_bias need none; {_UNSPLIT}"
    ),
    "constraints": _Unsupported(
        ([],), f"constraints need constrained beams: bad_words_ids and sequence_bias need none; {_UNSPLIT}"
    ),
    "prefix_allowed_tokens_fn": _Unsupported(
        (),
        "a function does not travel to the last stage: give a processor of transformers' own as logits_processor",
    ),
    "penalty_alpha": _REPEATED._replace(neutral=(0,)),
    "dola_layers": _REPEATED,
    "guidance_scale": _REPEATED._replace(neutral=(1,)),
    "negative_prompt_ids": _REPEATED,
    "negative_prompt_attention_mask": _REPEATED,
    "use_mtp": _Unsupported((False,), _GUESSES),
    "assistant_early_exit": _Unsupported((), _GUESSES),
    "assistant_model": _Unsupported((), "an assistant is loaded with the stages: Pipeline(assistant_model=...)"),
    "token_healing": _Unsupported((False,), "heal the prompt before: model.heal_tokens(input_ids, tokenizer)"),
    "custom_generate": _Unsupported((), f"other decoding loops need the whole model; {_UNSPLIT}"),
    "output_attentions": _IN_MODEL,
    "output_hidden_states": _IN_MODEL,
    "inputs_embeds": _INPUT,
    "position_ids": _INPUT,
    "past_key_values": _INPUT,
    "pixel_values": _IMAGES,
    "decoder_input_ids": _NO_ENCODER,
    "input_features": _NO_ENCODER,
    "encoder_outputs": _INPUT,
}
# Options of transformers' caches and kernels, which do not change a token: a pipeline has its own.
_WITHOUT_EFFECT = (
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "compile_config",
    "disable_compile",
    "synced_gpus",
    "low_memory",
    "early_stopping",
    "length_penalty",
    "bos_token_id",
    "trust_remote_code",
)
# Options that the model's generation config may have without the caller's doing, and that change tokens.
_OF_CONFIG = (
    "num_beams",
    "num_beam_groups",
    "force_words_ids",
    "constraints",
    "penalty_alpha",
    "dola_layers",
    "guidance_scale",
    "token_healing",
)


def refuse_unsupported(keywords: MutableMapping[str, Any]) -> None:
    """Raise ValueError for options that a pipeline does not have; remove those that change nothing here."""
    for name in list(keywords):
        if keywords[name] is None or name in _WITHOUT_EFFECT:
            if name in _UNSUPPORTED or name in _WITHOUT_EFFECT:
                del keywords[name]
        elif name in _UNSUPPORTED:
            refuse(name, keywords.pop(name))


def refuse_config(values: Mapping[str, Any]) -> None:
    """Raise ValueError if settings of a generation config, the model's or the caller's, need what there is not."""
    for name in _OF_CONFIG:
        if values.get(name) is not None:
            refuse(name, values[name], where="the generation config has ")


def refuse(name: str, value: Any, *, where: str = "") -> None:
    """Raise ValueError for an option that a pipeline does not have, unless its value changes nothing."""
    neutral, reason = _UNSUPPORTED[name]
    if not any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in neutral):
        raise ValueError(f"{where}{name}={quoted(value)}, which a pipeline does not do: {reason}")
