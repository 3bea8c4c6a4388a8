"""Configurations of small models that are built like a large one: of fewer layers, heads, experts and tokens.

The size of a head stays, because tables of a configuration have its length (sections and factors of rotary positions),
and so do switches. Lengths at which a forward changes (windows, the longest text of the training) become so short that
a text of `LONG_TOKENS` tokens is beyond all of them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

# A text of so many tokens is beyond every length at which a forward of a small model changes.
LONG_TOKENS = 26
_LEAST_LAYERS, _MOST_LAYERS = 4, 9
_VOCABULARY, _INNER, _EXPERTS = 120, 64, 4
_IMAGE_PATCHES = 4  # of each side
_WINDOW, _TRAINED_TOKENS = 8, 16

_LAYER_COUNTS = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|depth|(encoder|decoder)_layers|num_(en|de)coder_layers"
)
_LATER_LAYERS = re.compile(
    r"max_window_layers|first_k_dense_replace|num_dense_layers|\w*start_layer|moe_layer_start_index"
)
_PERIODS = re.compile(r"\w*(period|interval|every_\w+|_every|layer_freq|sparse_step|layer_pattern)")
_INNER_SIZES = re.compile(
    r"\w*(intermediate_size|ffn_dim|ffn_hidden_size|inner_dim|n_inner|d_ff|block_ff_dim|_ff_dim|mlp_dim|dim_ff|ffn_size|dim_feedforward)"
)
_EXPERT_COUNTS = re.compile(r"n_routed_experts|num_(local_)?experts|moe_num_experts|num_experts_total")
_WINDOWS = re.compile(r"sliding_window(_size)?|attention_window_size|attention_chunk_size|local_window_size")
_TOKENS = re.compile(r"\w*(token_id|token_index|token_ids|_token|start_id|end_id)")
_POSITIONS = re.compile(r"max_position_embeddings|n_positions|max_seq_len|seq_length")


def shrunk(config: PreTrainedConfig, *, strength: int = 2, keeps_layers: bool = False) -> PreTrainedConfig:
    """Return the configuration of a small model that is built like the one of `config`.

    With a lower `strength` fewer sizes change: 1 leaves the width of the hidden state and the heads, which some
    architectures derive others from; 0 changes the number of layers alone. If `keeps_layers`, there are as many layers.
    """
    small = copy.deepcopy(config)
    vars(small).pop("quantization_config", None)
    for part in _parts(small):
        if not keeps_layers:
            _shrink_layers(part)
        if strength > 0:
            _shrink_counts(part)
            _shorten(part)
        if strength > 1:
            _narrow(part)
    if strength > 0:
        _renumber_tokens(small)
    if strength > 1:
        _fit_projections(small)
    return small


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a configuration and those within it, those of the parts first."""
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
    yield config


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    vars(config)[name] = value  # assignments may be checked against fields that are not changed yet


def _integers(config: PreTrainedConfig) -> list[tuple[str, int]]:
    return [(name, value) for name, value in vars(config).items() if type(value) is int and value > 0]


