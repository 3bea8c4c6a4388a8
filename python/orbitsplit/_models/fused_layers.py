"""Decoder layers on quantised weights in two calls of the core instead of some hundred of torch's.

A decode step of a small model spends as long in Python and in torch's dispatch as in products. Layers of the usual form
(`cpp/include/orbitsplit/decoder.hpp`: norms, attention with rotary positions, a gated MLP) are computed by the core
for few tokens, where a probe gives what transformers' own forward gives; that computes other layers, and many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from orbitsplit._backend import backend, backend_name
from orbitsplit._weights.quantized import FORMATS

from .fused_norms import norm_scale
from .packing import PackedCache
from .quantized import QuantizedLinear
from .weight_products import FEW_ROWS

# Layers whose code has been read: a probe with small scores would not notice that they are capped, for example.
_SUPPORTED_LAYERS = {
    "Gemma3DecoderLayer",
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_HEAD_NORMS = {"queries": "q_norm", "keys": "k_norm"}
_TWO_NORMS = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
_FOUR_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
_NETWORK = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    nn.functional.silu,
    lambda x: nn.functional.gelu(x, approximate="tanh"),
)
# Keyword arguments of a layer's forward that do not change what it computes.
_IGNORED = frozenset({"position_ids", "use_cache", "cache_position"})
_EVERYTHING = np.empty(0, np.uint8)
# What a probe may differ by, relative to the largest output: inputs of products are rounded to 16 bits.
_TOLERANCE = 1e-4
_PROBED_PAST = 5
# A head is a whole number of vectors of the core, and so is its half.
_HEAD_UNIT = 16


def fuse_layers(layers: Iterable[nn.Module]) -> int:
    """Let the core compute the layers of the usual form whose results agree, and return how many those are.

    The weights have to have their values, and keep them.
    """
    count = 0
    for layer in layers:
        fused = FusedLayer.of(layer)
        if fused is not None and _agree(layer, fused):
            vars(layer)["forward"] = fused
            count += 1
    return count


def is_supported_layer(layer: nn.Module) -> bool:
    """Say whether a layer is of a class of transformers whose forward has the usual form."""
    kind = type(layer)
    return kind.__name__ in _SUPPORTED_LAYERS and kind.__module__.startswith("transformers.models.")


class FusedLayer:
    """The forward of a layer: in the core where it can be, else the layer's own."""

    def __init__(self, layer: nn.Module, core: Any) -> None:
        attention: Any = layer.self_attn
        self._core, self._own = core, layer.forward
        self._index, self._hidden_size = int(attention.layer_idx), int(attention.q_proj.in_features)
        self._head_size = int(attention.head_dim)
        self._heads = int(attention.q_proj.out_features) // self._head_size
        self._kv_heads = int(attention.k_proj.out_features) // self._head_size

    @classmethod
    def of(cls, layer: nn.Module) -> FusedLayer | None:
        """Return the fused forward of a layer, None for one that has other parts than the usual ones."""
        core = _core_layer(layer)
        return None if core is None else cls(layer, core)

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """Return the hidden state [B, S, H] behind the layer, whose new keys and values are in the cache then.

        With a `PackedCache` the tokens [1, n, H] are those of its sequences, and each sequence sees its own.
        """
        if (
            position_embeddings is None
            or past_key_values is None
            or not self._takes(hidden_states, attention_mask, position_embeddings[0])
            or not _IGNORED.issuperset(others)
        ):
            return self._own(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **others,
            )
        x = hidden_states.contiguous()
        sequences, tokens, _ = x.shape
        rows, threads = sequences * tokens, torch.get_num_threads()
        cosines, sines = (_rows_of(angles, sequences) for angles in position_embeddings)
        queries = torch.empty(sequences, tokens, self._heads, self._head_size)
        keys, values = torch.empty(2, sequences, tokens, self._kv_heads, self._head_size)
        singles = x.numpy()
        self._core.project(
            singles, rows, cosines, sines, queries.numpy(), keys.numpy(), values.numpy(), threads=threads
        )
        new = keys.transpose(1, 2), values.transpose(1, 2)
        if isinstance(past_key_values, PackedCache):
            caches = self._update_each(past_key_values, *new)
        else:
            seen = [past.numpy() for past in past_key_values.update(*new, self._index)]
            visible = _EVERYTHING if attention_mask is None else _visible(attention_mask, seen[0].shape[2], sequences)
            caches = [(*seen, visible, tokens)]
        y = torch.empty_like(x)
        self._core.attend(singles, rows, queries.numpy(), caches, y.numpy(), threads=threads)
        return y

    def _update_each(self, packed: PackedCache, keys: Tensor, values: Tensor) -> list[tuple[Any, Any, Any, int]]:
        """Append the new keys and values of each sequence and return the core's view of its cache."""
        window = packed.window(self._index)
        caches = []
        for k, (own_keys, own_values) in enumerate(packed.update_each(keys, values, self._index)):
            visible = _EVERYTHING
            # The core knows by itself that a token sees those before it.
            if window is not None and own_keys.shape[2] > window:
                mask = packed.visible(k, own_keys, self._index)
                visible = _EVERYTHING if mask is None else mask.view(torch.uint8).numpy()
            caches.append((own_keys.numpy(), own_values.numpy(), visible, packed.sizes[k]))
        return caches

    def probe(self, forward: Callable[..., Any], sequences: int, size: float, *, has_mask: bool) -> list[Tensor]:
        """Run a forward for one new token and return what it gives, and the keys and values it leaves."""
        past = (sequences, self._kv_heads, _PROBED_PAST, self._head_size)
        cache = DynamicCache()
        cache.update(_waves(past, 1.0, math.e), _waves(past, 1.0, math.pi), self._index)
        angles = _waves((1, 1, self._head_size), math.pi, math.sqrt(2.0))
        mask = None
        if has_mask and sequences > 1:
            mask = torch.ones(sequences, 1, 1, _PROBED_PAST + 1, dtype=torch.bool)
            mask[1, ..., 0] = mask[2, ..., :2] = False
        y = forward(
            _waves((sequences, 1, self._hidden_size), size, math.sqrt(3.0)),
            attention_mask=mask,
            position_embeddings=(angles.cos(), angles.sin()),
            past_key_values=cache,
        )
        return [
            y if isinstance(y, Tensor) else torch.empty(0),
            cache.layers[self._index].keys,
            cache.layers[self._index].values,
        ]

    def _takes(self, x: Tensor, mask: Tensor | None, cosines: Tensor) -> bool:
        """Say whether the core computes this: few tokens in float32 on the CPU, all of a head rotated."""
        return (
            x.dtype is torch.float32
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and 0 < x.shape[0] * x.shape[1] <= FEW_ROWS
            and (mask is None or (mask.dtype is torch.bool and mask.dim() == 4 and mask.shape[1] == 1))
            and cosines.dtype is torch.float32
            and cosines.dim() == 3
            and cosines.shape[-1] == self._head_size
        )


