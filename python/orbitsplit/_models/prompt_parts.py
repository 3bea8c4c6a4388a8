"""What a prompt with images has beside its tokens, a part of the text at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def of_tokens(beside: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Return what a prompt has `beside` it of the tokens from `start` to `stop`: the whole prompt, or some behind it.

    Positions [..., B, S] of tokens behind a prompt count on from its last one, each axis on its own, as transformers'
    generate has it, also where that is a token of an image; token types are those of a prompt alone.
    """
    if start == 0:
        return dict(beside)
    positions = beside.get("position_ids")
    if positions is None:
        return {}
    first = start - positions.shape[-1] + 1
    return {"position_ids": positions[..., -1:] + torch.arange(first, first + stop - start)}
