"""Layers that the core computes: what transformers' own forward gives, only where they have its form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import orbitsplit as osp
from orbitsplit._backend import use_backend
from orbitsplit._models.fused_layers import FusedLayer, fuse_layers
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import LAYERS, save_tiny_model, tiny_prompts

# Rounding of activations to 16 bits, 2^-15.9 of the largest of a group, through four layers whose logits reach 10.
CLOSE = {"rtol": 0.0, "atol": 5e-3}
SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 16, "sliding_window": 6},
    "qwen2": {"hidden_size": 64},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 16},
}
# Scores are capped, keys and values are one matrix, experts are chosen, half a head is too short for a vector.
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16},
    "phi3": {"hidden_size": 64},
    "mixtral": {"head_dim": 16},
    "gpt2": {},
    "llama": {"head_dim": 8},
}


def converted(folder: Path, family: str, **changes: Any) -> Path:
    save_tiny_model(folder / "float", family, **changes)
    return osp.convert(folder / "float", folder / "int8")


def fused(stage: StageModel) -> list[nn.Module]:
    return [layer for layer in stage.transformer_layers if isinstance(vars(layer).get("forward"), FusedLayer)]


@pytest.fixture(scope="module", params=SUPPORTED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp(request.param), request.param, **SUPPORTED[request.param])


def logits(forward: Any, ids: Tensor, mask: Tensor, steps: int) -> list[Tensor]:
    """Return the logits of a prompt and of greedy tokens behind it."""
    results = [forward(ids, mask)]
    for _ in range(steps):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
        results.append(forward(results[-1].argmax(-1, keepdim=True), mask))
    return results


def own_forward(path: Path) -> Any:
    """Return transformers' forward of the same quantised model, token by token."""
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    cache = None

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        nonlocal cache
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.inference_mode():
            output = whole(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache = output.past_key_values
        return output.logits[:, -1]

    return forward


@pytest.mark.parametrize("lengths", [(9,), (40, 40, 40), (9, 5, 2)])
def test_logits_of_steps_are_those_of_transformers(model: Path, lengths: tuple[int, ...]) -> None:
    stage = StageModel.load(model, 0, LAYERS + 2)
    assert len(fused(stage)) == LAYERS
    ids, mask = tiny_prompts(lengths)
    cache = stage.new_cache()
    found = logits(lambda x, seen: stage.forward(x, seen, cache), ids, mask, steps=9)
    expected = logits(own_forward(model), ids, mask, steps=9)
    for of_stage, of_whole in zip(found, expected, strict=True):
        torch.testing.assert_close(of_stage, of_whole, **CLOSE)


@pytest.mark.parametrize("family", OTHERS)
def test_other_layers_keep_their_own_forward(family: str, tmp_path: Path) -> None:
    stage = StageModel.load(converted(tmp_path, family, **OTHERS[family]), 0, LAYERS + 2)
    assert fused(stage) == []


def test_float_layers_keep_their_own_forward(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "llama", head_dim=16)
    assert fused(StageModel.load(tmp_path, 0, LAYERS + 2)) == []


def test_the_fallback_leaves_layers_to_torch(tmp_path: Path) -> None:
    path = converted(tmp_path, "llama", head_dim=16)
    with use_backend("numba"):
        assert fused(StageModel.load(path, 0, LAYERS + 2)) == []


def test_forwards_that_the_core_does_not_compute_are_the_layer_s_own(model: Path) -> None:
    layer = fused(StageModel.load(model, 0, LAYERS + 2))[0]
    forward = vars(layer)["forward"]
    size, hidden = forward._head_size, forward._hidden_size
    x, angles = torch.ones(1, 1, hidden), torch.ones(1, 1, size)
    seen = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    with torch.inference_mode():
        assert forward._takes(x, None, angles)
        assert forward._takes(x, seen, angles)
        assert not forward._takes(x.bfloat16(), None, angles)
        assert not forward._takes(x.to("meta"), None, angles)
        assert not forward._takes(x, seen.float(), angles)
        assert not forward._takes(x, seen.expand(1, 2, 1, 4), angles)
        assert not forward._takes(x, None, angles[..., : size // 2])
        assert not forward._takes(x, None, angles.expand(3, 1, 1, size))
        assert not forward._takes(x.expand(97, 1, hidden), None, angles)
    assert not forward._takes(x, None, angles)  # where gradients are wanted


def test_a_layer_that_computes_something_else_keeps_its_own_forward(tmp_path: Path) -> None:
    path = converted(tmp_path, "llama", head_dim=16)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    layers = whole.model.layers
    own = layers[1].self_attn.forward
    layers[1].self_attn.forward = lambda *args, **kwargs: (2 * own(*args, **kwargs)[0], None)
    layers[2].mlp.act_fn = nn.ReLU()
    assert fuse_layers(layers) == LAYERS - 2
    assert "forward" not in vars(layers[1])
    assert "forward" not in vars(layers[2])


def test_more_tokens_than_pay_are_left_to_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageModel.load(model, 0, LAYERS + 2)
    rows: list[int] = []
    for layer in fused(stage):
        forward = vars(layer)["forward"]
        monkeypatch.setattr(
            forward, "_own", lambda x, own=forward._own, **kwargs: rows.append(x.shape[1]) or own(x, **kwargs)
        )
    for tokens in (96, 97):
        ids, mask = tiny_prompts((tokens,))
        stage.forward(ids, mask, stage.new_cache())
    assert rows == [97] * LAYERS
