"""Costs of the layers of a model without its weights: a prefill, and one token, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
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
from orbitsplit._models.own_state import InputsSoFar, OwnState, empty_state, layers_in, state_bytes
from orbitsplit._models.passthrough import LayerCall, Passthrough
from orbitsplit._models.source import cache_argument, example_inputs, state_argument
from orbitsplit._models.valueless import build_on_meta, build_unfilled

from .live_bytes import LiveBytes

_NOTHING_KEPT: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class LayerCosts:
    """Costs of the n + 2 layers of a model, in bytes and FLOP, as in a `LayerProfile`.

    They are of `tokens` tokens: those of a prompt, of an image, or of what an encoder of `encoder_layers` makes.
    """

    names: tuple[str, ...]
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
    shared_bytes = sum(_parameters(model, layout.everywhere).values())
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
        names=tuple(map(layout.layer_name, range(layout.layer_count + 2))),
        hidden_size=layout.hidden_size,
        tokens=tokens,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=tuple(size for size, _ in forwards.kv),
        kv_tokens_max=tuple(limit for _, limit in forwards.kv),
        prefill_flop=forwards.prefill_flop,
        decode_flop=forwards.decode_flop,
        # What every stage has counts once in each, as its transient activations do.
        workspace_bytes=tuple(size + received_bytes + shared_bytes for size in forwards.workspace_bytes),
        tied_bytes=tied_bytes,
        encoder_layers=encoder_layers,
    )


class _Forwards(NamedTuple):
    """What a prefill and a step cost in each of a problem's layers, and what each keeps of a token."""

    prefill_flop: tuple[int, ...]
    decode_flop: tuple[int, ...]
    workspace_bytes: tuple[int, ...]
    kv: tuple[tuple[int, int | None], ...]


def _count_forwards(model: PreTrainedModel, layout: Layout, prompt_tokens: int, batch_size: int) -> _Forwards:
    like = _keep_one_of_each_kind(model, layout)
    config = model.config.get_text_config(decoder=True)
    state: Cache | None = None
    if layout.encoder is not None:
        state = new_encoder_decoder_cache(model.config)
    elif layout.state == "cache":
        state = DynamicCache(config=config)
    elif layout.state is not None:
        state = empty_state(layout.state, config)
    meter = _Meter(model, layout, state)
    prefill_flop = _spread(meter.measure(batch_size, prompt_tokens), like)
    decode_flop, kv = (0,) * (len(like) + 2), [_NOTHING_KEPT] * len(like)
    if state is not None:
        # Without a cache a step computes all tokens.
        tokens = prompt_tokens + 1 if isinstance(state, InputsSoFar) else 1
        decode_flop = _spread(meter.measure(batch_size, tokens), like)
        kept = [_kept(state, layout, index, batch_size, model.dtype) for index in sorted(set(like))]
        by_kind = dict(zip(sorted(set(like)), kept, strict=True))
        kv = [by_kind[index] for index in like]
    parts = [range(start, stop) for start, stop in pairwise(layout.bounds)]
    return _Forwards(
        tuple(_joined(prefill_flop, parts, sum)),
        tuple(_joined(decode_flop, parts, sum)),
        tuple(_joined(_spread(tuple(meter.workspace_bytes), like), parts, max)),
        tuple(_kept_together([kv[index] for index in part], prompt_tokens) for part in parts),
    )


def _joined(amounts: Sequence[int], parts: Sequence[range], join: Callable[[Iterable[int]], int]) -> Iterator[int]:
    """Yield the amount of each of a problem's layers, of those of what is before, each layer, and what is behind."""
    for number, part in enumerate(parts):
        own = [amounts[1 + index] for index in part]
        own += [amounts[0]] if number == 0 else [amounts[-1]] if number == len(parts) - 1 else []
        yield join(own)


