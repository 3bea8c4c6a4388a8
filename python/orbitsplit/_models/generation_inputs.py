"""Inputs of a forward with a cache, as transformers' generate makes them of ids and their mask."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._io.device_names import CPU

from .own_state import OwnState
from .source import state_name

# Of what torch allocates on a CPU, in bytes.
_ALIGNMENT = 64


def generation_inputs(
    accepted: Container[str], ids: Tensor, attention_mask: Tensor, cache: Cache, *, is_padded: bool
) -> dict[str, Any]:
    """Return what a forward that has the `accepted` inputs gets for new ids [B, S] behind the tokens in a cache.

    The mask [B, past + S] has those too. Without a cache the ids are of all tokens. Past the first stage only the shape
    of the ids is used.
    """
    tokens = ids.shape[1]
    cache_name = state_name(accepted)
    inputs: dict[str, Any] = {"input_ids": ids}
    if cache_name is not None:
        inputs |= {cache_name: cache.value if isinstance(cache, OwnState) else cache, "use_cache": True}
    # Positions come from the mask, and the mask is dropped where nothing is padded, because attention is faster without
    # (and rounds differently).
    if "position_ids" in accepted:
        positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)
        inputs["position_ids"] = positions[:, -tokens:]
    # A recurrent state has seen the padding: its forward takes a mask of the new tokens, and steps are not padded.
    is_step = cache_name == "cache_params" and attention_mask.shape[1] > tokens
    inputs["attention_mask"] = attention_mask if is_padded and not is_step else None
    return inputs


def entering(x: Tensor, device: torch.device) -> Tensor:
    """Return what enters a stage on its device."""
    return _aligned(x) if device.type == CPU else x.to(device)


def _aligned(x: Tensor) -> Tensor:
    """Return a tensor in memory as torch itself allocates it: matrix products may round differently elsewhere."""
    return x if x.data_ptr() % _ALIGNMENT == 0 and x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)
