"""The state of a KV cache by layer, so that another process goes on with it to the last bit.

Plain attention has keys and values of its tokens, or of the last ones that its window sees; a layer of convolutions or
a recurrence has states of a fixed size. Caches with other layers cannot be moved: they are made again by prefill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionLayer

from .kv_cache import GrowingLayer, GrowingSlidingLayer, skip_tokens

# What a layer of a recurrence has beside its tensors, which `_recurrent_state` takes.
_FLAGS = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")


class LayerState(NamedTuple):
    """The state of one layer: its tensors by name, and whatever else it has as JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class LayerBytes(NamedTuple):
    """The bytes of a layer's state: `fixed`, and so many per token of up to `most_tokens` (None: of all)."""

    fixed: int
    per_token: int
    most_tokens: int | None

    def of(self, rows: int, tokens: int) -> int:
        """Return the bytes for so many rows of so many tokens each."""
        kept = tokens if self.most_tokens is None else min(tokens, self.most_tokens)
        return rows * (self.fixed + self.per_token * kept)


def has_movable_layers(cache: Cache, layers: int) -> bool:
    """Whether the state of each of a model's transformer layers is a layer of the cache that can be moved."""
    movable = (GrowingLayer, GrowingSlidingLayer)
    return len(cache.layers) == layers and all(
        isinstance(layer, movable) or type(layer) is LinearAttentionLayer for layer in cache.layers
    )


def layer_bytes(layer: Any, tokens: int) -> LayerBytes:
    """Return the bytes of a layer that has seen one row of so many tokens, fewer than its window if it has one."""
    size = sum(state.nbytes for state in layer_state(layer).tensors.values())
    if type(layer) is LinearAttentionLayer:
        return LayerBytes(size, 0, None)
    window = layer.sliding_window - 1 if isinstance(layer, GrowingSlidingLayer) else None
    return LayerBytes(0, size // tokens, window)


def layer_state(layer: Any) -> LayerState:
    """Return the state of a layer that has movable layers' kind; nothing is copied."""
    if type(layer) is LinearAttentionLayer:
        return _recurrent_state(layer)
    if not isinstance(layer, GrowingSlidingLayer):
        return LayerState({"keys": layer.keys, "values": layer.values}, {})
    keys, values = layer.with_spare or (layer.keys, layer.values)
    return LayerState({"keys": keys, "values": values}, {"cumulative_length": layer.cumulative_length})


def cache_of(cache: Cache, states: Mapping[int, LayerState], *, rows: int, tokens: int) -> Cache:
    """Return an empty growing cache filled with the states of some layers; others count so many tokens of each row."""
    for index, layer in enumerate(cache.layers):
        state = states.get(index)
        if state is None:
            skip_tokens(layer, rows, tokens)
        elif type(layer) is LinearAttentionLayer:
            _set_recurrent_state(layer, state)
        else:
            layer.update(state.tensors["keys"], state.tensors["values"])
            if isinstance(layer, GrowingSlidingLayer):
                layer.cumulative_length = state.values["cumulative_length"]
    return cache


def _recurrent_state(layer: Any) -> LayerState:
    tensors = {
        f"{name}.{index}": state
        for name in ("conv_states", "recurrent_states")
        for index, state in getattr(layer, name).items()
        if state is not None
    }
    # Their keys are numbers, which JSON has as strings.
    return LayerState(tensors, {name: list(getattr(layer, name).items()) for name in _FLAGS})


def _set_recurrent_state(layer: Any, state: LayerState) -> None:
    for name, tensor in state.tensors.items():
        kind, index = name.split(".")
        getattr(layer, kind)[int(index)] = tensor.clone()
        layer.device, layer.dtype = tensor.device, tensor.dtype
    for name in _FLAGS:
        setattr(layer, name, dict(state.values[name]))


def checked_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> LayerState:
    """Return the state of which these are the parts. Raises ValueError for parts that no layer has."""
    names = {name.split(".")[0] for name in tensors}
    if not names <= {"keys", "values"} and not names <= {"conv_states", "recurrent_states"}:
        raise ValueError(f"a layer has no states {sorted(names)}")
    return LayerState(dict(tensors), dict(values))


__all__ = ["LayerBytes", "LayerState", "cache_of", "checked_state", "has_movable_layers", "layer_bytes", "layer_state"]
