"""Pipelines with an assistant: the text of transformers' generate over bad links and losses, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from orbitsplit.runtime._parent import pipeline as pipeline_module
from orbitsplit.runtime._parent.session import cache_tokens, check_memory
from tests.support.fake_workers import fake_pipeline, ready
from tests.support.tiny_models import LAYERS, save_near_model, save_tiny_model, tiny_config, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

NEW, MOST = 40, 5
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0}
ASKED: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": (), "num_assistant_tokens": MOST}
PROMPTS = torch.cat([tiny_prompts((9,), seed=seed)[0] for seed in range(2)])
CONDITIONS = LinkConditions.from_toml("""
[[links]]
between = ["node 0", "node 1"]
corrupt = 0.1
""")


@dataclass(frozen=True)
class Models:
    """Folders of a model and of one with nearly its weights; the whole model."""

    model: Path
    near: Path
    judge: PreTrainedModel

    def text(self, rows: Tensor, seed: int | None = None) -> Tensor:
        """Return what transformers' generate makes of each row on its own; with a seed sampled."""
        options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
        found = []
        for row in torch.split(rows, 1):
            if seed is not None:
                torch.manual_seed(seed)
                options.update(SAMPLED)
            found.append(self.judge.generate(row, attention_mask=torch.ones_like(row), **options))
        return torch.cat(found)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    judge = save_tiny_model(folder / "model", "gemma3_text")
    save_near_model(folder / "near", judge)
    return Models(folder / "model", folder / "near", judge)


def slow_plan() -> Plan:
    """Two stages so far from each other that guesses pay, for two groups."""
    plan = Plan.manual([2], LAYERS)
    links = tuple(replace(link, latency_s=0.02) for link in plan.links)
    return replace(plan, links=links, return_latency_s=0.02, workload=osp.Workload(micro_batches=2))


@pytest.fixture(scope="module")
def pipe(models: Models) -> Iterator[Pipeline]:
    with Pipeline(slow_plan(), models.model, assistant_model=models.near, conditions=CONDITIONS) as opened:
        yield opened


def laps(pipe: Pipeline) -> int:
    assert pipe.last_run is not None
    return len({event.step for event in pipe.last_run.trace.events if event.kind == "compute" and event.step > 0})


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_text_is_that_of_generate_though_bits_flip(pipe: Pipeline, models: Models, seed: int | None) -> None:
    prompt = PROMPTS[:1]
    options = {} if seed is None else {**SAMPLED, "seed": seed}
    assert torch.equal(pipe.generate(prompt, **ASKED, **options), models.text(prompt, seed))
    assert pipe.last_run is not None
    # What the assistant computes is the first stage's work: one event more in each lap with guesses.
    first, second = (
        len([event for event in pipe.last_run.trace.of(node, "compute") if event.step > 0])
        for node in ("node 0", "node 1")
    )
    assert second == laps(pipe) < first


def test_rows_in_micro_batches_of_their_own_each_have_guesses(pipe: Pipeline, models: Models) -> None:
    assert torch.equal(pipe.generate(PROMPTS, **ASKED), models.text(PROMPTS))
    with pytest.raises(ValueError, match="num_assistant_tokens needs micro-batches of one row each, and 3 rows"):
        pipe.generate(torch.cat([PROMPTS, PROMPTS[:1]]), **ASKED)


def test_a_cancelled_text_leaves_the_others_alone(pipe: Pipeline, models: Models) -> None:
    other = pipe.submit(PROMPTS[1:], **ASKED)
    for number, _ in enumerate(pipe.stream(PROMPTS[:1], **ASKED)):
        if number == 5:
            break
    assert torch.equal(other.result(), models.text(PROMPTS[1:]))
    looked_up = {**ASKED, "num_assistant_tokens": None, "prompt_lookup_num_tokens": MOST}
    assert torch.equal(pipe.generate(PROMPTS[:1], **looked_up), models.text(PROMPTS[:1]))


def test_a_new_first_stage_has_the_assistant_and_what_is_known(models: Models) -> None:
    def other(plan: Plan, nodes: Any, links: Any) -> Plan:
        stages = tuple(replace(stage, node=name) for stage, name in zip(plan.stages, ("node 1", "node 2"), strict=True))
        return replace(plan, stages=stages)

    # The assistant is the model itself, so that hardly any lap is without guesses.
    with Pipeline(slow_plan(), models.model, assistant_model=models.model, replan=other) as pipe:
        seen: list[Tensor] = []

        def strike(tokens: Tensor) -> None:
            seen.append(tokens)
            if len(seen) == 12:
                os.kill(pipe.pids[0], signal.SIGKILL)

        running = pipe.submit(PROMPTS[:1], on_tokens=strike, **ASKED)
        assert torch.equal(running.result(60), models.text(PROMPTS[:1]))
        assert len(pipe.recoveries) == 1
        assert torch.equal(pipe.generate(PROMPTS[1:], **ASKED), models.text(PROMPTS[1:]))
        assert laps(pipe) < NEW - 10


