"""Tiny random models that generate texts about images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from orbitsplit._models.source import model_class
from tests.support.tiny_models import HIDDEN, LAYERS, PAD, VOCABULARY

IMAGE_TOKEN = VOCABULARY - 1

_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_TEXT: dict[str, Any] = {
    **_SIZES,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
}
# As many layers as the text model has: neither must be taken for the other.
_VISION: dict[str, Any] = {**_SIZES, "image_size": 16, "patch_size": 4}

# Per type, its class and what its configuration needs.
VISION_LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
            "image_token_index": IMAGE_TOKEN,
            "image_seq_length": 16,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_TEXT, "sliding_window": 6, "query_pre_attn_scalar": 8},
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "image_token_index": IMAGE_TOKEN,
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                **_TEXT,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            },
            "vision_config": {
                "depth": LAYERS,
                "hidden_size": HIDDEN,
                "num_heads": 4,
                "intermediate_size": 64,
                "out_hidden_size": HIDDEN,
                "patch_size": 4,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            "image_token_id": IMAGE_TOKEN,
        },
    ),
}


def vision_language_config(model_type: str) -> PreTrainedConfig:
    """Return the configuration of a tiny model."""
    architecture, fields = VISION_LANGUAGE[model_type]
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **fields, architectures=[architecture])
    return config


def save_vision_language(folder: Path, model_type: str) -> PreTrainedModel:
    """Save a random model as transformers does, and return it as it is loaded from there."""
    torch.manual_seed(0)
    config = vision_language_config(model_type)
    model = model_class(config)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    model.generation_config = GenerationConfig(pad_token_id=PAD, do_sample=False)
    model.save_pretrained(folder)
    loaded: PreTrainedModel = type(model).from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


def prompts_with_images(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return two prompts with images as a processor gives them, the second one padded on the left."""
    ids, mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    ids[1, :2], mask[1, :2] = PAD, 0
    return {**inputs, "input_ids": ids, "attention_mask": mask}
