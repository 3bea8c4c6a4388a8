"""GGUF files of tiny models, written as llama.cpp does: its names, and what it changes in tensors of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants
from transformers import PreTrainedConfig

from tests.support.tiny_models import VOCABULARY

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}
_NAMES_OF_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ARCHITECTURES = {"qwen2": "qwen2", "llama": "llama", "gemma3_text": "gemma3"}

Values = npt.NDArray[np.float32]
Store = Callable[[str, Values], tuple[npt.NDArray[Any], GGMLQuantizationType]]


def as_floats(_name: str, values: Values) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
    """Store a tensor as it is."""
    return values, GGMLQuantizationType.F32


def write_gguf(path: Path, config: PreTrainedConfig, tensors: Mapping[str, Values], store: Store = as_floats) -> None:
    """Write a model with a byte-pair tokenizer of single characters; `store` gives bytes and type of each tensor."""
    family = config.model_type
    writer = gguf.GGUFWriter(path, _ARCHITECTURES[family])
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if family == "gemma3_text":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "<bos>", "<eos>", *(chr(33 + index) for index in range(VOCABULARY - 4)), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in tensors.items():
        data, kind = store(name, _changed(name, values, config))
        writer.add_tensor(_named(name, family), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def uneven_blocks(values: Values) -> npt.NDArray[np.uint8]:
    """Return values as Q8_0 blocks of which some have no code of 127: rounded once more they would be others."""
    blocks = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType.Q8_0).copy()
    codes = blocks.reshape(-1, 34)[::3, 2:]
    codes[:] = (codes.view(np.int8) // 2).view(np.uint8)
    return blocks


def _named(name: str, family: str) -> str:
    for ours, theirs in {**_NAMES, **(_NAMES_OF_GEMMA if family == "gemma3_text" else {})}.items():
        name = name.replace(ours, theirs)
    return name


def _changed(name: str, values: Values, config: PreTrainedConfig) -> Values:
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        return values + 1
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    count = next((count for end, count in heads.items() if name.endswith(end)), None)
    if config.model_type != "llama" or count is None:
        return values
    halves = values.reshape(count, 2, len(values) // count // 2, -1)  # rotated pairs beside each other
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
