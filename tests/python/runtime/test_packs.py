"""Requests that share forwards: each gets the text that transformers generates for it alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

import orbitsplit as osp
from orbitsplit import LinkConditions, Plan
from orbitsplit.runtime import Pipeline
from tests.support.processes import messages_sent
from tests.support.tiny_models import LAYERS, load_unsplit, save_tiny_model, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

NEW = 40
LENGTHS = (5, 19, 11, 2, 30, 8)
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0}
PLAN = Plan.manual([1, 3], LAYERS)
CONDITIONS = LinkConditions.from_toml("""
[[links]]
between = ["node 0", "node 1"]
corrupt = 0.05

[[links]]
between = ["node 2", "node 0"]
corrupt = 0.05
""")


def slowed(plan: Plan, latency_s: float) -> Plan:
    """Return a plan whose tokens take a while, so that requests still run when a test that was held up acts on them."""
    return replace(plan, links=tuple(replace(link, latency_s=latency_s) for link in plan.links))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    save_tiny_model(path, "gemma3_text")
    return path


def options_of(number: int) -> dict[str, Any]:
    """Return what request `number` asks for: greedy, sampled, or with guesses."""
    return [{}, {**SAMPLED, "seed": 7 + number}, {"prompt_lookup_num_tokens": 4}][number % 3]


def text_of(model: PreTrainedModel, prompt: Tensor, options: dict[str, Any]) -> Tensor:
    options = {key: value for key, value in options.items() if key != "prompt_lookup_num_tokens"}
    torch.manual_seed(options.pop("seed", 0))
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, **options}
    tokens: Tensor = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    return tokens


def submitted(pipe: Pipeline, number: int, prompt: Tensor, **options: Any) -> Any:
    return pipe.submit(prompt, max_new_tokens=NEW, eos_token_id=(), **options_of(number), **options)


def prompts() -> list[Tensor]:
    return [tiny_prompts((length,), seed=length)[0] for length in LENGTHS]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen3", "mixtral", "bloom"])
def test_each_request_gets_its_own_text_over_a_link_that_flips_bits(family: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    model = load_unsplit(tmp_path)
    with Pipeline(PLAN, tmp_path, conditions=CONDITIONS) as pipe:
        running = []
        for number, prompt in enumerate(prompts()):
            running.append(submitted(pipe, number, prompt))
            time.sleep(0.02)  # some join while others generate
        texts = [one.result(60.0) for one in running]
    for number, (prompt, text) in enumerate(zip(prompts(), texts, strict=True)):
        assert torch.equal(text, text_of(model, prompt, options_of(number))), number


@pytest.mark.parametrize("tokens", [None, 1])
def test_steps_share_messages_unless_that_is_switched_off(folder: Path, tokens: int | None) -> None:
    steps = len(LENGTHS) * NEW
    with Pipeline(PLAN, folder, max_batch_tokens=tokens) as pipe:
        os.kill(pipe.pids[0], signal.SIGSTOP)  # until all are there
        running = [pipe.submit(prompt, max_new_tokens=NEW, eos_token_id=()) for prompt in prompts()]
        os.kill(pipe.pids[0], signal.SIGCONT)
        assert all(one.result(60.0).shape[1] == length + NEW for one, length in zip(running, LENGTHS, strict=True))
        sent = messages_sent(pipe)
    assert sent >= steps if tokens == 1 else sent < 0.75 * steps


def test_a_cancelled_request_leaves_and_a_later_one_joins(folder: Path) -> None:
    model = load_unsplit(folder)
    with Pipeline(slowed(PLAN, 0.005), folder) as pipe:
        first = [pipe.submit(prompt, max_new_tokens=300, eos_token_id=()) for prompt in prompts()[:2]]
        long, short = prompts()[1], prompts()[0]
        while first[0].new_tokens < 5:
            time.sleep(0.01)
        first[0].cancel()
        joined = submitted(pipe, 0, short)
        assert torch.equal(joined.result(60.0), text_of(model, short, {}))
        first[0].wait(60.0)
        assert first[0].new_tokens < 300
        text = first[1].result(60.0)
    assert torch.equal(text[:, : long.shape[1] + NEW], text_of(model, long, {}))


def test_all_go_on_after_a_node_was_killed(folder: Path) -> None:
    model = load_unsplit(folder)
    profile = osp.profile(folder, prompt_tokens=8, measure=True)
    names = ("node 0", "node 1", "node 2", "node 3")
    network = osp.Network(
        name="all to all",
        nodes=tuple(osp.Node(name=name, memory_bytes=10**9, slowdown=1.0) for name in names),
        links=tuple(osp.Link(a, b, 1e9, 0.001) for a in names for b in names if a != b),
    )
    plan = replace(slowed(PLAN, 0.02), workload=osp.Workload(prompt_tokens=8, new_tokens=NEW))
    with Pipeline(plan, folder, replan=osp.replanner(profile, network)) as pipe:
        running = [submitted(pipe, number, prompt) for number, prompt in enumerate(prompts())]
        while running[-1].new_tokens < 5:
            time.sleep(0.01)
        os.kill(pipe.pids[1], signal.SIGKILL)
        texts = [one.result(90.0) for one in running]
        assert len(pipe.recoveries) == 1
    for number, (prompt, text) in enumerate(zip(prompts(), texts, strict=True)):
        assert torch.equal(text, text_of(model, prompt, options_of(number))), number


def test_a_batch_of_several_rows_runs_beside_single_rows(folder: Path) -> None:
    model = load_unsplit(folder)
    single = prompts()[1]
    batch = torch.cat([tiny_prompts((7,), seed=seed)[0] for seed in range(3)])
    with Pipeline(PLAN, folder) as pipe:
        running = [submitted(pipe, number, prompt) for number, prompt in enumerate(prompts())]
        rows = pipe.generate(batch, max_new_tokens=NEW, eos_token_id=())
        texts = [one.result(60.0) for one in running]
    assert torch.equal(rows, text_of(model, batch, {}))
    assert torch.equal(texts[1], text_of(model, single, options_of(1)))
