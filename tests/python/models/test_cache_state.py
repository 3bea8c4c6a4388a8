"""The state of a cache, taken out layer by layer and put into another one, goes on with the same bits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MambaConfig

from orbitsplit._models.cache_state import (
    cache_of,
    checked_state,
    has_movable_layers,
    layer_bytes,
    layer_state,
)
from orbitsplit._models.kv_cache import growing_cache, rewind

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
}
CONFIGS = {
    "plain": LlamaConfig(**SIZES),
    "sliding": Gemma3TextConfig(**SIZES, sliding_window=5),
    "recurrent": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, state_size=4),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("spare_tokens", [0, 2])
def test_a_forward_goes_on_behind_a_moved_cache(kind: str, spare_tokens: int) -> None:
    torch.manual_seed(0)
    config = CONFIGS[kind]
    model = AutoModelForCausalLM.from_config(config).eval()
    argument = "cache_params" if kind == "recurrent" else "past_key_values"
    ids = torch.randint(0, 64, (2, 12))

    def forward(x: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = model(x, **{argument: cache}, use_cache=True).logits
        return logits

    with torch.inference_mode():
        cache = growing_cache(config, spare_tokens=spare_tokens)
        forward(ids[:, :8], cache)
        if spare_tokens and kind != "recurrent":
            forward(ids[:, 9:11], cache)  # wrong guesses
            rewind(cache, 8)
        states = {}
        for index, layer in enumerate(cache.layers):
            state = layer_state(layer)
            values = json.loads(json.dumps(state.values))
            states[index] = checked_state({name: one.clone() for name, one in state.tensors.items()}, values)
        moved = cache_of(growing_cache(config, spare_tokens=spare_tokens), states, rows=2, tokens=8)
        for place in range(8, 12):
            x = ids[:, place : place + 1]
            assert torch.equal(forward(x, moved), forward(x, cache))
    assert has_movable_layers(cache, 3)
    assert not has_movable_layers(cache, 4)


def test_the_bytes_of_layers_are_counted() -> None:
    for kind, expected in (("plain", [100 * 128] * 3), ("sliding", [4 * 128] * 3)):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
        cache = growing_cache(CONFIGS[kind])
        model(torch.zeros(1, 2, dtype=torch.long), past_key_values=cache, use_cache=True)
        assert [layer_bytes(layer, 2).of(1, 100) for layer in cache.layers] == expected
        assert [layer_bytes(layer, 2).of(3, 1) for layer in cache.layers] == [3 * 128] * 3


def test_states_that_no_layer_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a layer has no states \['weights'\]"):
        checked_state({"weights": torch.zeros(1)}, {})