def _shrink_layers(config: PreTrainedConfig) -> None:
    count = max((value for name, value in _integers(config) if _LAYER_COUNTS.fullmatch(name)), default=0)
    lists = {
        name: value for name, value in vars(config).items() if isinstance(value, (list, tuple)) and len(value) == count
    }
    least = max([_LEAST_LAYERS, *(_covering(value) for value in lists.values())])
    periods = (value for name, value in _integers(config) if _PERIODS.fullmatch(name))
    least = max([least, *(value + 1 for value in periods if value < _MOST_LAYERS)])
    for name, value in _integers(config):
        if _LAYER_COUNTS.fullmatch(name):
            _set(config, name, min(value, least))
        elif _LATER_LAYERS.fullmatch(name):
            _set(config, name, min(value, least // 2))
    for name, values in lists.items():
        _set(config, name, values[:least])
    _name_stages(config, least)


def _name_stages(config: PreTrainedConfig, layers: int) -> None:
    """Let a backbone return the output of its last layer."""
    names = vars(config).get("stage_names")
    if isinstance(names, list) and len(names) > layers + 1:
        _set(config, "stage_names", names[: layers + 1])
        _set(config, "_out_features", [names[layers]])
        _set(config, "_out_indices", [layers])


def _covering(values: Any) -> int:
    """Return how many of the first layers have one of every kind."""
    kinds = [repr(value) for value in values]
    if len(set(kinds)) > _LEAST_LAYERS:
        return _LEAST_LAYERS
    return max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)


def _shrink_counts(config: PreTrainedConfig) -> None:
    for name, value in _integers(config):
        if _EXPERT_COUNTS.fullmatch(name):
            _set(config, name, min(value, _EXPERTS))
        elif name in ("num_experts_per_tok", "moe_k", "moe_top_k", "num_experts_per_token", "moe_topk"):
            _set(config, name, min(value, 2))
        elif name in ("n_group", "num_group", "topk_group"):
            _set(config, name, 1)
        elif _INNER_SIZES.fullmatch(name):
            _set(config, name, min(value, _INNER))
        elif name.startswith("vocab_size"):
            _set(config, name, min(value, _VOCABULARY))
        elif name == "mm_tokens_per_image":
            _set(config, name, min(value, _IMAGE_PATCHES))
        elif name == "image_size" and isinstance(vars(config).get("patch_size"), int):
            _set(config, name, min(value, _IMAGE_PATCHES * config.patch_size))


def _shorten(config: PreTrainedConfig) -> None:
    """Shorten the lengths at which a forward changes."""
    rope = vars(config).get("rope_parameters") or {}
    ropes = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for name, value in _integers(config):
        if _WINDOWS.fullmatch(name):
            _set(config, name, min(value, _WINDOW))
        elif name == "original_max_position_embeddings":
            _set(config, name, min(value, _TRAINED_TOKENS))
        elif _POSITIONS.fullmatch(name):
            is_limit = any(part.get("rope_type") == "dynamic" for part in ropes)
            _set(config, name, min(value, _TRAINED_TOKENS if is_limit else 64))
    if isinstance(vars(config).get("attention_window"), list):
        _set(config, "attention_window", [_WINDOW for _ in config.attention_window])
    for part in ropes:
        if part.get("original_max_position_embeddings"):
            part["original_max_position_embeddings"] = min(part["original_max_position_embeddings"], _TRAINED_TOKENS)


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    # Not by getattr, which some configurations refuse for what differs between layers.
    found = (vars(config).get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


def _narrow(config: PreTrainedConfig) -> None:
    """Let fewer heads of the same size make a narrower hidden state; other sizes follow where they were equal."""
    names = ("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim")
    width = _first(config, *(names[::-1] if "temporal_patch_size" in vars(config) else names))
    if isinstance(vars(config).get("ffn_config"), PreTrainedConfig):
        return  # it has sizes of its own that are to fit
    heads = _first(config, "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads")
    size = _first(config, "head_dim")
    if width is None or heads is None or (size is None and width % heads):
        return
    size = size or width // heads
    expansion = _first(config, "expand")
    if expansion is not None:  # heads of a state-space model share the expanded width
        heads = min(heads, _INNER * 4 // size)
        for name, value in (("num_heads", heads), ("n_groups", 1), ("hidden_size", heads * size // expansion)):
            _set(config, name, value)
        return
    groups = _first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads
    if heads % groups:
        return
    new_groups = min(groups, 2)
    new_heads = min(heads, new_groups * min(heads // groups, 2))
    new_width = new_heads * size
    ratio = width / new_width
    for name, value in _integers(config):
        if value == width and not name.startswith("vocab"):
            _set(config, name, new_width)
        elif re.fullmatch(r"\w*(attention_heads|num_heads|n_head|n_heads)", name) and value == heads:
            _set(config, name, new_heads)
        elif re.fullmatch(r"\w*(key_value_heads|kv_heads|head_kv)", name):
            _set(config, name, new_groups)
        elif re.fullmatch(r"mamba_n_heads|mamba_num_heads|mamba_d_ssm|mamba_intermediate\w*", name):
            _set(config, name, max(1, round(value / ratio)))


def _fit_projections(config: PreTrainedConfig) -> None:
    """Let a vision model's outputs have the width of the text model, which they are put beside."""
    text = config.get_text_config(decoder=True)
    width = _first(text, "hidden_size", "d_model", "n_embd")
    for part in _parts(config) if text is not config and width is not None else ():
        is_projected = "temporal_patch_size" in vars(part) and "embed_dim" in vars(part)
        for name in ("projection_dim", "out_hidden_size", *(("hidden_size",) if is_projected else ())):
            if part is not text and name in vars(part):
                _set(part, name, width)


def _renumber_tokens(config: PreTrainedConfig) -> None:
    """Give special tokens beyond the smaller vocabulary numbers of their own within it."""
    size = min([_VOCABULARY, *(_first(part, "vocab_size") or _VOCABULARY for part in _parts(config))])
    renamed: dict[int, int] = {}

    def renumber(value: Any) -> Any:
        if isinstance(value, list):
            return [renumber(one) for one in value]
        if type(value) is not int or value < size:
            return value
        return renamed.setdefault(value, max(3, size - 1 - len(renamed)))

    for part in _parts(config):
        for name, value in list(vars(part).items()):
            if _TOKENS.fullmatch(name):
                _set(part, name, renumber(value))
