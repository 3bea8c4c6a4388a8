"""Experts with quantized weights: transformers' own forward on the dequantised weights is the judge."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

import orbitsplit as osp
from orbitsplit._backend import use_backend
from orbitsplit._models.experts import check_experts
from orbitsplit._models.quantized import quantized_matrices
from orbitsplit._models.stage import StageModel
from orbitsplit._models.valueless import build_on_meta
from tests.judges.weights import dequantised
from tests.support.tiny_models import LAYERS, load_unsplit, save_tiny_model, tiny_prompts

# Rounding of activations to 16 bits, 2^-15.9 of the largest of a group, through four layers whose logits reach 10.
CLOSE = {"rtol": 0.0, "atol": 5e-3}
# Gated experts; the same with a matrix that has too few columns; transposed ones with biases and a gate of their own.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {"moe_intermediate_size": 48},
    "gpt_oss": {},
}
ROW_BYTES = {"int8": lambda columns: columns // 32 * 34, "int4": lambda columns: columns // 32 * 18 + 8}


@pytest.fixture(scope="module", params=FAMILIES)
def floats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param) / "float"
    save_tiny_model(path, request.param, **FAMILIES[request.param])
    return path


@pytest.fixture(scope="module", params=["int8", "int4"])
def converted(request: pytest.FixtureRequest, floats: Path) -> Path:
    return osp.convert(floats, floats.with_name(request.param), weights=request.param)


def values_of(folder: Path) -> dict[str, Tensor]:
    """Return the quantized weights as the bytes of the files say, [..., outputs, inputs], by the names of tensors."""
    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    found = {}
    for name, data in tensors.items():
        if data.dtype == "uint8":
            columns = 32 * data.shape[-1] // 34 if folder.name == "int8" else 32 * (data.shape[-1] - 8) // 18
            rows = data.reshape(-1, data.shape[-1])
            values = torch.from_numpy(dequantised(rows, folder.name, (len(rows), columns))).float()
            found[name] = values.reshape(*data.shape[:-1], columns)
    return found


@pytest.fixture(scope="module")
def judge(floats: Path, converted: Path) -> PreTrainedModel:
    model = load_unsplit(floats)
    parameters = dict(model.named_parameters())
    transposed = model.config.model_type == "gpt_oss"
    with torch.no_grad():
        for name, values in values_of(converted).items():
            parameter = parameters[name]
            values = values.transpose(1, 2) if parameter.dim() == 3 and transposed else values
            error = (values - parameter).norm() / parameter.norm()
            assert error < (0.01 if converted.name == "int8" else 0.12), name
            parameter.copy_(values)
    return model


def compare(folder: Path, judge: PreTrainedModel, cuts: tuple[int, ...]) -> None:
    """Compare logits behind a prompt with more rows than are multiplied with quantized weights, and behind a step."""
    stages = [StageModel.load(folder, start, stop) for start, stop in pairwise(cuts)]
    caches = [stage.new_cache() for stage in stages]
    ids, mask = tiny_prompts((150, 140))
    x = ids
    for _ in range(2):
        with torch.inference_mode():
            expected = judge(input_ids=ids, attention_mask=mask).logits[:, -1]
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward(x, mask, cache)
        torch.testing.assert_close(x, expected, **CLOSE)
        x = expected.argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, x], dim=1), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)


@pytest.mark.parametrize("cuts", [(0, LAYERS + 2), (0, 1, 3, LAYERS + 2)])
def test_stages_compute_what_the_dequantised_experts_do(
    converted: Path, judge: PreTrainedModel, cuts: tuple[int, ...]
) -> None:
    compare(converted, judge, cuts)


def test_numba_computes_the_same(converted: Path, judge: PreTrainedModel) -> None:
    with use_backend("numba"):
        compare(converted, judge, (0, LAYERS + 2))


def test_experts_are_counted_in_bytes_of_their_weights(floats: Path, converted: Path) -> None:
    profile, before = osp.profile(converted, prompt_tokens=8), osp.profile(floats, prompt_tokens=8)
    stage = StageModel.load(converted, 2, 3)
    assert stage.weight_bytes == profile.layers[2].weight_bytes < before.layers[2].weight_bytes
    assert profile.layers[2].prefill_flop == before.layers[2].prefill_flop
    experts = {name: weight for name, weight in stage.model.named_parameters() if weight.dim() == 3}
    whole = dict(load_unsplit(floats).named_parameters())
    transposed = stage.config.model_type == "gpt_oss"
    for name, weight in experts.items():
        count, rows, columns = whole[name].transpose(1, 2).shape if transposed else whole[name].shape
        is_quantized = columns % 32 == 0
        assert weight.nbytes == count * rows * (ROW_BYTES[converted.name](columns) if is_quantized else 4 * columns)
    assert any(weight.dtype is torch.uint8 for weight in experts.values())


def test_a_pattern_gives_experts_another_format(floats: Path, tmp_path: Path) -> None:
    osp.convert(floats, tmp_path / "mixed", weights="int4", modules={"*.experts.gate_up_proj": "int8"})
    stage = StageModel.load(tmp_path / "mixed", 1, 2)
    formats = {name.rpartition(".layers.0.")[2]: weights.format for name, weights in quantized_matrices(stage.model)}
    assert formats["mlp.experts.gate_up_proj"] == "int8"
    assert formats["self_attn.q_proj"] == formats.get("mlp.experts.down_proj", "int4") == "int4"


def test_experts_that_are_not_known_are_refused_by_name() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "vocab_size": 97}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = build_on_meta(AutoConfig.for_model("llama4_text", num_local_experts=2, **sizes, **heads))
    with pytest.raises(ValueError, match="Llama4ForCausalLM cannot be quantized: how its Llama4TextExperts compute"):
        check_experts(model)
    check_experts(nn.Linear(32, 32))
