"""A KV cache that grows in place: each step writes its keys and values behind those of before.

transformers' own dynamic layers join the past and the new tokens in fresh memory at each step, which moves the whole
cache for one token. Here a layer has room for some more tokens, and is moved once that room is used up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig

# Tokens that a layer has room for at a time: a cache is moved once in as many steps, and takes up to as many too much.
ROOM_TOKENS = 32
# The keys and values of a layer that another stage runs, of any number of sequences and tokens.
_NOTHING = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)


def growing_cache(config: PreTrainedConfig, most_tokens: int | None = None, *, spare_tokens: int = 0) -> Cache:
    """Return an empty cache for a decoder's configuration; layers other than plain attention are transformers' own.

    `most_tokens` is the length at which a sequence ends, if it is known: no room is taken for more. The last
    `spare_tokens` tokens can be taken back.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_growing(layer, most_tokens, spare_tokens) for layer in cache.layers]
    return cache


def _growing(layer: Any, most_tokens: int | None, spare_tokens: int) -> Any:
    if type(layer) is DynamicLayer:
        return GrowingLayer(most_tokens)
    if type(layer) is DynamicSlidingWindowLayer:
        return GrowingSlidingLayer(layer.sliding_window, most_tokens, spare_tokens)
    return layer


def rewind(cache: Cache, tokens: int) -> None:
    """Take back all but the first `tokens` tokens of a growing cache that `takes_chunks`."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.rewind(tokens)


def saved(cache: Cache) -> list[dict[str, Any]]:
    """Return the state of a growing cache that `takes_chunks`, for `restore`; nothing is copied."""
    return [dict(vars(layer)) for layer in cache.layers]


def restore(cache: Cache, states: Iterable[dict[str, Any]]) -> None:
    """Take back what was appended to a cache since `saved`: the memory of earlier tokens is not overwritten."""
    for layer, state in zip(cache.layers, states, strict=True):
        vars(layer).update(state)


def has_first_tokens(cache: Cache, tokens: int) -> bool:
    """Whether a growing cache that `takes_chunks` still has what its first `tokens` tokens need, so that others follow.

    Layers with a window have dropped what their last token does not see.
    """
    return all(
        layer.cumulative_length in range(tokens, max(tokens + 1, layer.sliding_window))
        for layer in cache.layers
        if isinstance(layer, GrowingSlidingLayer) and layer.is_initialized
    )


def copy_first_tokens(source: Cache, tokens: int, cache: Cache) -> None:
    """Fill an empty growing cache with the first `tokens` tokens of one sequence of another that has them."""
    for old, new in zip(source.layers, cache.layers, strict=True):
        if not old.is_initialized:
            continue
        if old.keys.dtype is _NOTHING.dtype:  # of another stage: it counts tokens
            skip_tokens(new, old.keys.shape[0], tokens)
            continue
        kept = tokens
        if isinstance(new, GrowingSlidingLayer):
            kept = min(tokens, new.sliding_window - 1)
        new.update(old.keys[:, :, :kept], old.values[:, :, :kept])
        if isinstance(new, GrowingSlidingLayer):
            new.cumulative_length = tokens


def takes_chunks(cache: Cache) -> bool:
    """Whether all layers of a growing cache take the tokens of a prompt a part at a time: plain attention does.

    Layers with a state, as of convolutions and recurrences, take it whole: transformers' forwards go on from a state
    for a single token only.
    """
    growing = (GrowingLayer, GrowingSlidingLayer)
    return bool(cache.layers) and all(isinstance(layer, growing) for layer in cache.layers)


def skip_tokens(layer: Any, sequences: int, tokens: int) -> bool:
    """Count new tokens in a layer of a growing cache that another stage runs: lengths and masks are as if it ran here.

    Returns False, and does nothing, for a layer that needs keys and values.
    """
    most = None
    if isinstance(layer, GrowingSlidingLayer) and not layer.record_past and layer.sliding_window > 1:
        layer.cumulative_length += tokens
        most = layer.sliding_window - 1
    elif not isinstance(layer, GrowingLayer):
        return False
    known = layer.keys.shape[-2] if layer.is_initialized else 0
    if not layer.is_initialized:
        layer.lazy_initialization(_NOTHING, _NOTHING)
    length = known + tokens if most is None else min(known + tokens, most)
    layer.keys = layer.values = _NOTHING.expand(sequences, 1, length, 1)
    return True


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values [B, heads, S, D] as the filled part of larger tensors."""

    keys: Tensor
    values: Tensor

    def __init__(self, most_tokens: int | None) -> None:
        super().__init__()
        self._key_room, self._value_room = _Room(most_tokens), _Room(most_tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens, [B, heads, S, D] each, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._key_room.append(self.keys, key_states)
        self.values = self._value_room.append(self.values, value_states)
        return self.keys, self.values

    def rewind(self, tokens: int) -> None:
        """Take back all but the first `tokens` tokens."""
        self.keys, self.values = self.keys[:, :, :tokens], self.values[:, :, :tokens]


class GrowingSlidingLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The same of the last tokens only: those that the attention's window sees, and some that it may see again."""

    keys: Tensor
    values: Tensor
    cumulative_length: int

    def __init__(self, sliding_window: int, most_tokens: int | None, spare_tokens: int) -> None:
        super().__init__(sliding_window)
        self._key_room, self._value_room = _Room(most_tokens), _Room(most_tokens)
        self._spare_tokens = spare_tokens
        # Keys and values with the spare ones before them, of which `keys` and `values` are the end.
        self.with_spare: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens, [B, heads, S, D] each, and return those that the window sees."""
        if self.record_past:
            pair: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return pair
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        if not self._spare_tokens:
            keys = self._key_room.append(self.keys, key_states)
            values = self._value_room.append(self.values, value_states)
            self._keep_window(keys, values)
            return keys, values
        seen = (self.keys.shape[-2] if self.keys.numel() else 0) + key_states.shape[-2]
        past_keys, past_values = self.with_spare or (self.keys, self.values)
        keys = self._key_room.append(past_keys, key_states)
        values = self._value_room.append(past_values, value_states)
        most = self.sliding_window - 1 + self._spare_tokens
        self.with_spare = keys[:, :, -most:], values[:, :, -most:]
        self._keep_window(keys, values)
        return keys[:, :, -seen:], values[:, :, -seen:]

    def rewind(self, tokens: int) -> None:
        """Take back all but the first `tokens` tokens, at most as many as are spare."""
        back: int = self.cumulative_length - tokens
        if back == 0:
            return
        self.cumulative_length = tokens
        if self.keys.dtype is _NOTHING.dtype:  # of another stage: it counts tokens
            length = min(tokens, self.sliding_window - 1)
            self.keys = self.values = _NOTHING.expand(self.keys.shape[0], 1, length, 1)
            return
        assert self.with_spare is not None, "tokens are taken back of a cache without spare ones"
        assert back <= self._spare_tokens, "more tokens are taken back than are spare"
        keys, values = (state[:, :, : state.shape[-2] - back] for state in self.with_spare)
        self.with_spare = keys, values
        self._keep_window(keys, values)

    def _keep_window(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys[:, :, -self.sliding_window + 1 :]
        self.values = values[:, :, -self.sliding_window + 1 :]


class _Room:
    """A tensor [B, heads, R, D] of which some tokens in a row are filled."""

    def __init__(self, most_tokens: int | None) -> None:
        self._most = most_tokens
        self._tensor: Tensor | None = None

    def append(self, past: Tensor, new: Tensor) -> Tensor:
        """Return past and new tokens as one view, moving the past ones only if there is no room behind them.

        `past` is what an earlier call returned, a part of it, or any other tensor [B, heads, S, D]; it may be empty.
        """
        if past.numel() == 0:
            past = new[:, :, :0]
        known = past.shape[-2]
        tokens = known + new.shape[-2]
        start = self._start_of(past)
        if self._tensor is None or start is None or start + tokens > self._tensor.shape[-2]:
            rows = -(-tokens // ROOM_TOKENS) * ROOM_TOKENS
            rows = rows if self._most is None else max(tokens, min(rows, self._most))
            start, self._tensor = 0, new.new_empty(*new.shape[:-2], rows, new.shape[-1])
            self._tensor[:, :, :known] = past
        self._tensor[:, :, start + known : start + tokens] = new
        return self._tensor[:, :, start : start + tokens]

    def _start_of(self, past: Tensor) -> int | None:
        """Return at which token of the room a view begins; None for a tensor elsewhere, or of other sequences."""
        room = self._tensor
        if room is None or past.untyped_storage().data_ptr() != room.untyped_storage().data_ptr():
            return None
        if past.stride() != room.stride() or past.shape[:2] != room.shape[:2]:
            return None
        start, rest = divmod(int(past.storage_offset()), room.shape[-1])
        return start if rest == 0 else None
