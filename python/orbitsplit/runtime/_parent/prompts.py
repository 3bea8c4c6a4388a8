"""Prompts in the format of transformers' generate: token ids, padded on the left, and their mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orbitsplit._io.validation import check_is_integer, listed

# Rows of tokens, or of their mask; lists may be of one prompt.
TokenRows: TypeAlias = "Tensor | NDArray[np.integer[Any]] | Sequence[Sequence[int]] | Sequence[int]"

_ID_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_tensor(name: str, value: Any) -> Tensor:
    """Return rows of integers [B, S] given as a tensor, an array or lists, of which one may be of a single prompt.

    Raises TypeError or ValueError, naming it.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "iub":
        return torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, (list, tuple)):
        check_tensor(name, value)
        found: Tensor = value
        return found
    rows = list(value) if value and isinstance(value[0], (list, tuple)) else [value]
    lengths = sorted({len(row) for row in rows if isinstance(row, (list, tuple))})
    if len(lengths) > 1:
        raise ValueError(
            f"{name} has rows of {lengths[0]} and {lengths[-1]} tokens: pad them on the left, as by "
            f'tokenizer(..., padding=True, padding_side="left", return_tensors="pt")'
        )
    for item in (item for row in rows for item in (row if isinstance(row, (list, tuple)) else (row,))):
        check_is_integer(f"a number in {name}", item)
    return torch.tensor(rows, dtype=torch.int64)


def check_tokens(input_ids: Tensor, *, vocabulary: int) -> None:
    """Raise unless `input_ids` is a non-empty tensor [B, S] of tokens 0 to `vocabulary` - 1."""
    check_tensor("input_ids", input_ids)
    if input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.dtype not in _ID_TYPES:
        raise ValueError(f"input_ids are {input_ids.dtype} {list(input_ids.shape)}, expected non-empty int64 [B, S]")
    for token in (int(input_ids.min()), int(input_ids.max())):
        check_token("input_ids hold", token, vocabulary=vocabulary)


def check_token(what: str, token: int, *, vocabulary: int) -> None:
    """Raise ValueError unless `token` is 0 to `vocabulary` - 1; `what` begins the message."""
    if not 0 <= token < vocabulary:
        raise ValueError(f"{what} {token}, the model's tokens are 0 to {vocabulary - 1}")


def check_tensor(name: str, value: Tensor) -> None:
    """Raise TypeError unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, must be a tensor, an array of integers or lists of them")


def check_positions(tokens: int, new_tokens: int, *, positions: int | None) -> None:
    """Raise ValueError if a model has fewer positions than prompts and new tokens need (None: any number).

    The last new token is not fed back, so it needs none.
    """
    if positions is None:
        return
    if tokens > positions:
        raise ValueError(f"input_ids have {tokens} tokens, the model has {positions} positions")
    if tokens + new_tokens - 1 > positions:
        raise ValueError(
            f"max_new_tokens is {new_tokens}, must be at most {positions - tokens + 1} after {tokens} tokens: the "
            f"model has {positions} positions"
        )


def padding_mask(
    input_ids: Tensor, attention_mask: Tensor | None, *, pad_token_id: int | None, eos_token_ids: Sequence[int]
) -> Tensor:
    """Return the mask [B, S] of tokens that are not padding: the given one, or derived from the pad token.

    Raises:
        ValueError: The shapes differ, or a row has padding after a token.
    """
    if attention_mask is not None:
        check_tensor("attention_mask", attention_mask)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {list(attention_mask.shape)}, input_ids are {list(input_ids.shape)}")
        mask, source = attention_mask != 0, "attention_mask"
    elif pad_token_id is None or pad_token_id in eos_token_ids:
        # As in transformers: a token that also ends sequences may be part of a prompt.
        return torch.ones_like(input_ids, dtype=torch.bool)
    else:
        mask, source = input_ids != pad_token_id, f"input_ids (token {pad_token_id} is padding, without a mask)"
    is_left_padded = mask[:, -1] & (mask[:, 1:] >= mask[:, :-1]).all(dim=1)
    if not is_left_padded.all():
        row = int(is_left_padded.int().argmin())
        fault = "padding after its first token" if mask[row].any() else "nothing but padding"
        raise ValueError(f"row {row} of {source} has {fault}; prompts are padded on the left only")
    return mask


# Inputs of a forward. Stages after the first get only the shapes of inputs, so others are refused.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


def check_inputs(inputs: Mapping[str, Tensor], *, vocabulary: int | None) -> tuple[int, int]:
    """Return rows and tokens of the inputs of one forward; an image counts as one token.

    Raises:
        TypeError: An input is not a tensor.
        ValueError: An input is unknown, or shapes do not agree.
    """
    unknown = sorted(set(inputs) - set(_INPUTS))
    main = next((name for name in ("input_ids", "pixel_values") if name in inputs), None)
    if unknown or main is None:
        raise ValueError(
            f"inputs are {listed(inputs) or 'none'}; expected input_ids or pixel_values, of {', '.join(_INPUTS)}"
        )
    for name, value in inputs.items():
        check_tensor(name, value)
    if main == "input_ids":
        check_tokens(inputs[main], vocabulary=vocabulary or 1 << 62)
    elif inputs[main].dim() != 4 or 0 in inputs[main].shape:
        raise ValueError(f"pixel_values are {list(inputs[main].shape)}, expected non-empty [B, C, H, W]")
    rows, tokens = inputs[main].shape[0], inputs[main].shape[1] if main == "input_ids" else 1
    for name, value in inputs.items():
        if value.shape[0] != rows or (main == "input_ids" and value.shape != (rows, tokens)):
            raise ValueError(f"{name} are {list(value.shape)}, {main} are {list(inputs[main].shape)}")
    return rows, tokens
