"""RMS norms that torch computes: the same bits as the model's own, and only where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orbitsplit._models.fused_norms import fuse_norms
from tests.support.tiny_models import load_unsplit, save_tiny_model, tiny_prompts


class OddRMSNorm(nn.Module):
    """Called as the others are, and another norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_fused_models_are_the_same_bits(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    model = load_unsplit(tmp_path).to(dtype)
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.weight.data.normal_(0.5, 0.5, generator=generator)
    ids, mask = tiny_prompts((40, 7))
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        count = fuse_norms(model)
        fused = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(fused, expected)
    # Below float32 torch rounds elsewhere than the models do.
    assert count == (len(norms) if dtype == torch.float32 else 0)


def test_another_norm_of_that_name_keeps_its_own_forward() -> None:
    model = nn.Sequential(OddRMSNorm(), nn.LayerNorm(8), nn.RMSNorm(8))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    assert fuse_norms(model) == 0
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("outside", [True, False])
def test_where_and_which_epsilon_is_added_shows(outside: bool) -> None:
    class OtherEpsilonRMSNorm(OddRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            square = x.pow(2).mean(-1, keepdim=True)
            return self.weight * x / (square.sqrt() + self.eps if outside else (square + 2 * self.eps).sqrt())

    assert fuse_norms(OtherEpsilonRMSNorm()) == 0


def test_inputs_of_another_dtype_are_the_models_own() -> None:
    class PlainRMSNorm(OddRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            x = hidden_states.float()
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)).to(hidden_states.dtype)

    norm = PlainRMSNorm()
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    expected = {dtype: norm(x.to(dtype)) for dtype in (torch.float32, torch.float16)}
    assert fuse_norms(norm) == 1
    for dtype, values in expected.items():
        assert torch.equal(norm(x.to(dtype)), values)
        assert torch.equal(norm(hidden_states=x.to(dtype)), values)


def test_a_norm_without_weights_in_memory_is_left_alone() -> None:
    assert fuse_norms(OddRMSNorm().to("meta")) == 0
