"""Tiny random models with an encoder and a decoder, of three families that are built differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from orbitsplit._models.source import model_class

VOCABULARY = 97
PAD, EOS = 0, 2
# Layers of the encoder and of the decoder, which differ.
ENCODER_LAYERS, DECODER_LAYERS = 3, 2
LAYERS = ENCODER_LAYERS + 1 + DECODER_LAYERS

_TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
_BART: dict[str, Any] = {
    **_TOKENS,
    "d_model": 32,
    "encoder_layers": ENCODER_LAYERS,
    "decoder_layers": DECODER_LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
# What Whisper's own loop around generate reads: languages and tasks, and that times are the tokens behind 70.
_WHISPER: dict[str, Any] = {
    "suppress_tokens": [5, 7],
    "begin_suppress_tokens": [9],
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 50, "<|de|>": 51},
    "task_to_id": {"transcribe": 60, "translate": 61},
    "no_timestamps_token_id": 70,
    "max_initial_timestamp_index": 20,
}
# Per type, its class and what its configuration needs.
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {
            **_TOKENS,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_heads": 4,
            "num_layers": ENCODER_LAYERS,
            "num_decoder_layers": DECODER_LAYERS,
        },
    ),
    "bart": ("BartForConditionalGeneration", {**_BART, "max_position_embeddings": 64}),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            **_BART,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 64,
            "suppress_tokens": [5, 7],
            "begin_suppress_tokens": [9],
        },
    ),
}


def encoder_decoder_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model; `changes` override its fields."""
    name, fields = ENCODER_DECODERS[kind]
    config: PreTrainedConfig = AutoConfig.for_model(kind, **{**fields, **changes}, architectures=[name])
    return config


def save_encoder_decoder(folder: Path, kind: str) -> PreTrainedModel:
    """Write a tiny model, whose tokens depend on all that is read, and return it."""
    torch.manual_seed(0)
    config = encoder_decoder_config(kind)
    model: PreTrainedModel = model_class(config)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    own = _WHISPER if kind == "whisper" else {}
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS, decoder_start_token_id=PAD, **own
    )
    model.save_pretrained(folder)
    return model.eval()


def encoder_prompts(kind: str, rows: int = 3) -> dict[str, Tensor]:
    """Return what an encoder reads: texts of different lengths, padded on the right, or features of recordings."""
    generator = torch.Generator().manual_seed(3)
    if kind == "whisper":
        return {"input_features": torch.randn(rows, 8, 32, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}
