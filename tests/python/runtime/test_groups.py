"""Groups: masks, parts of a batch, and groups that restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbitsplit.runtime._messages.groups import Details, Group, Sampling, packed_mask, rows_of


@given(st.integers(1, 5), st.integers(1, 19), st.integers(0, 2**31))
def test_a_mask_survives_packing(rows: int, tokens: int, seed: int) -> None:
    mask = torch.randint(0, 2, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    group = Group(0, rows, tokens, packed_mask(mask), 1)
    assert torch.equal(group.attention_mask(), mask)


def test_nothing_padded_needs_no_mask() -> None:
    assert packed_mask(torch.ones(2, 9)) is None
    assert Group(0, 2, 9, None, 1).attention_mask().sum() == 18


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (5, 2), (7, 3), (4, 4)])
def test_groups_divide_the_rows_into_nearly_equal_parts(rows: int, groups: int) -> None:
    parts = [list(range(rows))[part] for part in rows_of(rows, groups)]
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = [len(part) for part in parts]
    assert len(sizes) == groups
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_a_group_that_restarts_has_its_tokens_in_its_prompts() -> None:
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    sampling = Sampling(seed=1, rows=5, first_row=2, drawn=4)
    group = Group(3, 3, 2, packed_mask(mask), 10, eos_token_ids=(9,), sampling=sampling, ended_rows=(2,))
    group = replace(group, details=Details(logprobs=2, prompt_logprobs=5))
    restarted = group.continued(torch.tensor([[5, 6, 7], [5, 9, 0], [0, 0, 0]]))
    assert (restarted.id, restarted.rows, restarted.tokens, restarted.max_new_tokens) == (3, 3, 5, 7)
    assert restarted.attention_mask().tolist() == [[0, 1, 1, 1, 1], [1] * 5, [1] * 5]
    assert restarted.ended_rows == (1, 2)
    assert restarted.details == Details(logprobs=2)  # those of the prompt have returned
    assert restarted.sampling is not None
    assert (restarted.sampling.drawn, restarted.sampling.first_row) == (7, 2)
