"""Generation with guesses: the text of transformers' generate, greedy and sampled, in fewer laps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

import orbitsplit as osp
from orbitsplit import LinkConditions, Plan
from orbitsplit.runtime import Pipeline
from tests.support.tiny_models import LAYERS, load_unsplit, save_tiny_model, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

NEW = 60
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.3, "top_k": 0, "top_p": 1.0}
CONDITIONS = LinkConditions.from_toml("""
[[links]]
between = ["node 0", "node 1"]
corrupt = 0.1
""")


def prompt_of(rows: int = 1) -> Tensor:
    """Prompts whose second half repeats the first, so that there is something to look up."""
    ids = torch.cat([tiny_prompts((9,), seed=seed)[0] for seed in range(rows)])
    return torch.cat([ids, ids], dim=1)


def transformers_text(model: PreTrainedModel, prompt: Tensor, seed: int | None) -> Tensor:
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    if seed is None:
        options["do_sample"] = False
    else:
        torch.manual_seed(seed)
        options.update(SAMPLED)
    tokens: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return tokens


def laps(pipe: Pipeline) -> int:
    assert pipe.last_run is not None
    return len({event.step for event in pipe.last_run.trace.events if event.kind == "compute" and event.step > 0})


@pytest.mark.parametrize(
    ("family", "cuts"),
    [("llama", [1, 3]), ("gemma3_text", [1, 3]), ("gpt2", [2]), ("qwen3", [2]), ("bloom", [2]), ("mixtral", [2])],
)
def test_the_text_is_that_of_generate_in_fewer_laps(family: str, cuts: list[int], tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    model, prompt = load_unsplit(tmp_path), prompt_of()
    saved = 0
    with Pipeline(Plan.manual(cuts, LAYERS), tmp_path, conditions=CONDITIONS) as pipe:
        for seed in (None, 1, 2):
            options = {} if seed is None else {**SAMPLED, "seed": seed}
            tokens = pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=(), prompt_lookup_num_tokens=6, **options)
            assert torch.equal(tokens, transformers_text(model, prompt, seed))
            saved += NEW - 1 - laps(pipe)
    # How many are sent depends on how long laps take; this family repeats itself most of the time.
    assert saved > 0 or family != "gemma3_text"


@pytest.mark.parametrize("codec", ["int8", "int4", "topk"])
def test_frames_that_lose_something_lose_the_same_with_guesses(codec: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3_text")
    prompt = prompt_of()
    with Pipeline(Plan.manual([1, 3], LAYERS, codecs=[codec, codec]), tmp_path) as pipe:
        expected = pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=())
        tokens = pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=(), prompt_lookup_num_tokens=6)
        assert torch.equal(tokens, expected)
        assert laps(pipe) < NEW - 1


@pytest.mark.parametrize("codec", ["int8", "int4", "topk", "bf16", "lossless_bf16"])
def test_nine_positions_in_a_frame_are_nine_frames_of_one(codec: str) -> None:
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1))
    x = x.to(torch.bfloat16) if codec == "lossless_bf16" else x
    together = osp.decompress(osp.compress(x, codec=codec), framework="torch")
    apart = [
        osp.decompress(osp.compress(one.contiguous(), codec=codec), framework="torch") for one in x.split(1, dim=1)
    ]
    assert torch.equal(together, torch.cat(apart, dim=1))


def test_rows_in_micro_batches_of_their_own_each_have_guesses(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3_text")
    model, prompts = load_unsplit(tmp_path), prompt_of(2)
    plan = Plan.manual([1, 3], LAYERS)
    with Pipeline(replace(plan, workload=osp.Workload(micro_batches=2)), tmp_path) as pipe:
        tokens = pipe.generate(prompts, max_new_tokens=NEW, eos_token_id=(), prompt_lookup_num_tokens=6)
    rows = [transformers_text(model, prompt, None) for prompt in prompts.split(1)]
    assert torch.equal(tokens, torch.cat(rows))


def test_as_many_guesses_as_the_plan_says_unless_the_call_says_otherwise(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3_text")
    prompt = prompt_of()
    with Pipeline(replace(Plan.manual([1, 3], LAYERS), draft_tokens=6), tmp_path) as pipe:
        tokens = pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=())
        assert laps(pipe) < NEW - 1
        assert torch.equal(
            pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=(), prompt_lookup_num_tokens=0), tokens
        )
        assert laps(pipe) == NEW - 1
        two = pipe.generate(prompt_of(2), max_new_tokens=4, eos_token_id=())  # two rows in one group: none
        assert two.shape[1] == prompt.shape[1] + 4


def test_a_row_ends_at_its_end_of_sequence_token_among_guesses_and_two_rows_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gemma3_text")
    prompt = prompt_of()
    with Pipeline(Plan.manual([1, 3], LAYERS), tmp_path) as pipe:
        whole = pipe.generate(prompt, max_new_tokens=NEW, eos_token_id=())
        new = whole[0, prompt.shape[1] :].tolist()
        for end in set(new[5:]):
            stop = prompt.shape[1] + new.index(end) + 1
            options: dict[str, Any] = {"eos_token_id": end, "pad_token_id": 0, "prompt_lookup_num_tokens": 6}
            assert torch.equal(pipe.generate(prompt, max_new_tokens=NEW, **options), whole[:, :stop])
        with pytest.raises(ValueError, match="needs micro-batches of one row each, and 2"):
            pipe.generate(prompt_of(2), max_new_tokens=NEW, prompt_lookup_num_tokens=6)


def test_a_model_with_states_has_no_guesses(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        block_multiple_of=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    prompt = torch.arange(1, 10)[None]
    with Pipeline(Plan.manual([1], 2), tmp_path) as pipe:
        with pytest.raises(ValueError, match="layers of this one keep a state"):
            pipe.generate(prompt, max_new_tokens=4, prompt_lookup_num_tokens=2)
        assert pipe.generate(prompt, max_new_tokens=4, eos_token_id=()).shape == (1, 13)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (33, ValueError), (2.5, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_other_numbers_of_guesses_are_refused_by_name(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="prompt_lookup_num_tokens"):
        osp.GenerationOptions(max_new_tokens=4, prompt_lookup_num_tokens=value)  # type: ignore[arg-type]
