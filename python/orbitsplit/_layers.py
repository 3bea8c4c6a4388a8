"""How a causal language model is built of layers, found by looking at it: no table of architectures."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ._model import build_on_meta, unsupported


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and list of the transformer layers of a model.

    It is the ModuleList as long as the configuration's `num_hidden_layers`; of several, the one with most
    parameters. Raises ValueError when there is none.
    """
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    candidates = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count > 0
    ]
    if not candidates:
        raise ValueError(
            unsupported(model.config, f"no list of {count} layers (num_hidden_layers), as when layers share weights")
        )
    _, name, layers = max(candidates, key=lambda candidate: candidate[0])
    return name, layers


def modules_outside(model: PreTrainedModel, layers_name: str) -> dict[str, nn.Module]:
    """Return the largest modules, by name, that neither hold the layer list nor are in it."""
    parts = layers_name.split(".")
    holders = [".".join(parts[:depth]) for depth in range(len(parts))]
    children = (
        (f"{holder}.{name}".lstrip("."), child)
        for holder in holders
        for name, child in model.get_submodule(holder).named_children()
    )
    return {name: child for name, child in children if name not in (*holders, layers_name)}


def has_parameters(module: nn.Module) -> bool:
    """Say whether a module holds any parameter."""
    return next(module.parameters(), None) is not None


@dataclass(frozen=True)
class Layout:
    """How a causal language model runs its layers.

    `before` and `after` name the modules with parameters that run before the first transformer layer (embeddings)
    and after the last (final norm, head); `idle` those that never run on text. A layer returns the hidden state
    alone (`tuple_length` None) or first in a tuple of that length.
    """

    layers_name: str
    layer_count: int
    hidden_size: int
    before: frozenset[str]
    after: frozenset[str]
    idle: frozenset[str]
    tuple_length: int | None


def find_layout(config: PreTrainedConfig) -> Layout:
    """Find out how a model runs its layers, from one forward on the meta device.

    Raises ValueError, naming the architecture and the reason, for a model whose layers depend on more than the
    hidden state of the layer before: split, it would compute something else.
    """
    shared = getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if shared:
        raise ValueError(unsupported(config, f"{shared} layers read the KV cache of earlier layers"))
    model = build_on_meta(config)
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(unsupported(config, "its forward takes no past_key_values"))
    probe = _Probe(model)
    try:
        with torch.no_grad():
            # With a cache, because without one masks are made by looking at values, which meta tensors lack.
            cache = DynamicCache(config=config.get_text_config(decoder=True))
            model(input_ids=torch.zeros(1, 3, dtype=torch.long, device="meta"), past_key_values=cache)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(unsupported(config, f"its forward does not run without weights ({error})")) from error
    return probe.layout()


@dataclass
class _Probe:
    """Watches one forward: what runs before, between and after the layers, and what passes between them."""

    model: PreTrainedModel
    ran: dict[str, set[str]] = field(default_factory=lambda: {"before": set(), "between": set(), "after": set()})
    phase: str = "before"
    hidden: Tensor | None = None
    extras: list[Tensor] = field(default_factory=list)  # kept alive, so that identity means something
    tuple_length: int | None = None
    fault: str | None = None

    def __post_init__(self) -> None:
        self.layers_name, self.layers = find_layers(self.model)
        self.outside = modules_outside(self.model, self.layers_name)
        for name, module in self.outside.items():
            for part in module.modules():
                part.register_forward_pre_hook(lambda *_, name=name: self.ran[self.phase].add(name))
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._enter(index), with_kwargs=True)
            layer.register_forward_hook(self._leave(index))

    def _enter(self, index: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.phase = "between"
            hidden = args[0] if args else kwargs["hidden_states"]
            if index > 0 and hidden is not self.hidden:
                self.fault = f"the hidden state is changed between layers {index - 1} and {index}"
            if any(value is extra for value in _tensors((args, kwargs)) for extra in self.extras):
                self.fault = f"layer {index} takes more than the hidden state from earlier layers"
            self.hidden = hidden

        return hook

    def _leave(self, index: int) -> Any:
        def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, (tuple, list)):
                self.tuple_length = len(output)
                self.hidden = output[0]
                self.extras += _tensors(output[1:])
            else:
                self.hidden = output
            if index == len(self.layers) - 1:
                self.phase = "after"

        return hook

    def layout(self) -> Layout:
        weighty = {name for name, module in self.outside.items() if has_parameters(module)}
        between = weighty & self.ran["between"]
        if between:
            self.fault = f"{', '.join(sorted(between))} runs between the layers"
        if self.phase != "after" or self.hidden is None:
            self.fault = "the forward does not run its layers in order"
        if self.fault is not None or self.hidden is None:
            raise ValueError(unsupported(self.model.config, str(self.fault)))
        before, after = weighty & self.ran["before"], weighty & self.ran["after"]
        return Layout(
            layers_name=self.layers_name,
            layer_count=len(self.layers),
            hidden_size=self.hidden.shape[-1],
            before=frozenset(before),
            after=frozenset(after),
            idle=frozenset(weighty - before - after),
            tuple_length=self.tuple_length,
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Passthrough(nn.Module):
    """Stands for a layer that is not there: passes the hidden state on and keeps the length of the KV cache.

    Lengths, masks and positions are read from the first layer of each kind in the cache. So the cache grows here
    too, by one byte per token; without it, left-padded batches are silently wrong.
    """

    def __init__(self, index: int, layer: nn.Module, tuple_length: int | None) -> None:
        super().__init__()
        self.index = index
        self.tuple_length = tuple_length
        for name, value in vars(layer).items():  # forwards read such as `layer.attention_type`
            if not name.startswith("_") and name != "training" and isinstance(value, (str, int, float, bool)):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is not None and isinstance(cache.layers[self.index], CacheLayerMixin):
            shadow = torch.zeros(hidden.shape[0], 1, hidden.shape[1], 1, dtype=torch.uint8, device=hidden.device)
            cache.update(shadow, shadow, self.index)
        return hidden if self.tuple_length is None else (hidden, *[None] * (self.tuple_length - 1))
