"""Architectures with peculiar layers or a vision model beside the text model: split, or refused by `profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

import orbitsplit as osp
from orbitsplit._models import layouts
from orbitsplit._models.source import model_class, read_config
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import save_tiny_model

LAYERS, VOCABULARY, PROMPT, STEPS = 2, 97, 7, 4
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
MAMBA: dict[str, Any] = {
    **TEXT,
    "num_key_value_heads": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
WIDE = {**VISION, "hidden_size": 128, "intermediate_size": 512}  # more parameters than the text model
CLIP = {"model_type": "clip_vision_model", "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model"}
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    **{f"{part}_layers": LAYERS for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
}
STATES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "state_size": 8,
    "pad_token_id": 0,
}
LLAMA, GEMMA = {**GROUPED, "model_type": "llama"}, {**GROUPED, "model_type": "gemma"}
QWEN2_VL = {
    "text_config": {
        **TEXT,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    },
    "vision_config": {"depth": LAYERS, "embed_dim": 32, "num_heads": 4, "hidden_size": 32, "patch_size": 8},
    "image_token_id": 96,
}

SPLIT: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Regression: a layer of another stage has no `mamba`, which its initialisation asks for.
    "falcon_h1": ("FalconH1ForCausalLM", "falcon_h1", {**MAMBA, "mamba_d_ssm": 64}),
    "bamba": ("BambaForCausalLM", "bamba", {**MAMBA, "attn_layer_indices": [1]}),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        "recurrent_gemma",
        {
            **TEXT,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 8,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        "lfm2",
        {
            **TEXT,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
            "block_ff_dim": 64,
            "block_multiple_of": 8,
        },
    ),
    # Regression: the list of layers was looked for again after those of other stages were replaced by what has no
    # weights: with equally many layers in both, that of the vision model was found, or an AttributeError.
    "git": ("GitForCausalLM", "git", {**TEXT, "vision_config": VISION}),
    "git, wide": ("GitForCausalLM", "git", {**TEXT, "vision_config": WIDE}),
    "git, other": ("GitForCausalLM", "git", {**TEXT, "num_hidden_layers": 3, "vision_config": VISION}),
    "llava": (
        "LlavaForConditionalGeneration",
        "llava",
        {"text_config": LLAMA, "vision_config": {**VISION, **CLIP}, "image_token_index": 96},
    ),
    "llava, wide": (
        "LlavaForConditionalGeneration",
        "llava",
        {"text_config": LLAMA, "vision_config": {**WIDE, **CLIP}, "image_token_index": 96},
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        {"text_config": GEMMA, "vision_config": {**VISION, **SIGLIP}, "image_token_index": 96, "projection_dim": 32},
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "gemma3",
        {
            "text_config": {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8},
            "vision_config": {**WIDE, **SIGLIP},
            "mm_tokens_per_image": 4,
            "image_token_index": 96,
        },
    ),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "qwen2_vl", QWEN2_VL),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        "idefics3",
        {"text_config": LLAMA, "vision_config": VISION, "image_token_id": 96, "scale_factor": 1},
    ),
    # Regression: masks, positions or choices of experts that a forward reads as numbers were refused, since models are
    # looked at without weights.
    "bart": ("BartForCausalLM", "bart", ENCODER_DECODER),
    "biogpt": ("BioGptForCausalLM", "biogpt", TEXT),
    "marian": ("MarianForCausalLM", "marian", {**ENCODER_DECODER, "decoder_vocab_size": VOCABULARY}),
    "jetmoe": (
        "JetMoeForCausalLM",
        "jetmoe",
        {**TEXT, "num_key_value_heads": 4, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 1},
    ),
    "dynamic rope": (
        "LlamaForCausalLM",
        "llama",
        {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mamba": ("MambaForCausalLM", "mamba", STATES),
    "mamba2": ("Mamba2ForCausalLM", "mamba2", {**STATES, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "falcon_mamba": ("FalconMambaForCausalLM", "falcon_mamba", STATES),
    # Regression: it sends its ids to where the weights of the embeddings are, which other stages do not have.
    "llama4": (
        "Llama4ForCausalLM",
        "llama4_text",
        {**GROUPED, "intermediate_size_mlp": 64, "num_local_experts": 2, "interleave_moe_layer_step": 1},
    ),
}


@pytest.fixture(scope="module", params=SPLIT)
def halves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[StageModel]]:
    """Return a model as it is loaded from its folder, and its two stages."""
    architecture, model_type, fields = SPLIT[request.param]
    config = AutoConfig.for_model(model_type, **fields, architectures=[architecture])
    torch.manual_seed(0)
    model = model_class(config)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    unsplit = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    top = len(osp.profile(folder, prompt_tokens=PROMPT).layers)
    return unsplit, [StageModel.load(folder, 0, 2), StageModel.load(folder, 2, top)]


@pytest.mark.parametrize("padding", [0, 3])
def test_two_stages_generate_what_the_unsplit_model_does(halves: tuple[Any, list[StageModel]], padding: int) -> None:
    unsplit, stages = halves
    ids = torch.randint(3, 90, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    expected = unsplit.generate(
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(pad_token_id=0, eos_token_id=2),
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    caches = [stage.new_cache() for stage in stages]
    x = ids
    for step in range(STEPS):
        hidden = stages[0].forward(x, mask, caches[0])
        logits = stages[1].forward(hidden, mask, caches[1])
        torch.testing.assert_close(logits, expected.logits[step], rtol=1e-4, atol=1e-4)
        x = expected.sequences[:, PROMPT + step, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("zamba2", {**TEXT, "layers_block_type": ["mamba", "hybrid"]}, "layer 1 takes more than the hidden state"),
        ("clip", {"text_config": TEXT, "vision_config": VISION}, "its forward fails"),
        ("blip", {"text_config": TEXT, "vision_config": VISION}, "You have to specify pixel_values"),
        ("seamless_m4t", {}, "it generates in a loop of its own"),
    ],
)
def test_what_cannot_be_split_is_refused_at_profile(model_type: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^\w+ cannot be split into stages: .*{reason}"):
        osp.profile(AutoConfig.for_model(model_type, **fields), prompt_tokens=PROMPT)


def test_a_layout_is_found_once_wherever_the_model_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server that forks workers finds it for all of them, and may know the model by another path.
    save_tiny_model(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layouts, "_LAYOUTS", {})
    found = []
    find = layouts._find_layout
    monkeypatch.setattr(layouts, "_find_layout", lambda config: found.append(config) or find(config))
    same = [layouts.find_layout(read_config(path)) for path in (tmp_path / "model", "model", "link")]
    assert len(found) == 1
    assert same[0] == same[1] == same[2]
    assert layouts.knows_layout(read_config("model"))
    save_tiny_model(tmp_path / "deeper", num_hidden_layers=6)
    assert not layouts.knows_layout(read_config("deeper"))
    assert layouts.find_layout(read_config("deeper")).layer_count == 6
