"""What is in the place of the layers of other stages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from .kv_cache import skip_tokens
from .packing import PackedCache


class Passthrough(nn.Module):
    """Replaces a layer of another stage: returns the hidden state unchanged and keeps the length of the KV cache.

    transformers reads lengths, masks and positions from the first layer of each kind in the cache. So the cache grows
    here too, by nothing or one byte per token; otherwise left-padded batches are silently wrong. What models read of
    their layers, such as `layer.attention_type` or a number in its attention, is that of the layer, of which this is no
    part. Of its submodules it has the weights of those `kept` by name, which another layer uses.
    """

    def __init__(
        self,
        index: int,
        layer: nn.Module,
        tuple_length: int | None,
        kept: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.index = index
        self.tuple_length = tuple_length
        object.__setattr__(self, "_layer", layer)  # unregistered: its weights are not ours to load
        for name, module in kept.items():  # by the names that a checkpoint has
            *holders, last = name.split(".")
            modules = self._modules
            for part in holders:  # not by add_module, to which the attributes of the layer are ours
                modules = modules.setdefault(part, nn.Module())._modules  # type: ignore[union-attr]
            modules[last] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    @property
    def original(self) -> nn.Module:
        """The layer that this replaces, without weights."""
        layer: nn.Module = object.__getattribute__(self, "_layer")
        return layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        layer = None if cache is None else cache.layers[self.index]
        if isinstance(cache, PackedCache):
            cache.skip(self.index)
        elif (
            cache is not None
            and isinstance(layer, CacheLayerMixin)
            and not skip_tokens(layer, hidden.shape[0], hidden.shape[1])
        ):
            shadow = torch.zeros(hidden.shape[0], 1, hidden.shape[1], 1, dtype=torch.uint8, device=hidden.device)
            cache.update(shadow, shadow, self.index)
        return hidden if self.tuple_length is None else (hidden, *[None] * (self.tuple_length - 1))
