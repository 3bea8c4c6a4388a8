"""How a model runs its layers, seen in one forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .architecture import Layout, find_layers, has_parameters, modules_outside, plain_bounds, running_unknown_code
from .cut_form import CutForm, argument_of, hidden_argument, with_arguments
from .data_flow import LabelFlow, add_labels, label_weights, labels_of, tensors_in
from .device import single_thread
from .image_inputs import image_names
from .layer_exchange import LayerExchange
from .own_state import StateKind, state_kind
from .small_config import shrunk
from .source import (
    cache_argument,
    can_generate,
    classifies_texts,
    example_inputs,
    layer_count,
    model_class,
    unsupported,
)
from .valueless import build_on_meta, build_unfilled

# More than one row: heads that search for padding tokens refuse several rows if they cannot find them.
_PROBE_ROWS, _PROBE_TOKENS = 2, 3


def find_plain_layout(config: PreTrainedConfig) -> Layout:
    """Return the layout of a model without an encoder beside its decoder; raises as `find_layout`."""
    shared = getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if shared:
        raise ValueError(unsupported(config, f"{shared} layers read the KV cache of earlier layers"))
    state = state_kind(model_class(config)) if can_generate(config) else None
    with running_unknown_code(config, "it cannot be built"):
        model = build_on_meta(config)
    probe = Probe(model, state)
    try:
        probe.run(config, "meta")
    except Exception:  # whatever an architecture's code makes of tensors without values
        return _find_layout_with_values(config, state)
    return probe.layout()


def _find_layout_with_values(config: PreTrainedConfig, state: StateKind | None) -> Layout:
    """Find the layout where the forward depends on numbers: on the processor, of the model with few of its layers."""
    few = shrunk(config, strength=0)
    layout = _layout_by_values(few, state)
    layers = layer_count(config, model_class(config))
    if layers == layer_count(few, model_class(config)):
        return layout
    if layout.bounds == plain_bounds(layout.layer_count) and layout.call.cached is None:
        return replace(layout, bounds=plain_bounds(layers), running=tuple(range(layers)))
    # Which layers belong together is seen with all of them, each of which is small.
    deep = _layout_by_values(shrunk(config, keeps_layers=True), state)
    return replace(layout, bounds=deep.bounds, running=deep.running, call=deep.call)


def _layout_by_values(config: PreTrainedConfig, state: StateKind | None) -> Layout:
    with running_unknown_code(config, "it cannot be built"):
        probe = Probe(build_unfilled(config), state)
    with running_unknown_code(config, "its forward fails"), single_thread():
        probe.run(config, "cpu")
    return probe.layout()


@dataclass
class Probe:
    """Observes one forward: which modules run before, between and after the layers, and what the layers exchange.

    The layers are a list that was `found` by name, or else what `find_layers` finds. If they are `sharing`, later ones
    may use what the first one makes of positions.
    """

    model: PreTrainedModel
    state: StateKind | None
    found: tuple[str, nn.ModuleList] | None = None
    sharing: bool = False
    ran: dict[str, set[str]] = field(default_factory=lambda: {"before": set(), "between": set(), "after": set()})
    running: list[int] = field(default_factory=list)
    left: Tensor | None = None  # the hidden state behind the last layer that ran
    extras: tuple[Any, ...] = ()  # what that layer returned beside it
    exchange: LayerExchange = field(default_factory=LayerExchange)
    flow: LabelFlow = field(default_factory=LabelFlow)
    fault: str | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers_name, self.layers = self.found or find_layers(self.model)
        self.outside = modules_outside(self.model, self.layers_name)
        for name, module in self.outside.items():
            for part in module.modules():
                self.hooks.append(part.register_forward_pre_hook(lambda *_, name=name: self._note(name)))
            self.hooks.append(module.register_forward_hook(functools.partial(self._leave_outside, name)))
        for index, layer in enumerate(self.layers):
            self.hooks.append(layer.register_forward_pre_hook(self._enter(index), with_kwargs=True))
            self.hooks.append(layer.register_forward_hook(self._leave(index)))

    def run(self, config: PreTrainedConfig, device: str) -> None:
        """Run the model of a configuration once on a device, with inputs of zeros."""
        inputs = example_inputs(config, rows=_PROBE_ROWS, tokens=_PROBE_TOKENS, device=device)
        options: dict[str, Any] = {}
        if self.state == "cache":
            # With a cache: without one, masks are made from values, which meta tensors do not have.
            cache = DynamicCache(config=config.get_text_config(decoder=True))
            self.exchange.watch(cache)
            options[str(cache_argument(type(self.model)))] = cache
        elif self.state == "own":
            options["use_cache"] = True
        # Which tokens are padding is known from the attention mask on every stage, see `dummy_ids`.
        known = classifies_texts(config, type(self.model))
        self.observe(lambda: self.model(**inputs, **options), () if known else inputs.values())

    def observe(self, forward: Callable[[], Any], inputs: Iterable[Tensor]) -> None:
        """Run a forward once, of which one stage alone has the inputs."""
        for tensor in inputs:
            add_labels(tensor, {0})
        label_weights(self.layers, self.outside)
        with torch.no_grad(), self.flow:
            output = forward()
        for hook in self.hooks:
            hook.remove()
        returned = output.values() if isinstance(output, Mapping) else output
        for value in returned:
            if isinstance(value, Tensor):
                self.exchange.needs_behind(len(self.layers), labels_of(value))

    def _leave_outside(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.exchange.leave_outside(name, output)

    def _note(self, module: str) -> None:
        # Behind a layer, what runs is between two of them, until no other follows.
        self.ran["after" if self.running else "before"].add(module)

    def _enter(self, index: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            place = hidden_argument(args)
            hidden = argument_of(place, args, kwargs)
            self.ran["between"] |= self.ran["after"]
            self.ran["after"] = set()
            if self.left is not None:
                self._check_between(index, hidden)
            changes = self.exchange.enter(index, hidden, self.extras, args, kwargs, state=self.state)
            if self.left is not None:
                # From here on, a use of the original hidden state is that of what an earlier layer made.
                add_labels(self.left, {index})
            self.running.append(index)
            self.flow.within = index + 1
            self.left = hidden
            return with_arguments(args, kwargs, {place: self.exchange.fresh(hidden, index), **changes})

        return hook

    def _note_fault(self, fault: str) -> None:
        self.fault = self.fault or fault  # the first one is what the user is told

    def _check_between(self, index: int, hidden: Tensor) -> None:
        assert self.left is not None, "a layer has run"
        if index <= self.running[-1]:
            self._note_fault("the forward does not run its layers in order")
        if hidden is not self.left:
            self.exchange.changes_between = True
        if hidden.shape != self.left.shape:
            self._note_fault(f"the hidden state has another shape behind layer {index - 1} than before")

    def _leave(self, index: int) -> Any:
        def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            is_several = isinstance(output, (tuple, list))
            hidden = output[0] if is_several else output
            if self.left is not None and hidden.shape != self.left.shape:
                self._note_fault(f"the hidden state has another shape behind layer {index} than before")
            self.exchange.leave(index, hidden)
            self.left = torch.empty_like(hidden)
            self.extras = tuple(output[1:]) if is_several else ()
            if not is_several:
                return self.left
            self.exchange.tuple_length = len(output)
            if self.sharing:
                self.extras = tree_map_only(Tensor, torch.empty_like, self.extras)
            for extra in () if self.sharing else tensors_in(self.extras):
                add_labels(extra, {index + 1})
            return [self.left, *self.extras] if isinstance(output, list) else (self.left, *self.extras)

        return hook

    def weighty(self) -> set[str]:
        """Return the names of the modules with parameters outside of the layers. Raises `ValueError` for a fault."""
        weighty = {name for name, module in self.outside.items() if has_parameters(module)}
        between = weighty & self.ran["between"] - self.exchange.modules
        if between:
            self._note_fault(f"{', '.join(sorted(between))} runs between the layers")
        if self.left is None:
            self._note_fault("the forward does not run its layers in order")
        if self.fault is not None:
            raise ValueError(unsupported(self.model.config, self.fault))
        return weighty

    def check_plain(self) -> None:
        """Raise `ValueError` for layers that do more than hand on a hidden state [B, S, H]."""
        layers, reason = len(self.layers), self.exchange.reason
        if self.exchange.bounds(layers) != plain_bounds(layers):
            raise ValueError(unsupported(self.model.config, reason))
        if self.exchange.modules.intersection(self.weighty()) or self.exchange.carried:
            reason = "layer 0 takes more than the hidden state of the layer before it"
            raise ValueError(unsupported(self.model.config, reason))
        if self.exchange.changes_between or len(self.running) < layers:
            raise ValueError(unsupported(self.model.config, "the hidden state is changed between layers"))
        if self.left is None or self.left.dim() != 3:
            reason = "the hidden state has not the dimensions rows, tokens and channels"
            raise ValueError(unsupported(self.model.config, reason))

    def layout(self) -> Layout:
        """Return what was observed. Raises as `weighty`."""
        weighty = self.weighty()
        assert self.left is not None, "else there is a fault"
        everywhere = weighty & self.exchange.modules
        before, after = (weighty & self.ran[phase] - everywhere for phase in ("before", "after"))
        before |= (weighty & self.exchange.first_modules) - after - everywhere  # also of modules that never run
        form = self._form(self.left)
        bounds = self.exchange.bounds(len(self.layers))
        if bounds is None:
            raise ValueError(unsupported(self.model.config, self.exchange.reason))
        idle = weighty - before - after - everywhere
        sees = self.state is not None and image_names(type(self.model))
        images = {name for name in idle if "audio" not in name} if sees else set()
        return Layout(
            layers_name=self.layers_name,
            bounds=bounds,
            running=tuple(self.running),
            before=frozenset(before),
            after=frozenset(after),
            image_modules=frozenset(images),
            idle=frozenset(idle - images),
            everywhere=frozenset(everywhere),
            call=self.exchange.call(len(self.layers), form.streams),
            form=form,
            changes_between=self.exchange.changes_between,
            image_tokens=self.left.shape[1] if self.model.main_input_name == "pixel_values" else None,
            state=self.state,
        )

    def _form(self, hidden: Tensor) -> CutForm:
        is_text = self.state is not None
        if hidden.dim() < 3 or (hidden.dim() > 3 and not is_text):
            reason = f"the hidden state has {hidden.dim()} dimensions, not rows, tokens and channels"
            raise ValueError(unsupported(self.model.config, reason))
        streams, rest = divmod(hidden.shape[1], _PROBE_TOKENS) if is_text else (1, 0)
        if rest or not streams:
            reason = f"the hidden state of {_PROBE_TOKENS} tokens has {hidden.shape[1]} rows"
            raise ValueError(unsupported(self.model.config, reason))
        return CutForm(tuple(hidden.shape[2:]), streams, self.exchange.carried)
