"""Prompts: which are accepted, and the errors of others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbitsplit.runtime._parent.prompts import check_tokens, padding_mask


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_every_left_padding_is_taken(lengths: list[int]) -> None:
    width = 5
    mask = torch.tensor([[int(k >= width - length) for k in range(width)] for length in lengths])
    ids = mask * 7
    if 0 in lengths:
        with pytest.raises(ValueError, match=f"row {lengths.index(0)} of attention_mask has nothing but padding"):
            padding_mask(ids, mask, pad_token_id=0, eos_token_ids=())
        return
    for given_mask in (mask, mask.bool(), mask.float(), None):
        assert torch.equal(padding_mask(ids, given_mask, pad_token_id=0, eos_token_ids=()), mask.bool())


@pytest.mark.parametrize("row", [[1, 1, 0], [1, 0, 1], [0, 1, 0]])
def test_padding_elsewhere_is_refused(row: list[int]) -> None:
    mask = torch.tensor([[0, 1, 1], row])
    with pytest.raises(ValueError, match="row 1 of attention_mask has padding after its first token"):
        padding_mask(torch.full((2, 3), 7), mask, pad_token_id=0, eos_token_ids=())
    with pytest.raises(ValueError, match=r"row 1 of input_ids \(token 0 is padding, without a mask\)"):
        padding_mask(mask, None, pad_token_id=0, eos_token_ids=())


def test_a_token_that_may_be_real_is_no_padding() -> None:
    ids = torch.tensor([[3, 0, 7]])
    assert padding_mask(ids, None, pad_token_id=None, eos_token_ids=()).all()
    assert padding_mask(ids, None, pad_token_id=0, eos_token_ids=(2, 0)).all()


@pytest.mark.parametrize("token", [-1, 97, 10**9])
def test_tokens_beyond_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"input_ids hold {token}, the model's tokens are 0 to 96"):
        check_tokens(torch.tensor([[0, 96], [token, 5]]), vocabulary=97)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.complex64])
def test_only_whole_numbers_are_tokens(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"input_ids are {dtype} \[1, 2\], expected non-empty int64"):
        check_tokens(torch.ones(1, 2, dtype=dtype), vocabulary=97)
    check_tokens(torch.ones(1, 2, dtype=torch.int32), vocabulary=97)
