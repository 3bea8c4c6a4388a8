"""Costs of the layers of a model without its weights: a prefill, and one token, on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._models.architecture import Layout, running_unknown_code
from orbitsplit._models.encoder_decoder import (
    EncoderOutput,
    example_prompt,
    new_encoder_decoder_cache,
    run_encoder,
)
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.passthrough import Passthrough
from orbitsplit._models.source import cache_argument, example_inputs
from orbitsplit._models.valueless import build_on_meta, build_unfilled

_NOTHING_KEPT: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class LayerCosts:
    """Costs of the n + 2 layers of a model, in bytes and FLOP, as in a `LayerProfile`.

    They are of `tokens` tokens: those of a prompt, of an image, or of what an encoder of `encoder_layers` makes.
    """

    hidden_size: int
    tokens: int
    weight_bytes: tuple[int, ...]
    kv_bytes_per_token: tuple[int, ...]
    kv_tokens_max: tuple[int | None, ...]
    prefill_flop: tuple[int, ...]
    decode_flop: tuple[int, ...]
    workspace_bytes: tuple[int, ...]
    tied_bytes: int
    encoder_layers: int | None = None


def count_costs(config: PreTrainedConfig, *, prompt_tokens: int, batch_size: int, dtype: torch.dtype) -> LayerCosts:
    """Count the costs of each layer for a prefill and, of a model that generates, then one token.

    Both are of `batch_size` texts of `prompt_tokens` tokens, or images. Raises ValueError for a model that cannot be
    split, or does not take that many tokens.
    """
    layout = find_layout(config)
    model = build_on_meta(config, dtype=dtype)
    weight_bytes, tied_bytes = _weights(model, layout)
    encoder_layers = None if layout.encoder is None else layout.encoder.layer_count
    tokens = layout.image_tokens or prompt_tokens
    try:
        forwards = _count_forwards(model, layout, prompt_tokens, batch_size)
    except Exception:  # whatever an architecture's code makes of tensors without values
        with running_unknown_code(config, f"a forward of {tokens} tokens fails"):
            forwards = _count_forwards(build_unfilled(config, dtype=dtype), layout, prompt_tokens, batch_size)
    # After the first stage there is the received hidden state in addition to the placeholder of the embeddings.
    # In the decoder of a model with an encoder there are both sides' hidden states.
    received = tokens if encoder_layers is None else tokens + 1
    received_bytes = batch_size * received * layout.hidden_size * dtype.itemsize
    return LayerCosts(
        hidden_size=layout.hidden_size,
        tokens=tokens,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=(0, *(size for size, _ in forwards.kv), 0),
        kv_tokens_max=(None, *(limit for _, limit in forwards.kv), None),
        prefill_flop=forwards.prefill_flop,
        decode_flop=forwards.decode_flop,
        workspace_bytes=tuple(size + received_bytes for size in forwards.workspace_bytes),
        tied_bytes=tied_bytes,
        encoder_layers=encoder_layers,
    )


class _Forwards(NamedTuple):
    """What a prefill and a step cost in each of the n + 2 layers, and what each of the n layers keeps of a token."""

    prefill_flop: tuple[int, ...]
    decode_flop: tuple[int, ...]
    workspace_bytes: tuple[int, ...]
    kv: list[tuple[int, int | None]]


def _count_forwards(model: PreTrainedModel, layout: Layout, prompt_tokens: int, batch_size: int) -> _Forwards:
    like = _keep_one_of_each_kind(model, layout)
    cache: Cache | None = None
    if layout.encoder is not None:
        cache = new_encoder_decoder_cache(model.config)
    elif layout.generates:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    meter = _Meter(model, layout, cache)
    decode_flop, kv = (0,) * (len(like) + 2), [_NOTHING_KEPT] * len(like)
    prefill_flop = _spread(meter.measure(batch_size, prompt_tokens), like)
    if cache is not None:
        decode_flop = _spread(meter.measure(batch_size, 1), like)
        kv = [_kv_at(cache, layout, index, batch_size) for index in like]
    return _Forwards(prefill_flop, decode_flop, _spread(tuple(meter.workspace_bytes), like), kv)


def _weights(model: PreTrainedModel, layout: Layout) -> tuple[tuple[int, ...], int]:
    layers = layout.layers_of(model)
    if layout.encoder is not None:
        return _weights_of_both(model, layout, layers)
    first, last = (_parameters(model, names) for names in (layout.before | layout.image_modules, layout.after))
    own = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    tied = sum(size for parameter, size in first.items() if parameter in last)
    return (sum(first.values()), *own, sum(last.values())), tied


def _weights_of_both(model: PreTrainedModel, layout: Layout, layers: nn.ModuleList) -> tuple[tuple[int, ...], int]:
    """Return the same of an encoder and a decoder, whose embeddings and head are often one matrix.

    What is tied are weights of the head: a third copy, of the other embeddings, counts on a single node too.
    """
    first, last = (_parameters(model, names) for names in (layout.before, layout.after))
    own = [{parameter: parameter.nbytes for parameter in layer.parameters()} for layer in layers]
    earlier = {parameter for part in (first, *own) for parameter in part}
    sizes = (sum(first.values()), *(sum(part.values()) for part in own), sum(last.values()))
    return sizes, sum(size for parameter, size in last.items() if parameter in earlier)


def _parameters(model: PreTrainedModel, names: frozenset[str]) -> dict[nn.Parameter, int]:
    return {parameter: parameter.nbytes for name in names for parameter in model.get_submodule(name).parameters()}


def _kv_at(cache: Cache, layout: Layout, index: int, batch_size: int) -> tuple[int, int | None]:
    """Return what `_kv` does for a layer of either list of a model with an encoder, or the only one.

    Layers of the decoder keep keys and values of its own tokens and of the encoder's, of the same size.
    """
    if not isinstance(cache, EncoderDecoderCache):
        return _kv(cache.layers[index], batch_size)
    assert layout.encoder is not None, "others have other caches"
    number = index - layout.encoder.middle_layer
    if number < 0:
        return _NOTHING_KEPT
    own, cross = (part.layers[number] for part in (cache.self_attention_cache, cache.cross_attention_cache))
    return max(_kv(own, batch_size)[0], _kv(cross, batch_size)[0]), None


def _kv(layer: Any, batch_size: int) -> tuple[int, int | None]:
    """Return the bytes per token and sequence of a layer's cache, and the most tokens that it keeps."""
    tensors = [value for value in vars(layer).values() if isinstance(value, Tensor) and value.dim() > 1]
    if not tensors:
        return _NOTHING_KEPT
    size = sum(tensor.nbytes for tensor in tensors)
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, Tensor):  # a recurrent state, of one size for any number of tokens
        return size // batch_size, 1
    return size // (batch_size * keys.shape[-2]), getattr(layer, "sliding_window", None)


