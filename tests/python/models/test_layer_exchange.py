"""Layers that take more than the hidden state of the one before: what of it crosses a cut, and where none is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, GenerationConfig, PreTrainedConfig

import orbitsplit as osp
from orbitsplit._models.architecture import Layout
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.own_state import InputsSoFar, OwnState
from orbitsplit._models.source import model_class
from orbitsplit._models.stage import StageModel
from orbitsplit._models.twin import Verdict, try_split

TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
GPT1 = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "pad_token_id": 0}
# By family: its class, and what its configuration needs.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "roformer": ("RoFormerForCausalLM", {**TEXT, "embedding_size": 32, "is_decoder": True}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", GPT1),
    "glm_moe_dsa": (
        "GlmMoeDsaForCausalLM",
        {
            **TEXT,
            **LATENT,
            "index_topk": 4,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "indexer_types": ["full", "shared", "full", "shared"],
        },
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        {
            **TEXT,
            **LATENT,
            "num_layers": 3,
            "head_dim": 8,
            "num_hidden_layers": 6,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 16,
            "zero_expert_num": 1,
            "moe_topk": 2,
        },
    ),
    "minimax": (
        "MiniMaxForCausalLM",
        {
            **TEXT,
            "head_dim": 8,
            "num_local_experts": 4,
            "block_size": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 4,
            "rescale_every": 2,
            "pad_token_id": 0,
        },
    ),
    "prophetnet": (
        "ProphetNetForCausalLM",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_encoder_layers": 3,
            "num_decoder_layers": 3,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
            "is_decoder": True,
            "is_encoder_decoder": False,
            "pad_token_id": 0,
        },
    ),
    "mllama_text_model": (
        "MllamaForCausalLM",
        {**TEXT, "vocab_size": 89, "cross_attention_layers": [1, 3]},
    ),
    "zaya": ("ZayaForCausalLM", {**TEXT, "head_dim": 8, "num_experts": 4, "router_hidden_size": 16}),
}


def _config(family: str) -> PreTrainedConfig:
    architecture, fields = CLASSES[family]
    return AutoConfig.for_model(family, **fields, architectures=[architecture])


@pytest.mark.parametrize("family", CLASSES)
def test_a_class_is_exact_in_stages(family: str) -> None:
    assert try_split(_config(family)) == Verdict("exact")


@pytest.mark.parametrize("family", CLASSES)
def test_a_profile_counts_every_layer_of_the_model_once(family: str) -> None:
    config = _config(family)
    layout = find_layout(config)
    profile = osp.profile(config, prompt_tokens=5)
    assert len(profile.layers) == layout.layer_count + 2
    assert profile.hidden_size == layout.hidden_size
    assert sum(stop - start for start, stop in pairwise(layout.bounds)) == layout.bounds[-1]


ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.mark.parametrize(
    ("architecture", "model_type", "fields", "everywhere"),
    [
        (
            "BeitModel",
            "beit",
            {"image_size": 8, "patch_size": 2, "use_shared_relative_position_bias": True},
            {"shared_position_bias"},
        ),
        ("MPNetModel", "mpnet", {"vocab_size": 97}, {"encoder.relative_attention_bias"}),
        ("DebertaV2Model", "deberta-v2", {"vocab_size": 97, "relative_attention": True}, set()),
    ],
)
def test_encoders_with_biases_of_relative_positions_are_exact_in_stages(
    architecture: str, model_type: str, fields: dict[str, Any], everywhere: set[str]
) -> None:
    config = AutoConfig.for_model(model_type, **ENCODER, **fields, architectures=[architecture])
    assert try_split(config) == Verdict("exact")
    assert find_layout(config).everywhere == everywhere


def test_layers_that_use_what_an_earlier_one_chose_are_held_together() -> None:
    layout = find_layout(_config("glm_moe_dsa"))
    assert layout.bounds == (0, 0, 2, 4, 4)
    assert _names(layout) == ["embeddings", "layers 0 to 1", "layers 2 to 3", "head"]
    profile = osp.profile(_config("glm_moe_dsa"), prompt_tokens=5)
    assert [layer.name for layer in profile.layers] == _names(layout)


def _names(layout: Layout) -> list[str]:
    return [layout.layer_name(layer) for layer in range(layout.layer_count + 2)]


def test_what_positions_become_is_on_every_stage() -> None:
    layout = find_layout(_config("roformer"))
    assert layout.everywhere == {"roformer.encoder.embed_positions"}
    assert layout.is_plain
    table_bytes = 64 * 8 * 4
    profile = osp.profile(_config("roformer"), prompt_tokens=1)
    assert min(layer.workspace_bytes or 0 for layer in profile.layers) > table_bytes


def test_what_is_handed_on_beside_the_hidden_state_crosses_the_cut() -> None:
    assert find_layout(_config("zaya")).form.width == 32 + 16
    assert find_layout(_config("prophetnet")).form.width == 3 * 32  # of the token, and of the two that are predicted


def test_layers_that_do_not_run_cost_nothing() -> None:
    layout = find_layout(_config("mllama_text_model"))
    assert layout.running == (0, 2)
    flop = [layer.prefill_flop for layer in osp.profile(_config("mllama_text_model"), prompt_tokens=5).layers]
    assert [amount > 0 for amount in flop[1:-1]] == [True, False, True, False]


def test_a_layer_extends_the_layers_of_the_cache_that_it_uses() -> None:
    assert find_layout(_config("longcat_flash")).call.cached == ((0, 1), (2, 3), (4, 5))
    assert find_layout(_config("minimax")).call.cached == ((), (1,), (), (3,))


def test_without_a_cache_a_step_costs_a_text_and_sends_a_token(tmp_path: Path) -> None:
    profile = osp.profile(_config("openai-gpt"), prompt_tokens=20)
    for layer in profile.layers[1:-1]:
        assert layer.decode_flop > layer.prefill_flop
        assert layer.kv_bytes_per_token == 32 * 4
    stages = _stages("openai-gpt", tmp_path)
    cache = stages[1].new_cache()
    assert isinstance(cache, InputsSoFar)
    assert stages[1].forward(torch.zeros(1, 3, 32), torch.ones(1, 3), cache).shape == (1, 97)
    assert stages[1].cache_bytes_per_token() == 32 * 4
    first = stages[0].new_cache()
    stages[0].forward(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3), first)
    assert stages[0].forward(torch.ones(1, 1, dtype=torch.long), torch.ones(1, 4), first).shape == (1, 1, 32)
    assert not any(stage.runs_chunks() or stage.runs_packs() or stage.cache_layers() for stage in stages)


def _stages(family: str, folder: Path) -> list[StageModel]:
    torch.default_generator.manual_seed(0)
    config = _config(family)
    model_class(config)._from_config(config).save_pretrained(folder)
    layers = find_layout(config).layer_count + 2
    return [StageModel.load(folder, 0, 3), StageModel.load(folder, 3, layers)]


def test_rows_that_the_model_itself_mixes_are_refused(tmp_path: Path) -> None:
    stages = _stages("rwkv", tmp_path)
    for stage in (stages[0], StageModel.load(tmp_path, 0, stages[0].layers)):  # which sends on, and which does not
        ids, mask, cache = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4), stage.new_cache()
        assert isinstance(cache, OwnState)
        stage.forward(ids, mask[:, :3], cache)
        with pytest.raises(ValueError, match=r"RwkvForCausalLM mixes the rows of a batch.*run one row at a time"):
            stage.forward(ids[:, :1], mask, cache)


def test_constants_of_the_embeddings_are_known_to_stages_behind_them() -> None:
    assert try_split(_layoutlmv3()) == Verdict("exact")


def test_constants_of_the_embeddings_move_with_a_stage(tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(_layoutlmv3()).save_pretrained(tmp_path)
    model = StageModel.load(tmp_path, 2, 4).model
    assert model.base_model.embeddings.position_ids.device.type == "cpu"
    assert model.to("meta").base_model.embeddings.position_ids.device.type == "meta"


def _layoutlmv3() -> PreTrainedConfig:
    """Return a model that makes what all layers add to their attention of the positions in its embeddings."""
    sizes = {**TEXT, "hidden_size": 48, "coordinate_size": 8, "shape_size": 8, "max_2d_position_embeddings": 64}
    config = AutoConfig.for_model("layoutlmv3", **sizes, visual_embed=False, has_relative_attention_bias=True)
    config.architectures = ["LayoutLMv3ForSequenceClassification"]
    return config


def test_a_text_whose_forward_fails_takes_no_state_of_another(tmp_path: Path) -> None:
    stage, mask = _stages("rwkv", tmp_path)[0], torch.ones(1, 3)
    stage.forward(torch.ones(1, 3, dtype=torch.long), mask, stage.new_cache())
    cache = stage.new_cache()
    with pytest.raises(IndexError):
        stage.forward(torch.full((1, 3), 10**6), mask, cache)
    assert isinstance(cache, OwnState)
    assert cache.value is None


@pytest.mark.parametrize("family", CLASSES)
def test_stages_in_bfloat16_compute_what_one_does(family: str, tmp_path: Path) -> None:
    # Zaya's hidden state is in float32 then, and what its layers return beside it is not.
    layers = _stages(family, tmp_path)[0].layers
    ids = torch.randint(5, 90, (1, 6), generator=torch.Generator().manual_seed(4))

    def outputs(*cuts: int) -> list[Tensor]:
        bounds = pairwise((0, *cuts, layers))
        stages = [StageModel.load(tmp_path, start, stop, dtype=torch.bfloat16) for start, stop in bounds]
        caches = [stage.new_cache() for stage in stages]
        found = []
        for step in range(3):
            x, mask = ids if step == 0 else ids[:, :1], torch.ones(1, 6 + step, dtype=torch.long)
            for stage, cache in zip(stages, caches, strict=True):
                x = stage.forward(x, mask, cache)
            found.append(x)
        return found

    assert all(map(torch.equal, outputs(3), outputs()))


def test_held_layers_have_no_cut_and_plans_know_it(tmp_path: Path) -> None:
    _stages("glm_moe_dsa", tmp_path)
    with pytest.raises(ValueError, match=r"stage \[0, 6\) is not a non-empty range within the model's 4 layers"):
        StageModel.load(tmp_path, 0, 6)
    profile = osp.profile(tmp_path, prompt_tokens=6, measure=True)
    assert all(layer.decode_s is not None and layer.prefill_s for layer in profile.layers[1:])


@pytest.mark.parametrize("family", ["glm_moe_dsa", "openai-gpt", "zaya"])
def test_processes_generate_what_the_model_does(family: str, tmp_path: Path) -> None:
    stages = _stages(family, tmp_path)
    layers = stages[0].layers
    del stages
    ids = torch.randint(5, 90, (1, 6), generator=torch.Generator().manual_seed(3))
    model = model_class(_config(family)).from_pretrained(tmp_path).eval()
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = model.generate(ids, generation_config=settings)
    with osp.Pipeline(osp.Plan.manual(cuts=[1], layers=layers - 2), tmp_path) as pipe:
        assert torch.equal(pipe.generate(ids, generation_config=settings), expected)


def test_a_model_of_which_layers_are_held_together_is_not_calibrated(tmp_path: Path) -> None:
    _stages("glm_moe_dsa", tmp_path)
    with pytest.raises(ValueError, match="hands on more than one hidden state"):
        osp.calibrate(tmp_path, torch.randint(5, 90, (8, 16)), cuts=[1])


def test_a_layer_that_uses_the_embeddings_is_refused_with_the_reason() -> None:
    config = AutoConfig.for_model(
        "zamba2", **{**TEXT, "num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]}
    )
    with pytest.raises(ValueError, match="takes more than the hidden state of the layer before it"):
        find_layout(config)