def refused(monkeypatch: pytest.MonkeyPatch, model: Path, assistant: Path, message: str) -> None:
    """Check that an assistant is refused before any process is started."""
    monkeypatch.setattr(pipeline_module, "Sessions", None)
    with pytest.raises(ValueError, match=message):
        Pipeline(Plan.manual([1], LAYERS), model, assistant_model=assistant)


def test_an_assistant_of_another_vocabulary_is_refused(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(vocab_size=98).save_pretrained(tmp_path)
    message = r"assistant_model .* has a vocabulary of 98 tokens, .*model one of 97: both need the same tokens"
    refused(monkeypatch, models.model, tmp_path, message)


def test_models_whose_tokens_cannot_be_taken_back_are_refused(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        layer_types=["conv", "full_attention"] * (LAYERS // 2),
        block_multiple_of=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "states")
    AutoConfig.for_model("bert", vocab_size=97, architectures=["BertModel"]).save_pretrained(tmp_path / "encoder")
    message = "cannot be used with an assistant, which needs causal language models"
    refused(monkeypatch, models.model, tmp_path / "states", f"assistant_model .*states {message}")
    refused(monkeypatch, models.model, tmp_path / "encoder", f"assistant_model .*encoder {message}")
    refused(monkeypatch, tmp_path / "states", models.model, f"states {message}")
    with pytest.raises(FileNotFoundError, match="missing"):
        Pipeline(Plan.manual([1], LAYERS), models.model, assistant_model=tmp_path / "missing")


def test_guesses_of_an_assistant_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with fake_pipeline(tmp_path) as (pipe, _):
        message = r"num_assistant_tokens is 3, and the pipeline has no assistant: Pipeline\(assistant_model=...\)"
        with pytest.raises(ValueError, match=message):
            pipe.generate(PROMPTS[:1], max_new_tokens=4, num_assistant_tokens=3)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (33, ValueError), (2.5, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_other_numbers_of_guesses_are_refused_by_name(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_assistant_tokens"):
        osp.GenerationOptions(max_new_tokens=4, num_assistant_tokens=value)


def test_an_assistant_and_prompt_lookup_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens and num_assistant_tokens exclude each other"):
        osp.GenerationOptions(max_new_tokens=4, num_assistant_tokens=3, prompt_lookup_num_tokens=3)


def with_limits(memory_bytes: int) -> Plan:
    """Return a plan of two stages of 1,000 predicted bytes each, for ten tokens, with limits of memory."""
    plan = Plan.manual([2], LAYERS)
    seconds = {"stage_s": (1.0, 1.0), "link_s": (1.0,), "decode_stage_s": (1.0, 1.0), "decode_link_s": (1.0,)}
    totals = {"total_s": 3.0, "prefill_s": 3.0, "token_step_s": 3.0, "loss": 0.0, "lower_bound_s": 3.0, "gap": 0.0}
    prediction = osp.Prediction(**totals, **seconds, stage_memory_bytes=(1000, 1000), status="optimal")  # type: ignore[arg-type]
    return replace(
        plan,
        stages=tuple(replace(stage, memory_bytes=memory_bytes) for stage in plan.stages),
        workload=osp.Workload(prompt_tokens=8, new_tokens=2),
        prediction=prediction,
    )


def test_the_assistant_counts_as_memory_of_the_first_stage() -> None:
    first = ready(weight_bytes=700, assistant_bytes=400, cache_bytes_per_token=10)
    second = ready(weight_bytes=300, cache_bytes_per_token=5)
    plan = with_limits(1500)
    check_memory(plan, (first, second))
    # Ten tokens are the workload's. Beside the assistant the first node has room for ten more, without it for fifty.
    assert cache_tokens(plan, (first, second)) == 10 + 10
    assert cache_tokens(plan, (replace(first, assistant_bytes=0), second)) == 10 + 50
    with pytest.raises(ValueError, match=r"needs 1,400 bytes, 400 of them for the assistant, its limit is 1,399"):
        check_memory(with_limits(1399), (first, second))
    with pytest.raises(ValueError, match=r"needs 701 bytes for its weights in float32, its limit is 700"):
        check_memory(with_limits(700), (replace(second, weight_bytes=701), second))