def _keep_one_of_each_kind(model: PreTrainedModel, layout: Layout) -> list[int]:
    """Return for each layer the index of the first layer of its kind, and let only these first ones run.

    A forward on the meta device takes tens of milliseconds per layer, and most models have one or two kinds.
    """
    if layout.encoder is None:
        return _keep_in_list(layout.layers_of(model), layout.tuple_length)
    middle = layout.encoder.layer_count
    before = _keep_in_list(layout.encoder_layers_of(model), layout.encoder.tuple_length)
    behind = _keep_in_list(layout.decoder_layers_of(model), layout.tuple_length)
    return [*before, middle, *(middle + 1 + index for index in behind)]


def _keep_in_list(layers: nn.ModuleList, tuple_length: int | None) -> list[int]:
    first: dict[str, int] = {}
    like = [first.setdefault(_kind(layer), index) for index, layer in enumerate(layers)]
    for index, layer in enumerate(layers):
        if like[index] != index:
            layers[index] = Passthrough(index, layer, tuple_length)
    return like


def _kind(layer: nn.Module) -> str:
    parts = []
    for name, module in layer.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (str, int, float, bool))}
        plain.pop("layer_idx", None)
        shapes = [(key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False)]
        parts.append((name, type(module).__name__, plain, shapes))
    return repr(parts)


def _spread(flop: tuple[int, ...], like: list[int]) -> tuple[int, ...]:
    return (flop[0], *(flop[1 + index] for index in like), flop[-1])


