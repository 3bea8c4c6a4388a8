"""Sampling: the tokens that transformers draws, for a part of the batch and after an interruption too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orbitsplit.runtime._messages.groups import Group, Sampling
from orbitsplit.runtime._worker.sampling import greedy, picker_of
from tests.support.tiny_models import save_tiny_model, tiny_prompts
from tests.support.warpers import warpers

SETTINGS = [
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.6, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 7, "top_p": 1.0},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.8},
]
NEW_TOKENS, SEED = 6, 11


def group_of(index: int, sampling: Sampling, rows: int) -> Group:
    """Rows that are sampled with one of the settings."""
    settings: dict[str, Any] = SETTINGS[index]
    return Group(0, rows, 7, None, NEW_TOKENS, sampling=sampling, processors=warpers(**settings))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tensor, list[Tensor]]]:
    """The judge: tokens [B, n] that transformers draws with each of the settings, and the logits it drew them from."""
    model = save_tiny_model(tmp_path_factory.mktemp("sampling"), "llama").eval()
    input_ids, mask = tiny_prompts((3, 7, 5, 4))
    found = []
    for settings in SETTINGS:
        torch.manual_seed(SEED)
        result = model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=None,
            do_sample=True,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
        found.append((result.sequences[:, input_ids.shape[1] :], list(result.logits)))
    return found


@pytest.mark.parametrize("index", range(len(SETTINGS)))
@pytest.mark.parametrize(("first_row", "rows"), [(0, 4), (0, 2), (2, 2), (3, 1)])
def test_each_part_of_a_batch_gets_the_tokens_of_the_whole(
    drawn: list[tuple[Tensor, list[Tensor]]], index: int, first_row: int, rows: int
) -> None:
    tokens, logits = drawn[index]
    part = slice(first_row, first_row + rows)
    picker = picker_of(group_of(index, Sampling(SEED, rows=4, first_row=first_row), rows))
    picked = torch.stack([picker.pick(of_step[part], step) for step, of_step in enumerate(logits)], dim=1)
    assert torch.equal(picked, tokens[part])


@pytest.mark.parametrize("done", [1, 4])
def test_sampling_resumes_after_an_interruption_as_if_there_had_been_none(
    drawn: list[tuple[Tensor, list[Tensor]]], done: int
) -> None:
    tokens, logits = drawn[3]
    picker = picker_of(group_of(3, Sampling(SEED, rows=4, drawn=done), 4))
    picked = torch.stack([picker.pick(of_step, step) for step, of_step in enumerate(logits[done:])], dim=1)
    assert torch.equal(picked, tokens[:, done:])


def test_logits_are_left_as_they_are() -> None:
    logits = torch.randn(2, 30)
    before = logits.clone()
    picker_of(group_of(3, Sampling(0, rows=2), 2)).pick(logits, 0)
    assert torch.equal(logits, before)


def test_greedy_takes_the_likeliest() -> None:
    assert greedy(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 0]


def test_the_tiny_model_is_not_certain(drawn: list[tuple[Tensor, list[Tensor]]]) -> None:
    # Otherwise all settings would give the same tokens, and the tests above would show nothing.
    assert len({tuple(tokens.flatten().tolist()) for tokens, _ in drawn}) == len(SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_tokens_are_those_of_torch_also_among_equals(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 5, (6, 1000), generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[1] = float("-inf")
    logits[2, 700] = float("nan")
    assert torch.equal(greedy(logits), logits.argmax(dim=-1))
