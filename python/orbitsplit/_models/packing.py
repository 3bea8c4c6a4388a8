"""Several sequences in one forward: their new tokens side by side in one row, each with a KV cache of its own.

A forward reads all weights, whether it computes one token or eight, so steps of different sequences that share one take
little longer than one of them. Everything but attention treats each token by itself; attention runs for each sequence
over its own keys and values, by transformers' own function, which an entry in its table of functions calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .kv_cache import skip_tokens, takes_chunks

_NAME = "orbitsplit_packed"
# Layers whose masks are known here from positions alone.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# Of models whose masks are not causal, or depend on more, transformers runs the attention by other functions.
_ATTENTION = "sdpa"


class PackedCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """The caches of the sequences of a row, each for one sequence; sequence k has the next `sizes[k]` tokens of it."""

    def __init__(self, caches: Sequence[Cache], sizes: Sequence[int]) -> None:
        super().__init__(layers=caches[0].layers)
        self.caches = tuple(caches)
        self.sizes = list(sizes)
        self._latest: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values [1, heads, n, D]; return them, since no tensor has those of all sequences."""
        self._latest = self.update_each(key_states, value_states, layer_idx)
        return key_states, value_states

    def update_each(self, keys: Tensor, values: Tensor, layer_idx: int) -> list[tuple[Tensor, Tensor]]:
        """Append new keys and values [1, heads, n, D]; return those that each sequence sees, [1, heads, T, D]."""
        parts = zip(self.caches, *(torch.split(x, self.sizes, dim=2) for x in (keys, values)), strict=True)
        return [cache.update(own_keys, own_values, layer_idx) for cache, own_keys, own_values in parts]

    def skip(self, layer_idx: int) -> None:
        """Count the new tokens in a layer that another stage runs."""
        for cache, tokens in zip(self.caches, self.sizes, strict=True):
            skip_tokens(cache.layers[layer_idx], 1, tokens)

    def window(self, layer_idx: int) -> int | None:
        """Return how many tokens a token sees in a layer, itself included; None: all before it."""
        return getattr(self.caches[0].layers[layer_idx], "sliding_window", None)

    def visible(self, sequence: int, keys: Tensor, layer_idx: int) -> Tensor | None:
        """Return which of the keys [1, heads, T, D] the new tokens of a sequence see, bool [tokens, T]; None: all."""
        tokens, total = self.sizes[sequence], keys.shape[2]
        if tokens == 1:
            return None
        places = torch.arange(total, device=keys.device)
        own = places[total - tokens :, None]
        mask = places <= own
        window = self.window(layer_idx)
        return mask if window is None else mask & (places > own - window)

    def attend(self, module: Any, query: Tensor, **options: Any) -> Tensor:
        """Return the attention [1, n, heads, D] of queries [1, heads, n, D] to the keys of the last update."""
        outputs = []
        for k, (part, (keys, values)) in enumerate(
            zip(torch.split(query, self.sizes, dim=2), self._latest, strict=True)
        ):
            mask = self.visible(k, keys, module.layer_idx)
            mask = None if mask is None else mask[None, None]
            outputs.append(sdpa_attention_forward(module, part, keys, values, mask, **options)[0])
        return torch.cat(outputs, dim=1)


# The cache of the forward that runs: functions of transformers' table get the module and tensors alone.
_packed: PackedCache | None = None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    assert _packed is not None, "packed attention runs within `packing`"
    return _packed.attend(module, query, **options), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *_args, **_kwargs: None)


def can_pack(config: PreTrainedConfig, cache: Cache) -> bool:
    """Whether a decoder's attention depends on nothing but each token's own sequence, as far as its config says."""
    kinds = getattr(config, "layer_types", None) or ()
    return config._attn_implementation == _ATTENTION and _LAYER_TYPES.issuperset(kinds) and takes_chunks(cache)


@contextmanager
def packing(config: PreTrainedConfig, cache: PackedCache) -> Iterator[None]:
    """Run the attention of a decoder's modules, which read `config`, as that of packed sequences."""
    global _packed
    own = config._attn_implementation
    _packed, config._attn_implementation = cache, _NAME
    try:
        yield
    finally:
        _packed, config._attn_implementation = None, own
