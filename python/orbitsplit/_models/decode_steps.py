"""Decode steps of a stage without what transformers prepares for each forward.

Masks, angles and placeholders of other stages' modules take as long for one token as two layers of a small model, and
every stage pays it. Where no token is padded they are known: a new token sees all that is in the cache, and its angles
follow from its position. So a stage whose own layers all run in the core (`fused_layers.py`) computes a step as
embeddings, layers, norm and head, where a trial at load gives the bits of transformers' forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from .architecture import Layout
from .fused_layers import FusedLayer, is_supported_layer
from .packing import PackedCache
from .passthrough import Passthrough
from .weight_products import FEW_ROWS

# Rotary positions whose frequencies do not depend on how long the text has become.
_FIXED_FREQUENCIES = frozenset({"default", "linear", "llama3", "yarn"})
# Positions whose angles are computed together, and how many such blocks are kept.
_BLOCK, _MOST_BLOCKS = 64, 32
# The most tokens of a pack, in all sequences together: the layers compute more in transformers' forward.
MOST_PACKED = FEW_ROWS


class DecodeSteps:
    """A stage's forward for one new token in each sequence, or for a pack of a few; no sequence is padded."""

    def __init__(self, model: PreTrainedModel, layout: Layout, *, is_first: bool, is_last: bool) -> None:
        base = _base(model, layout)
        layers = layout.layers_of(model)
        kinds = _kinds(model, base.rotary_emb, len(layers))
        angles = {kind: _Angles(base.rotary_emb, kind, model.dtype) for kind in dict.fromkeys(kinds)}
        self._layers: list[tuple[Any, _Angles | None]] = [
            (layer, None if isinstance(layer, Passthrough) else angles[kind])
            for layer, kind in zip(layers, kinds, strict=True)
        ]
        self._embeddings: Any = model.get_input_embeddings() if is_first else None
        self._norm: Any = base.norm if is_last else None
        self._head: Any = model.get_output_embeddings() if is_last else None

    @classmethod
    def of(cls, model: PreTrainedModel, layout: Layout, *, is_first: bool, is_last: bool) -> DecodeSteps | None:
        """Return the steps of a stage; None unless the core computes all of its layers, and angles are fixed."""
        layers = layout.layers_of(model)
        frequencies = getattr(getattr(_base(model, layout), "rotary_emb", None), "rope_type", None)
        names = frequencies.values() if isinstance(frequencies, dict) else [frequencies]
        # Of other stages' layers the kind counts: a stage may have none, and still embeddings or a head.
        is_supported = all(
            is_supported_layer(layer.original) if isinstance(layer, Passthrough) else _is_fused(layer)
            for layer in layers
        )
        if not is_supported or not _FIXED_FREQUENCIES.issuperset(names):
            return None
        return cls(model, layout, is_first=is_first, is_last=is_last)

    @torch.inference_mode()
    def forward(self, x: Tensor, position: int, cache: Cache, *, without_head: bool = False) -> Tensor:
        """Return what `StageModel.forward` does for x [B, 1] or [B, 1, H] at a position, and extend the cache."""
        if self._embeddings is not None:
            x = self._embeddings(x)
        for layer, angles in self._layers:
            if angles is None:
                layer.forward(x, past_key_values=cache)  # of another stage: it counts the token
            else:
                x = layer(x, position_embeddings=angles.at(position), past_key_values=cache)
        if self._head is None or without_head:
            return x
        logits: Tensor = self._head(self._norm(x))[:, -1]
        return logits

    @torch.inference_mode()
    def forward_packed(
        self, x: Tensor, positions: Sequence[int], cache: PackedCache, *, logits_at: Sequence[int] = ()
    ) -> Tensor:
        """Return what `StageModel.forward_packed` does for up to `MOST_PACKED` tokens x [1, n] or [1, n, H]."""
        if self._embeddings is not None:
            x = self._embeddings(x)
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, angles in self._layers:
            if angles is None:
                cache.skip(layer.index)
                continue
            if id(angles) not in pairs:
                pairs[id(angles)] = angles.at_each(positions)
            x = layer(x, position_embeddings=pairs[id(angles)], past_key_values=cache)
        if self._head is None or not logits_at:
            return x
        logits: Tensor = self._head(self._norm(x[:, list(logits_at)]))[0]
        return logits


class _Angles:
    """Cosines and sines of a kind of layers, a block of positions at a time; of the blocks used last some are kept."""

    def __init__(self, rotary: nn.Module, kind: str | None, dtype: torch.dtype) -> None:
        self._rotary, self._arguments = rotary, () if kind is None else (kind,)
        self._like = torch.empty(0, dtype=dtype)
        self._blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def at(self, position: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [1, 1, head size] of a position."""
        number, place = divmod(position, _BLOCK)
        block = self._blocks.pop(number, None)
        if block is None:
            positions = torch.arange(number * _BLOCK, (number + 1) * _BLOCK)[None]
            pair = self._rotary(self._like, positions, *self._arguments)
            block = list(zip(*(angles.split(1, dim=1) for angles in pair), strict=True))
            if len(self._blocks) == _MOST_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = block  # the last one of those in use
        return block[place]

    def at_each(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [1, n, head size] of n positions."""
        cosines, sines = zip(*map(self.at, positions), strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)


def _base(model: PreTrainedModel, layout: Layout) -> Any:
    """Return the module that has the list of layers."""
    return model.get_submodule(layout.layers_name.rpartition(".")[0])


def _is_fused(layer: nn.Module) -> bool:
    return isinstance(vars(layer).get("forward"), FusedLayer)


def _kinds(model: PreTrainedModel, rotary: nn.Module, layers: int) -> list[str | None]:
    """Return the kind of each layer where angles differ by kind, else None for all."""
    if "layer_type" not in inspect.signature(rotary.forward).parameters:
        return [None] * layers
    return list(model.config.get_text_config(decoder=True).layer_types)
