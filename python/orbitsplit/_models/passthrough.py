"""What stands in the place of the layers of other stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from .cut_form import Argument, argument_of
from .kv_cache import skip_tokens
from .packing import PackedCache


@dataclass(frozen=True)
class LayerCall:
    """How the layers of a model are called.

    A layer returns the hidden state alone (`tuple_length` None) or first in a tuple of that length; what it returns at
    other positions, the next one takes as the `passed` arguments, by position. The hidden state has `streams` rows for
    each token. `cached` are the layers of the cache that each layer extends, None: the one of its own number.
    """

    tuple_length: int | None = None
    passed: tuple[tuple[int, Argument], ...] = ()
    streams: int = 1
    cached: tuple[tuple[int, ...], ...] | None = None

    def cached_by(self, index: int) -> tuple[int, ...]:
        """Return the layers of the cache that a layer extends."""
        return (index,) if self.cached is None else self.cached[index]


class Passthrough(nn.Module):
    """Replaces a layer of another stage: returns what it gets and keeps the length of the KV cache.

    transformers reads lengths, masks and positions from the first layer of each kind in the cache. So the cache grows
    here too, by nothing or one byte per token; otherwise left-padded batches are silently wrong. What models read of
    their layers, such as `layer.attention_type` or a number in its attention, is that of the layer, of which this is no
    part. Of its submodules it has the weights of those `kept` by name, which another layer uses.
    """

    def __init__(
        self, index: int, layer: nn.Module, call: LayerCall, kept: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> None:
        super().__init__()
        self.index = index
        self.call = call
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
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        for index in () if cache is None else self.call.cached_by(self.index):
            if isinstance(cache, PackedCache):
                cache.skip(index)
            else:
                _skip(cache, index, hidden, hidden.shape[1] // self.call.streams)
        if self.call.tuple_length is None:
            return hidden
        passed = dict(self.call.passed)
        others = range(1, self.call.tuple_length)
        return (hidden, *(argument_of(passed[k], args, kwargs) if k in passed else None for k in others))


def _skip(cache: Cache, index: int, hidden: Tensor, tokens: int) -> None:
    """Let a layer of the cache count new tokens."""
    layer = cache.layers[index] if index < len(cache.layers) else None  # one of its own model grows as it is used
    if layer is not None and (not isinstance(layer, CacheLayerMixin) or skip_tokens(layer, hidden.shape[0], tokens)):
        return
    shadow = torch.zeros(hidden.shape[0], 1, tokens, 1, dtype=torch.uint8, device=hidden.device)
    cache.update(shadow, shadow, index)
