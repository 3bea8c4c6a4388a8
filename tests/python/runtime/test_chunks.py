"""Prompts in chunks: transformers' tokens for every family, whatever the length of a chunk; others take them whole."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from orbitsplit import LinkConditions, Plan
from orbitsplit._models.stage import StageModel
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages.groups import Group, packed_mask
from tests.support.stage_chain import Chain
from tests.support.tiny_models import FAMILIES, HIDDEN, LAYERS, load_unsplit, save_tiny_model, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

NEW = 6
CONDITIONS = """
[[links]]
between = ["node 0", "node 1"]
corrupt = 0.2
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_chunks_give_the_tokens_of_generate(family: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    # Some prompts begin within the second and third chunk; windows (6 tokens) end within chunks and between them.
    prompts, mask = tiny_prompts((17, 9, 2))
    judge = load_unsplit(tmp_path)
    expected = judge.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    stages = [StageModel.load(tmp_path, a, b) for a, b in pairwise((0, 2, 4, LAYERS + 2))]
    assert all(stage.runs_chunks() for stage in stages)
    for chunk_tokens in (1, 5, 8, 17):
        group = Group(1, *prompts.shape, packed_mask(mask), NEW, chunk_tokens=chunk_tokens)
        tokens = Chain(stages).run(group, prompts, NEW)
        assert torch.equal(torch.cat([prompts, tokens], dim=1), expected), f"chunks of {chunk_tokens}"


@pytest.mark.parametrize(
    ("tokens", "chunk_tokens", "replayed", "expected"),
    [
        (9, None, 0, [range(9)]),
        (9, 9, 0, [range(9)]),
        (9, 4, 0, [range(4), range(4, 8), range(8, 9)]),
        (8, 4, 0, [range(4), range(4, 8)]),
        (9, 4, 3, [range(4), range(4, 9)]),  # three tokens of nine are replayed, behind the last chunk of the prompt
        (9, 100, 3, [range(9)]),
    ],
)
def test_chunks_cover_the_prompt_and_end_with_step_0(
    tokens: int, chunk_tokens: int | None, replayed: int, expected: list[range]
) -> None:
    group = Group(1, 1, tokens, None, 5, chunk_tokens=chunk_tokens, replayed=replayed)
    assert [group.positions(step) for step in range(group.first_step, 1)] == expected
    assert group.positions(1) == range(tokens, tokens + 1)
    assert group.positions(4) == range(tokens + 3, tokens + 4)


def test_a_chunk_has_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="chunk_tokens is 0, must be at least 1"):
        Group(1, 1, 4, None, 5, chunk_tokens=0)


TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
STATES: dict[str, dict[str, Any]] = {
    "bamba": {"num_key_value_heads": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    # Its state is in the layers, not in the cache.
    "recurrent_gemma": {"num_key_value_heads": 1, "lru_width": 32, "block_types": ["recurrent", "attention"]},
}


@pytest.mark.parametrize("family", STATES)
def test_models_with_states_run_prompts_as_a_whole(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **TEXT, **STATES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert not StageModel.load(tmp_path, 1, 3).runs_chunks()


def test_chunks_over_a_link_that_flips_bits_give_the_same_text(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3_text")
    prompts, mask = tiny_prompts((17, 9, 2))
    judge = load_unsplit(tmp_path)
    expected = judge.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    plan = replace(Plan.manual([1, 3], LAYERS), chunk_tokens=2)
    with Pipeline(plan, tmp_path, conditions=LinkConditions.from_toml(CONDITIONS)) as pipe:
        for _ in range(3):
            assert torch.equal(pipe.generate(prompts, mask, max_new_tokens=NEW, eos_token_id=()), expected)
        run = pipe.last_run
    assert run is not None
    chunks = 9  # of 17 tokens
    computed = [(event.node, event.step) for event in run.trace.events if event.kind == "compute"]
    assert len(computed) == len(set(computed)) == 3 * (chunks + NEW - 1)
    sent = [event.step for event in run.trace.events if event.kind == "send" and event.node == "node 0"]
    assert set(sent) == set(range(1 - chunks, NEW))
    assert run.links[0].frames == len(sent)
    assert run.links[0].original_bytes == sum(3 * HIDDEN * 4 * (_tokens(step)) for step in sent)


def _tokens(step: int) -> int:
    """Tokens of each row in a step of a prompt of 17 tokens in chunks of two, the last of one."""
    return 2 if step < 0 else 1


def test_a_model_with_states_runs_whole_prompts_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model("lfm2", **TEXT, **STATES["lfm2"])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    prompt = torch.arange(1, 10)[None]
    judge = load_unsplit(tmp_path)
    expected = judge.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    with (
        caplog.at_level(logging.WARNING, "orbitsplit"),
        Pipeline(Plan.manual([1], 2, chunk_tokens=4), tmp_path) as pipe,
    ):
        assert torch.equal(pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=()), expected)
        assert pipe.last_run is not None
        assert min(event.step for event in pipe.last_run.trace.events) == 0
    assert "cannot run prompts in chunks of 4 tokens as planned: they run as a whole" in caplog.text
