"""What a stage computes: a group restarted after a loss has the caches that it had, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbitsplit._models.stage import StageModel
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.groups import Group, Sampling, packed_mask
from orbitsplit.runtime._messages.packs import Part
from orbitsplit.runtime._worker.computation import Computation
from tests.support.stage_chain import Chain
from tests.support.tiny_models import LAYERS, save_tiny_model, tiny_prompts
from tests.support.warpers import warpers

pytestmark = pytest.mark.usefixtures("single_thread")

TOP = LAYERS + 2
SAMPLED = Sampling(seed=5, rows=5, first_row=1)
WARPERS = warpers(temperature=1.3, top_k=20)


# gemma3_text slides over 6 tokens, and all of them are left behind here.
@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text", "mixtral"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[StageModel]]:
    """A model in three stages, and in two that are cut elsewhere."""
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path, request.param)
    return {
        len(bounds) - 1: [StageModel.load(path, a, b) for a, b in pairwise(bounds)]
        for bounds in ((0, 2, 4, TOP), (0, 3, TOP))
    }


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_a_restarted_group_has_the_caches_and_tokens_of_one_that_never_stopped(
    parts: dict[int, list[StageModel]], sampling: Sampling | None, chunk_tokens: int | None
) -> None:
    # All tokens went through in one forward: other kernels, whose keys and logits differed in their last bits, so that
    # of two tokens that were nearly level another one won.
    prompts, mask = tiny_prompts((5, 9, 2))
    processors = WARPERS if sampling else ()
    group = Group(1, 3, 9, packed_mask(mask), 30, sampling=sampling, processors=processors, chunk_tokens=chunk_tokens)
    undisturbed = Chain(parts[3])
    tokens = undisturbed.run(group, prompts, 20)

    got, again = tokens[:, :7], group.continued(tokens[:, :7])
    assert (again.tokens, again.replayed) == (16, 7)
    # Lost once more, on its way, and cut elsewhere then.
    first = Chain(parts[3]).run(again, torch.cat([prompts, got], dim=1), 5)
    got, again = torch.cat([got, first], dim=1), again.continued(first)
    assert (again.tokens, again.replayed) == (21, 12)
    chain = Chain(parts[2])
    rest = chain.run(again, torch.cat([prompts, got], dim=1), 8)
    assert torch.equal(torch.cat([got, rest], dim=1), tokens)
    assert len(chain.cached()) == 2 * LAYERS
    assert all(map(torch.equal, chain.cached(), undisturbed.cached()))


def test_one_forward_of_all_tokens_predicts_the_same_within_rounding(tmp_path: Path) -> None:
    # What a restart without replayed tokens would do: the judge of what is replayed, by another way.
    save_tiny_model(tmp_path)
    stages = [StageModel.load(tmp_path, 0, TOP)]
    prompts, mask = tiny_prompts((5, 9))
    group = Group(1, 2, 9, packed_mask(mask), 9)
    tokens = Chain(stages).run(group, prompts, 8)
    again = group.continued(tokens[:, :6])
    chains = [Chain(stages), Chain(stages)]
    for chain, one in zip(chains, (again, replace(again, replayed=0)), strict=True):
        chain.run(one, torch.cat([prompts, tokens[:, :6]], dim=1), 1)
    for replayed, at_once in zip(*(chain.cached() for chain in chains), strict=True):
        torch.testing.assert_close(replayed, at_once, rtol=1e-4, atol=1e-4)


def packed_steps(stages: list[StageModel], groups: list[Group], prompts: list[Tensor], steps: int) -> list[list[int]]:
    """Run groups of one row, whose steps after the prompts share forwards; return their tokens."""
    computations = [Computation("it", stage, Pace(Recorder()), lambda *_: None, lambda _: None) for stage in stages]
    made: list[list[int]] = []
    for group, prompt in zip(groups, prompts, strict=True):
        x: Any = prompt
        for computation in computations:
            computation.begin(group)
            x = computation.forward(group.id, 0, x)
        made.append(x.tolist())
    for step in range(1, steps):
        parts = tuple(Part(group.id, step, 1) for group in groups)
        x = torch.tensor([[tokens[-1] for tokens in made]])
        for computation in computations:
            result = computation.forward_pack(parts, x)
            x, parts = result.x, result.parts
            assert not result.errors
        for tokens, token in zip(made, x.tolist(), strict=True):
            tokens.append(token)
    return made


def single_groups() -> tuple[list[Group], list[Tensor]]:
    prompts = [tiny_prompts((length,), seed=length)[0] for length in (5, 9, 2)]
    groups = [
        Group(
            k,
            1,
            prompt.shape[1],
            None,
            30,
            sampling=replace(SAMPLED, rows=1, first_row=0) if k == 1 else None,
            processors=WARPERS if k == 1 else (),
        )
        for k, prompt in enumerate(prompts)
    ]
    return groups, prompts


@pytest.mark.parametrize("fails", [False, True])
def test_steps_that_share_a_forward_give_the_tokens_of_each_group_alone(
    parts: dict[int, list[StageModel]], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, prompts = single_groups()
    alone = [Chain(parts[3]).run(group, x, 12)[0].tolist() for group, x in zip(groups, prompts, strict=True)]
    calls = []
    together = StageModel.forward_packed

    def watched(stage: StageModel, *arguments: Any, **options: Any) -> Tensor:
        calls.append(stage)
        output = together(stage, *arguments, **options)
        if fails and stage is parts[3][1]:
            raise ValueError("after caches have grown")
        return output

    monkeypatch.setattr(StageModel, "forward_packed", watched)
    assert packed_steps(parts[3], groups, prompts, 12) == alone
    assert len(calls) == 3 * 11


def test_an_error_of_one_group_leaves_the_tokens_of_the_others(
    parts: dict[int, list[StageModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, prompts = single_groups()
    stage = parts[3][0]
    computation = Computation("it", stage, Pace(Recorder()), lambda *_: None, lambda _: None)
    for group, prompt in zip(groups, prompts, strict=True):
        computation.begin(group)
        computation.forward(group.id, 0, prompt)
    expected = computation.forward(0, 1, torch.tensor([[7]]))
    assert expected is not None
    bad = torch.tensor([[7, 10**6, 8]])  # no such token
    result = computation.forward_pack((Part(0, 2, 1), Part(1, 1, 1), Part(2, 1, 1)), bad)
    assert list(result.errors) == [1]
    assert [part.group for part in result.parts] == [0, 2]
    assert result.x.shape == (1, 2, stage.hidden_size)