def _core_layer(layer: Any) -> Any:
    """Return the core's object of a layer, None for one that the core does not compute."""
    # The fallback has the same function, but torch is faster than its loops over rows and heads.
    parts = _parts(layer) if backend_name() == "native" else None
    if parts is None:
        return None
    linears, norms = parts
    scales = {name: norm_scale(module) for name, module in norms.items()}
    known = {name: scale for name, scale in scales.items() if scale is not None and scale[0].dtype is torch.float32}
    epsilons = {epsilon for _, epsilon in known.values()}
    activation = _activation(layer.mlp.act_fn)
    head_size = int(layer.self_attn.head_dim)
    if len(known) != len(norms) or len(epsilons) != 1 or activation is None or head_size % _HEAD_UNIT:
        return None
    return backend().DecoderLayer(
        heads=linears["query"].out_features // head_size,
        kv_heads=linears["key"].out_features // head_size,
        head_size=head_size,
        attention_scale=float(layer.self_attn.scaling),
        activation=activation,
        epsilon=epsilons.pop(),
        matrices={name: _numbers(linear) for name, linear in linears.items()},
        biases={name: linear.bias.detach().numpy() for name, linear in linears.items() if linear.bias is not None},
        scales={name: scale.contiguous().numpy() for name, (scale, _) in known.items()},
    )


def _parts(layer: nn.Module) -> tuple[dict[str, QuantizedLinear], dict[str, nn.Module]] | None:
    """Return the linear layers and the norms of a layer by the core's names; None if it has others, or lacks some."""
    if not is_supported_layer(layer):
        return None
    modules: dict[str, Any] = dict(layer.named_modules())
    linears = {name: modules.pop(f"self_attn.{own}", None) for name, own in _PROJECTIONS.items()}
    linears |= {name: modules.pop(f"mlp.{own}", None) for name, own in _NETWORK.items()}
    of_layer = _FOUR_NORMS if "pre_feedforward_layernorm" in modules else _TWO_NORMS
    norms = {name: modules.pop(own) for name, own in of_layer.items()}
    for name, own in _HEAD_NORMS.items():
        if f"self_attn.{own}" in modules:
            norms[name] = modules.pop(f"self_attn.{own}")
    has_others = any(True for module in modules.values() for _ in module.parameters(recurse=False))
    is_plain = all(type(linear) is QuantizedLinear and not linear.int8_rows for linear in linears.values())
    if has_others or not is_plain:
        return None
    return linears, norms


def _activation(own: Callable[[Tensor], Tensor]) -> int | None:
    """Return the core's number of an activation."""
    x = torch.linspace(-8.0, 8.0, 257)
    for number, known in enumerate(_ACTIVATIONS):
        if torch.allclose(own(x), known(x), rtol=1e-5, atol=1e-6):
            return number
    return None


def _numbers(linear: QuantizedLinear) -> tuple[Any, int, int, int]:
    matrix = linear.matrix()
    return matrix.data, FORMATS[matrix.format], *matrix.shape


def _rows_of(angles: Tensor, sequences: int) -> Any:
    """Return cosines or sines [B or 1, S, D] for each row of each sequence."""
    if len(angles) != sequences:
        angles = angles.expand(sequences, *angles.shape[1:])
    return angles.contiguous().numpy()


def _visible(mask: Tensor, tokens: int, sequences: int) -> Any:
    """Return which tokens each new one sees, uint8 [B, S, T]."""
    return mask[:, 0, :, :tokens].expand(sequences, -1, -1).contiguous().view(torch.uint8).numpy()


@torch.inference_mode()
def _agree(layer: nn.Module, fused: FusedLayer) -> bool:
    """Say whether both give the same, and leave the same cache, for small and for large inputs."""
    attention: Any = layer.self_attn
    has_mask = attention.config._attn_implementation == "sdpa"
    for sequences, size in ((1, 1.0), (3, 30.0)):
        results = [fused.probe(forward, sequences, size, has_mask=has_mask) for forward in (layer.forward, fused)]
        for expected, found in zip(*results, strict=True):
            if expected.shape != found.shape:
                return False
            limit = _TOLERANCE * float(expected.abs().max())
            if not float((found - expected).abs().max()) <= limit:
                return False
    return True


def _waves(shape: tuple[int, ...], size: float, frequency: float) -> Tensor:
    """Return numbers up to `size` without a pattern that heads, tokens or columns share."""
    count = math.prod(shape)
    return (size * torch.sin(frequency * torch.arange(1, count + 1, dtype=torch.float64))).reshape(shape).float()
