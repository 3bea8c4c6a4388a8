"""What stands in the place of a KV cache for models that do not use transformers' own."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .kv_cache import growing_cache
from .source import cache_argument

# "cache": a KV cache that is made for it; "own": what the model makes and takes again; "inputs": none, so that earlier
# tokens are computed anew.
StateKind = Literal["cache", "own", "inputs"]

# States of XLNet and Reformer.
OTHER_STATES = frozenset({"mems", "past_buckets_states"})


def state_kind(architecture: type[PreTrainedModel]) -> StateKind:
    """Return how a model that generates keeps what it has of earlier tokens."""
    name = cache_argument(architecture)
    other = next((name for name in inspect.signature(architecture.forward).parameters if name in OTHER_STATES), None)
    if other is not None:
        raise ValueError(
            f"{architecture.__name__} cannot be split into stages: of earlier tokens it keeps {other}, which its "
            "generate cuts and passes in a way of its own"
        )
    if name is None:
        return "inputs"
    # As generate finds it out, by names of classes.
    return "cache" if name != "state" and architecture._supports_default_dynamic_cache() else "own"


def empty_state(
    kind: StateKind, config: PreTrainedConfig, most_tokens: int | None = None, *, spare_tokens: int = 0
) -> Cache:
    """Return what a stage of a model of a configuration starts a text with; see `growing_cache`."""
    if kind == "inputs":
        return InputsSoFar()
    if kind == "own":
        return OwnState()
    return growing_cache(config.get_text_config(decoder=True), most_tokens, spare_tokens=spare_tokens)


class InputsSoFar(Cache):  # type: ignore[misc]  # transformers is not typed
    """What a stage without a KV cache has received of a text: with it, its layers compute all tokens at each step.

    A causal model gives earlier tokens the same hidden states each time, so that those of new tokens alone are sent.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._inputs: Tensor | None = None

    def append(self, x: Tensor) -> Tensor:
        """Return the ids [B, S] or hidden states [B, S, W] of all tokens, the new ones last."""
        self._inputs = x if self._inputs is None else torch.cat([self._inputs, x], dim=1)
        return self._inputs

    @property
    def nbytes(self) -> int:
        """The bytes of what it has."""
        return 0 if self._inputs is None else self._inputs.nbytes

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the rows be those of `beam_idx`."""
        if self._inputs is not None:
            self._inputs = self._inputs.index_select(0, beam_idx)


class OwnState(Cache):  # type: ignore[misc]
    """Holds the state that a model makes in its first forward, and takes in those that follow."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.value: Any = None


def layers_in(cache: Cache) -> list[Any]:
    """Return the layers of a cache, also of one that a model has made."""
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    inner = cache.value if isinstance(cache, OwnState) else cache
    return list(inner.layers) if isinstance(inner, Cache) else []


def state_bytes(cache: OwnState, index: int, layers: int) -> int:
    """Return the bytes of a layer's part of a model's own state, but for those of its layer of keys and values."""
    if isinstance(cache.value, list):  # of all layers in each tensor: a stage has all of it
        return sum(state.nbytes for state in cache.value)
    lists = [states for states in vars(cache.value).values() if isinstance(states, list) and len(states) <= layers]
    own = [states[index] for states in lists if index < len(states)]
    return sum(state.nbytes for state in own if isinstance(state, Tensor))