@dataclass
class _Meter:
    """Attributes the FLOP and the peak of live bytes of a forward to the layers."""

    model: PreTrainedModel
    layout: Layout
    cache: Cache | None
    workspace_bytes: list[int] = field(default_factory=list)
    flops: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    marks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    cached_bytes: int = 0

    def __post_init__(self) -> None:
        self.live = _LiveBytes(self.model)

    def measure(self, batch_size: int, tokens: int) -> tuple[int, ...]:
        """Run new tokens and return the FLOP of each of the n + 2 layers."""
        options: dict[str, Any] = {}
        if isinstance(self.cache, EncoderDecoderCache):
            options = self._decoder_inputs(self.cache, batch_size)
        elif self.cache is not None:
            name = str(cache_argument(type(self.model)))
            options = {name: self.cache, "use_cache": True, "logits_to_keep": 1}
        self.marks, self.peaks = [], []
        with torch.no_grad(), self.flops, self.live, self.live.fused_attention(), self._hooks():
            inputs = self._inputs(batch_size, tokens) if "encoder_outputs" not in options else {}
            self._mark()
            if "encoder_outputs" in options:  # the encoder is done
                self._skip_encoder()
            elif self.layout.encoder is not None:
                options["encoder_outputs"] = EncoderOutput(last_hidden_state=run_encoder(self.model, inputs))
                inputs = {}
            self.model(**inputs, **options)
            self._mark()
        # The first mark is before the forward: the inputs are alive during the first layer.
        before = self.workspace_bytes or self.peaks[1:]
        self.workspace_bytes = [max(pair) for pair in zip(before, self.peaks[1:], strict=True)]
        return tuple(after - before for before, after in pairwise(self.marks))

    def _inputs(self, batch_size: int, tokens: int) -> dict[str, Tensor]:
        make = example_inputs if self.layout.encoder is None else example_prompt
        return make(self.model.config, rows=batch_size, tokens=tokens, device=self.model.device)

    def _decoder_inputs(self, cache: EncoderDecoderCache, batch_size: int) -> dict[str, Any]:
        """Return what a decoder takes for one token: the first one, or one behind others."""
        ids = torch.zeros(batch_size, 1, dtype=torch.long, device=self.model.device)
        inputs: dict[str, Any] = {"decoder_input_ids": ids, "past_key_values": cache, "use_cache": True}
        if cache.get_seq_length():
            length = next(layer.keys.shape[-2] for layer in cache.cross_attention_cache.layers if layer.is_initialized)
            shape = batch_size, length, self.layout.hidden_size
            made = torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
            inputs["encoder_outputs"] = EncoderOutput(last_hidden_state=made)
        return inputs

    def _skip_encoder(self) -> None:
        assert self.layout.encoder is not None, "it has an encoder"
        for _ in range(self.layout.encoder.middle_layer):
            self._mark()

    def _mark(self, *_: Any) -> None:
        self.marks.append(self.flops.get_total_flops())
        self.peaks.append(self.live.take_peak() - self.cached_bytes)
        cached = [] if self.cache is None else _layers_in(self.cache)
        self.cached_bytes = sum(
            value.nbytes for layer in cached for value in vars(layer).values() if isinstance(value, Tensor)
        )

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        layers = self.layout.layers_of(self.model)
        handles = [layer.register_forward_pre_hook(self._mark) for layer in layers]
        handles.append(layers[-1].register_forward_hook(self._mark))
        if self.layout.encoder is not None:
            handles.append(self.layout.encoder_layers_of(self.model)[-1].register_forward_hook(self._mark))
        for module in self.model.modules():
            if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
                handles += [
                    module.register_forward_pre_hook(lambda *_: self.live.enter_experts(True)),
                    module.register_forward_hook(lambda *_: self.live.enter_experts(False)),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _layers_in(cache: Cache) -> list[Any]:
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors, and their peak.

    Two things differ on the meta device from a processor and are not counted: the score matrix of attention, which
    fused kernels never build, and the copies of expert weights that the only experts implementation with meta kernels
    makes per token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for weight in (*model.parameters(), *model.buffers()):  # their views are not new bytes
            weight.untyped_storage()._orbitsplit_counted = True  # type: ignore[attr-defined]
        self.bytes = 0
        self.peak = 0
        self._is_paused = False
        self._is_in_experts = False

    def take_peak(self) -> int:
        """Return the peak since the last call, and reset it."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def enter_experts(self, entered: bool) -> None:
        """Set whether the forward is in a module of expert weights."""
        self._is_in_experts = entered

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """Count only the result of an attention."""
        live = self

        class Fused(TorchFunctionMode):
            def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is not nn.functional.scaled_dot_product_attention:
                    return func(*args, **(kwargs or {}))
                live._is_paused = True
                try:
                    output = func(*args, **(kwargs or {}))
                finally:
                    live._is_paused = False
                live._count(output)
                return output

        with Fused():
            yield

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        is_weight_copy = self._is_in_experts and func is torch.ops.aten.index.Tensor
        if not self._is_paused and not is_weight_copy:
            for tensor in tree_leaves(output):
                self._count(tensor)
        return output

    def _count(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        if getattr(storage, "_orbitsplit_counted", False):
            return
        storage._orbitsplit_counted = True  # type: ignore[attr-defined]
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size
