"""What a stage computes: a group restarted after a loss has the caches that it had, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from orbitsplit._models.stage import StageModel
from orbitsplit.runtime._messages.groups import Group, Sampling, packed_mask
from tests.support.stage_chain import Chain
from tests.support.tiny_models import LAYERS, save_tiny_model, tiny_prompts

TOP = LAYERS + 2
SAMPLED = Sampling(seed=5, temperature=1.3, top_k=20, rows=5, first_row=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    group = Group(1, 3, 9, packed_mask(mask), 30, sampling=sampling, chunk_tokens=chunk_tokens)
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
