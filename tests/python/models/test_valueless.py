"""Models without the values of their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from orbitsplit._models.valueless import build_unfilled

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give new tensors memory in which numbers are left that no weight of a new model has."""
    empty = torch.empty

    def dirty(*args: Any, **options: Any) -> torch.Tensor:
        made = empty(*args, **options)
        return made.fill_(5.0) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", dirty)


@pytest.mark.usefixtures("used_memory")
@pytest.mark.parametrize("model_type", ["vit", "bert", "llama"])
def test_weights_are_known_whatever_is_in_their_memory(model_type: str) -> None:
    # Vision transformers draw from a normal distribution until all numbers are within limits, which these never are.
    config = AutoConfig.for_model(model_type, **SIZES)
    model = build_unfilled(config)
    assert all(torch.all(parameter == torch.tensor(0.01)) for parameter in model.parameters())


@pytest.mark.usefixtures("used_memory")
def test_limits_without_zero_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []

    def within_limits(linear: torch.nn.Linear) -> None:
        drawn.append(torch.nn.init.trunc_normal_(linear.weight, mean=1.0, std=0.5, a=0.5, b=1.5).detach().clone())

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", within_limits)
    build_unfilled(AutoConfig.for_model("llama", **SIZES))
    assert drawn
    assert all(((weight >= 0.5) & (weight <= 1.5)).all() for weight in drawn)


@pytest.mark.parametrize("model_type", ["bert", "llama", "vit"])
def test_no_weight_is_drawn(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **SIZES)
    before = torch.get_rng_state()
    build_unfilled(config)
    assert torch.equal(torch.get_rng_state(), before)
