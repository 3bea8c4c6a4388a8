"""Steps of several sequences in one forward give what each sequence gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from orbitsplit._models.source import model_class
from orbitsplit._models.stage import StageModel

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
PACKED: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "mistral": {**GROUPED, "sliding_window": 6},
    "gemma3_text": {**GROUPED, "head_dim": 16, "sliding_window": 6},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": SMALL,
    "mixtral": GROUPED,
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
}
# Attention by other functions of transformers, or with more than positions: each sequence has a forward of its own.
ALONE: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "gemma2": {**GROUPED, "head_dim": 16, "sliding_window": 6},
    "gptj": {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
}
PROMPTS, NEW = (5, 23, 11, 1), 9


def stages_of(kind: str, options: dict[str, Any], folder: Path) -> tuple[Any, list[StageModel]]:
    """Return a model with large random weights, and three stages of it."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **options)
    model = model_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    model.save_pretrained(folder)
    return model, [StageModel.load(folder, start, stop) for start, stop in ((0, 2), (2, 3), (3, 5))]


@pytest.mark.parametrize("kind", PACKED)
def test_sequences_that_join_and_leave_get_what_the_whole_model_gives(kind: str, tmp_path: Path) -> None:
    model, stages = stages_of(kind, PACKED[kind], tmp_path)
    assert all(stage.runs_packs() for stage in stages)
    texts = [torch.randint(1, 97, (size + NEW,)) for size in PROMPTS]
    with torch.inference_mode():
        expected = [model(text[None]).logits[0] for text in texts]
    caches = [[stage.new_cache() for _ in texts] for stage in stages]
    done = [0] * len(texts)
    # Prompts whole, in parts and beside steps of others; one, two and three tokens at once; some leave early.
    for sizes in ((5, 0, 4, 0), (1, 20, 0, 1), (2, 1, 7, 1), (1, 2, 0, 3), (0, 1, 1, 1), (3, 0, 1, 0)):
        running = [k for k, size in enumerate(sizes) if size]
        x: Tensor = torch.cat([texts[k][done[k] : done[k] + sizes[k]] for k in running])[None]
        for stage, own in zip(stages, caches, strict=True):
            x = stage.forward_packed(
                x,
                [own[k] for k in running],
                [done[k] for k in running],
                [sizes[k] for k in running],
                logits_at=range(x.shape[1]),
            )
        for k, logits in zip(running, torch.split(x, [sizes[k] for k in running]), strict=True):
            torch.testing.assert_close(logits, expected[k][done[k] : done[k] + sizes[k]], rtol=2e-4, atol=2e-4)
            done[k] += sizes[k]


@pytest.mark.parametrize("kind", ALONE)
def test_models_whose_attention_is_not_known_run_each_sequence_alone(kind: str, tmp_path: Path) -> None:
    _, stages = stages_of(kind, ALONE[kind], tmp_path)
    assert not any(stage.runs_packs() for stage in stages)


def test_a_forward_after_a_packed_one_runs_as_before(tmp_path: Path) -> None:
    _, stages = stages_of("gemma3_text", PACKED["gemma3_text"], tmp_path)
    prompt, mask = torch.randint(1, 97, (1, 8)), torch.ones(1, 8, dtype=torch.long)
    before = stages[0].forward(prompt, mask, stages[0].new_cache())
    stages[0].forward_packed(prompt, [stages[0].new_cache()] * 1, [0], [8])
    assert torch.equal(stages[0].forward(prompt, mask, stages[0].new_cache()), before)
