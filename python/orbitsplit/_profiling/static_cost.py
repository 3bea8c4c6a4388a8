"""Costs of the layers of a model without its weights: a prefill, and one token, on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._models.architecture import Layout, find_layout, running_unknown_code
from orbitsplit._models.own_state import InputsSoFar, OwnState, empty_state, layers_in, state_bytes
from orbitsplit._models.passthrough import Passthrough
from orbitsplit._models.source import STATE_ARGUMENTS, cache_argument, example_inputs
from orbitsplit._models.valueless import build_on_meta, build_unfilled

_NOTHING_KEPT: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class LayerCosts:
    """Costs of the n + 2 layers of a model, in bytes and FLOP, as in a `LayerProfile`.

    They are of `tokens` tokens: those of a prompt or of an image.
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


def count_costs(config: PreTrainedConfig, *, prompt_tokens: int, batch_size: int, dtype: torch.dtype) -> LayerCosts:
    """Count the costs of each layer for a prefill and, of a model that generates, then one token.

    Both are of `batch_size` texts of `prompt_tokens` tokens, or images. Raises ValueError for a model that cannot be
    split, or does not take that many tokens.
    """
    layout = find_layout(config)
    model = build_on_meta(config, dtype=dtype)
    weight_bytes, tied_bytes = _weights(model, layout)
    shared_bytes = sum(_parameters(model, layout.everywhere).values())
    tokens = layout.image_tokens or prompt_tokens
    try:
        forwards = _count_forwards(model, layout, prompt_tokens, batch_size)
    except Exception:  # whatever an architecture's code makes of tensors without values
        with running_unknown_code(config, f"a forward of {tokens} tokens fails"):
            forwards = _count_forwards(build_unfilled(config, dtype=dtype), layout, prompt_tokens, batch_size)
    # After the first stage there is the received hidden state in addition to the placeholder of the embeddings.
    received_bytes = batch_size * tokens * layout.hidden_size * dtype.itemsize
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
    state: Cache | None = DynamicCache(config=config) if layout.state == "cache" else None
    if state is None and layout.state is not None:
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
    first, last = (_parameters(model, names) for names in (layout.before | layout.image_modules, layout.after))
    own = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
    tied = sum(size for parameter, size in first.items() if parameter in last)
    amounts = (sum(first.values()), *own, sum(last.values()))
    return tuple(_joined(amounts, [range(*pair) for pair in pairwise(layout.bounds)], sum)), tied


def _parameters(model: PreTrainedModel, names: frozenset[str]) -> dict[nn.Parameter, int]:
    return {parameter: parameter.nbytes for name in names for parameter in model.get_submodule(name).parameters()}


def _kept(state: Cache, layout: Layout, index: int, batch_size: int, dtype: torch.dtype) -> tuple[int, int | None]:
    """Return the bytes per token and sequence that a layer keeps of a text, and the most tokens of which it does."""
    if isinstance(state, InputsSoFar):  # a stage has those of its first layer alone: which is that is not known here
        return layout.hidden_size * dtype.itemsize, None
    layers = layers_in(state)
    kept = [_kv(layers[place], batch_size) for place in layout.call.cached_by(index) if place < len(layers)]
    if isinstance(state, OwnState):
        size = state_bytes(state, index, layout.bounds[-1]) // batch_size
        kept += [(size, 1)] if size else []
    sizes = [size for size, _ in kept]
    return (sum(sizes), kept[0][1]) if kept else _NOTHING_KEPT


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
    layers = layout.layers_of(model)
    first: dict[str, int] = {}
    like = [first.setdefault(_kind(layer), index) for index, layer in enumerate(layers)]
    for index, layer in enumerate(layers):
        if like[index] != index:
            layers[index] = Passthrough(index, layer, layout.call)
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
        self.live = _LiveBytes(self.model)

    def measure(self, batch_size: int, tokens: int) -> tuple[int, ...]:
        """Run new tokens and return the FLOP of what is before, each of the model's layers, and what is behind."""
        self.marks, self.peaks = [], []
        with torch.no_grad(), self.flops, self.live, self.live.fused_attention(), self._hooks():
            inputs = example_inputs(self.model.config, rows=batch_size, tokens=tokens, device=self.model.device)
            self._mark()
            self.model(**inputs, **self._options())
            self._mark()
        # The first mark is before the forward: the inputs are alive during the first layer.
        peaks = self._by_layer(self.peaks[1:])
        self.workspace_bytes = [max(pair) for pair in zip(self.workspace_bytes or peaks, peaks, strict=True)]
        return tuple(self._by_layer([after - before for before, after in pairwise(self.marks)]))

    def _options(self) -> dict[str, Any]:
        if self.state is None:
            return {}
        name = cache_argument(type(self.model))
        if name is None:
            return {"logits_to_keep": 1}
        value = self.state.value if isinstance(self.state, OwnState) else self.state
        return {name: value, "use_cache": True, "logits_to_keep": 1}

    def _by_layer(self, amounts: Sequence[int]) -> list[int]:
        """Return the amounts of what is before, each layer, 0 of those that do not run, and what is behind."""
        own = dict(zip(self.layout.running, amounts[1:-1], strict=True))
        return [amounts[0], *(own.get(index, 0) for index in range(self.layout.bounds[-1])), amounts[-1]]

    def _mark(self, *_: Any) -> None:
        self.marks.append(self.flops.get_total_flops())
        self.peaks.append(self.live.take_peak() - self.cached_bytes)
        cached = [] if self.state is None else layers_in(self.state)
        self.cached_bytes = sum(
            value.nbytes for layer in cached for value in vars(layer).values() if isinstance(value, Tensor)
        )

    def _enter(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if isinstance(self.state, OwnState):
            self.state.value = next(kwargs[name] for name in STATE_ARGUMENTS if name in kwargs)
        self._mark()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        layers = self.layout.layers_of(self.model)
        running = [layers[index] for index in self.layout.running]
        handles = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in running]
        handles.append(running[-1].register_forward_hook(self._mark))
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