def _kept_together(kept: Sequence[tuple[int, int | None]], prompt_tokens: int) -> tuple[int, int | None]:
    """Return the bytes per token of layers together, and the most tokens, for texts longer than the prompt.

    They are at least those that the layers keep, and those if all keep equally many tokens.
    """
    if not kept:
        return _NOTHING_KEPT
    limits = [limit for size, limit in kept if size]
    most = None if not limits or None in limits else max(limit for limit in limits if limit is not None)
    tokens = prompt_tokens if most is None else min(prompt_tokens, most)
    size = sum(-(-size * min(tokens, tokens if limit is None else limit) // tokens) for size, limit in kept)
    return size, most


def _weights(model: PreTrainedModel, layout: Layout) -> tuple[tuple[int, ...], int]:
    layers = layout.layers_of(model)
    if layout.encoder is not None:
        return _weights_of_both(model, layout, layers)
    first, last = (_parameters(model, names) for names in (layout.before | layout.image_modules, layout.after))
    own = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    tied = sum(size for parameter, size in first.items() if parameter in last)
    amounts = (sum(first.values()), *own, sum(last.values()))
    return tuple(_joined(amounts, [range(*pair) for pair in pairwise(layout.bounds)], sum)), tied


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


def _kept(state: Cache, layout: Layout, index: int, batch_size: int, dtype: torch.dtype) -> tuple[int, int | None]:
    """Return the bytes per token and sequence that a layer keeps of a text, and the most tokens of which it does."""
    if isinstance(state, InputsSoFar):  # a stage has those of its first layer alone: which is that is not known here
        return layout.hidden_size * dtype.itemsize, None
    if layout.encoder is not None:
        return _kept_by_decoder(state, index - layout.encoder.middle_layer, batch_size)
    layers = layers_in(state)
    kept = [_kv(layers[place], batch_size) for place in layout.call.cached_by(index) if place < len(layers)]
    if isinstance(state, OwnState):
        size = state_bytes(state, index, layout.bounds[-1]) // batch_size
        kept += [(size, 1)] if size else []
    sizes = [size for size, _ in kept]
    return (sum(sizes), kept[0][1]) if kept else _NOTHING_KEPT


def _kept_by_decoder(cache: Cache, number: int, batch_size: int) -> tuple[int, int | None]:
    """Return the same of a layer of a decoder, of the tokens of its own and of the encoder's, of the same size."""
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
        return _keep_in_list(layout.layers_of(model), layout.call)
    middle = layout.encoder.layer_count
    before = _keep_in_list(layout.encoder_layers_of(model), LayerCall(layout.encoder.tuple_length))
    behind = _keep_in_list(layout.decoder_layers_of(model), layout.call)
    return [*before, middle, *(middle + 1 + index for index in behind)]


def _keep_in_list(layers: nn.ModuleList, call: LayerCall) -> list[int]:
    first: dict[str, int] = {}
    like = [first.setdefault(_kind(layer), index) for index, layer in enumerate(layers)]
    for index, layer in enumerate(layers):
        if like[index] != index:
            layers[index] = Passthrough(index, layer, call)
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
    state: Cache | None
    workspace_bytes: list[int] = field(default_factory=list)
    flops: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    marks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    cached_bytes: int = 0

    def __post_init__(self) -> None:
        self.live = LiveBytes(self.model)

    def measure(self, batch_size: int, tokens: int) -> tuple[int, ...]:
        """Run new tokens and return the FLOP of what is before, each of the model's layers, and what is behind."""
        options = self._options(batch_size)
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
        peaks = self._by_layer(self.peaks[1:])
        self.workspace_bytes = [max(pair) for pair in zip(self.workspace_bytes or peaks, peaks, strict=True)]
        return tuple(self._by_layer([after - before for before, after in pairwise(self.marks)]))

    def _options(self, batch_size: int) -> dict[str, Any]:
        if self.state is None:
            return {}
        if isinstance(self.state, EncoderDecoderCache):
            return self._decoder_inputs(self.state, batch_size)
        name = cache_argument(type(self.model))
        if name is None:
            return {"logits_to_keep": 1}
        value = self.state.value if isinstance(self.state, OwnState) else self.state
        return {name: value, "use_cache": True, "logits_to_keep": 1}

    def _by_layer(self, amounts: Sequence[int]) -> list[int]:
        """Return the amounts of what is before, each layer, 0 of those that do not run, and what is behind."""
        own = dict(zip(self.layout.running, amounts[1:-1], strict=True))
        return [amounts[0], *(own.get(index, 0) for index in range(self.layout.bounds[-1])), amounts[-1]]

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
        cached = [] if self.state is None else layers_in(self.state)
        self.cached_bytes = sum(
            value.nbytes for layer in cached for value in vars(layer).values() if isinstance(value, Tensor)
        )

    def _enter(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(self.state, OwnState):
            self.state.value = state_argument(kwargs)
        self._mark()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        layers = self.layout.layers_of(self.model)
        running = [layers[index] for index in self.layout.running]
        handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in running]
        handles.append(running[-1].register_forward_hook(self._mark))
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
