"""The structure of a model, found by inspecting it: there is no table of architectures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .cut_form import CutForm, argument_of, hidden_argument, with_arguments
from .data_flow import LabelFlow, add_labels, label_weights, labels_of, tensors_in
from .device import single_thread
from .image_inputs import image_names
from .layer_exchange import LayerExchange
from .own_state import StateKind, state_kind
from .passthrough import LayerCall
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


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and list of the transformer layers of a model.

    It is the ModuleList of length `num_hidden_layers` of the configuration, or, where a layer of the list counts as
    several, of a part of it; of several, one that is not in the vision model beside a text model, and the one with the
    most parameters. It is for whole models: a stage has `Layout.layers_of`. Raises `ValueError` if there is none.
    """
    count = layer_count(model.config, type(model))
    own = _own_modules(model)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    inner = re.compile("|".join(f"{re.escape(name)}\\.\\d+\\..*" for name, _ in lists) or "$")
    candidates = [
        (
            (len(module) == count, module in own, sum(parameter.numel() for parameter in module.parameters())),
            name,
            module,
        )
        for name, module in lists
        if len(module) == count or (len(module) > 1 and count % len(module) == 0 and not inner.fullmatch(name))
    ]
    if not candidates:
        raise ValueError(
            unsupported(model.config, f"no list of {count} layers (num_hidden_layers), as when layers share weights")
        )
    _, name, layers = max(candidates, key=lambda candidate: candidate[0])
    return name, layers


def _own_modules(model: PreTrainedModel) -> set[nn.Module]:
    """Return the modules of a model without those of a part for other inputs: the vision model beside a text model."""
    part: Any = model
    if model.main_input_name != "pixel_values" and model.config.get_text_config(decoder=True) is not model.config:
        part = model.get_decoder()
    own = set(part.modules())
    for module in part.modules():
        if isinstance(module, PreTrainedModel) and module.main_input_name not in (model.main_input_name, "input_ids"):
            own -= set(module.modules())
    return own


def modules_outside(model: PreTrainedModel, layers_name: str) -> dict[str, nn.Module]:
    """Return the largest modules, by name, that neither contain the layer list nor are in it."""
    parts = layers_name.split(".")
    holders = [".".join(parts[:depth]) for depth in range(len(parts))]
    children = (
        (f"{holder}.{name}".lstrip("."), child)
        for holder in holders
        for name, child in model.get_submodule(holder).named_children()
    )
    return {name: child for name, child in children if name not in (*holders, layers_name)}


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has any parameter."""
    return next(module.parameters(), None) is not None


@dataclass(frozen=True)
class Layout:
    """How a model runs its layers.

    `before` and `after` name the modules with parameters that run before the first transformer layer (embeddings)
    and after the last (final norm, pooler, head); `image_modules` those that run before the first layer too if there
    are images beside a text, `idle` those that never run, and `everywhere` those that every stage has, since layers
    take what is made of their weights and of positions. `form` is what crosses a cut. `image_tokens` are the tokens of
    the hidden state that an image becomes, None for a model of texts. One that generates keeps a `state` of earlier
    tokens.

    The `layer_count` layers that a problem counts are the entries of the model's list, of which the indices in
    `running` run, but that some are held together, with one another or with what is before or after: layer k of a
    problem has the entries from `bounds[k]` to `bounds[k + 1]`. If `changes_between`, the model computes something
    between two entries.
    """

    layers_name: str
    bounds: tuple[int, ...]
    running: tuple[int, ...]
    before: frozenset[str]
    after: frozenset[str]
    image_modules: frozenset[str]
    idle: frozenset[str]
    everywhere: frozenset[str]
    call: LayerCall
    form: CutForm
    changes_between: bool
    image_tokens: int | None
    state: StateKind | None

    @property
    def layer_count(self) -> int:
        """The layers of a problem without embeddings and head."""
        return len(self.bounds) - 3

    @property
    def hidden_size(self) -> int:
        """The numbers of each token at a cut."""
        return self.form.width

    @property
    def generates(self) -> bool:
        """Whether the model generates texts."""
        return self.state is not None

    @property
    def is_plain(self) -> bool:
        """Whether each layer is one of the model's list, and hands on a hidden state [B, S, H] alone."""
        runs_all = self.bounds == plain_bounds(self.layer_count) and len(self.running) == self.layer_count
        return runs_all and self.form.is_plain and not self.changes_between

    def layer_name(self, layer: int) -> str:
        """Return the name of a layer of a problem: "layer 3", "layers 3 to 5", "embeddings", "head"."""
        first, stop = self.bounds[layer : layer + 2]
        own = "" if first == stop else f"layer {first}" if stop == first + 1 else f"layers {first} to {stop - 1}"
        if layer == 0:
            return f"embeddings, {own}".removesuffix(", ")
        return own if layer <= self.layer_count else f"{own}, head".removeprefix(", ")

    def layers_of(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers of a model, also where layers and modules of other stages were replaced."""
        layers = model.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList), "it was found as one"
        return layers


def plain_bounds(layers: int) -> tuple[int, ...]:
    """Return the bounds of embeddings, single layers, and a head."""
    return (0, *range(layers + 1), layers)


# By the model's class and its whole configuration. A forward on the meta device takes a second or two, and every stage
# of a pipeline needs its result: workers have what the server that forks them has found.
_LAYOUTS: dict[tuple[type[PreTrainedModel], str], Layout] = {}
_MOST_LAYOUTS = 64


def find_layout(config: PreTrainedConfig) -> Layout:
    """Return how a model runs its layers, from one forward on the meta device; found once for each configuration.

    Raises `ValueError`, naming the architecture and the reason, for a model whose layers depend on more than the
    hidden state of the layer before: split into stages, it would compute something else.
    """
    key = _layout_key(config)
    layout = _LAYOUTS.get(key)
    if layout is None:
        layout = _find_layout(config)
        if len(_LAYOUTS) >= _MOST_LAYOUTS:
            _LAYOUTS.clear()
        _LAYOUTS[key] = layout
    return layout


def knows_layout(config: PreTrainedConfig) -> bool:
    """Return whether `find_layout` has found the layout already."""
    return _layout_key(config) in _LAYOUTS


def _layout_key(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], str]:
    """Return what a layout depends on: where the model lies does not count."""
    document = json.loads(config.to_json_string(use_diff=False))
    return model_class(config), json.dumps(without_paths(document), sort_keys=True)


def without_paths(value: Any) -> Any:
    """Return a configuration's document without where the model lies."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items() if key not in ("_name_or_path", "source")}
    return [without_paths(part) for part in value] if isinstance(value, list) else value


def _find_layout(config: PreTrainedConfig) -> Layout:
    shared = getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if shared:
        raise ValueError(unsupported(config, f"{shared} layers read the KV cache of earlier layers"))
    state = state_kind(model_class(config)) if can_generate(config) else None
    with running_unknown_code(config, "it cannot be built"):
        model = build_on_meta(config)
    probe = _Probe(model, state)
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
        probe = _Probe(build_unfilled(config), state)
    with running_unknown_code(config, "its forward fails"), single_thread():
        probe.run(config, "cpu")
    return probe.layout()


@contextmanager
def running_unknown_code(config: PreTrainedConfig, failure: str) -> Iterator[None]:
    """Raise any exception of an architecture's code as a `ValueError` of one line that names the architecture."""
    try:
        yield
    except Exception as error:
        if "cannot be split into stages" in str(error):  # it names the architecture already
            raise
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(unsupported(config, f"{failure} ({reason})")) from error


@dataclass
class _Probe:
    """Observes one forward: which modules run before, between and after the layers, and what the layers exchange."""

    model: PreTrainedModel
    state: StateKind | None
    ran: dict[str, set[str]] = field(default_factory=lambda: {"before": set(), "between": set(), "after": set()})
    running: list[int] = field(default_factory=list)
    left: Tensor | None = None  # the hidden state behind the last layer that ran
    extras: tuple[Any, ...] = ()  # what that layer returned beside it
    exchange: LayerExchange = field(default_factory=LayerExchange)
    flow: LabelFlow = field(default_factory=LabelFlow)
    fault: str | None = None

    def __post_init__(self) -> None:
        self.layers_name, self.layers = find_layers(self.model)
        self.outside = modules_outside(self.model, self.layers_name)
        for name, module in self.outside.items():
            for part in module.modules():
                part.register_forward_pre_hook(lambda *_, name=name: self._note(name))
            module.register_forward_hook(lambda _, _args, output, name=name: self.exchange.leave_outside(name, output))
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._enter(index), with_kwargs=True)
            layer.register_forward_hook(self._leave(index))

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
        for tensor in inputs.values():
            # Which tokens are padding is known from the attention mask on every stage, see `dummy_ids`.
            if not classifies_texts(config, type(self.model)):
                add_labels(tensor, {0})
        label_weights(self.layers, self.outside)
        with torch.no_grad(), self.flow:
            output = self.model(**inputs, **options)
        returned = output.values() if isinstance(output, Mapping) else output
        for value in returned:
            if isinstance(value, Tensor):
                self.exchange.needs_behind(len(self.layers), labels_of(value))

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

    def _check_between(self, index: int, hidden: Tensor) -> None:
        assert self.left is not None, "a layer has run"
        if index <= self.running[-1]:
            self.fault = self.fault or "the forward does not run its layers in order"
        if hidden is not self.left:
            self.exchange.changes_between = True
        if hidden.shape != self.left.shape:
            self.fault = self.fault or f"the hidden state has another shape behind layer {index - 1} than before"

    def _leave(self, index: int) -> Any:
        def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            is_several = isinstance(output, (tuple, list))
            hidden = output[0] if is_several else output
            if self.left is not None and hidden.shape != self.left.shape:
                self.fault = self.fault or f"the hidden state has another shape behind layer {index} than before"
            self.exchange.leave(index, hidden)
            self.left = torch.empty_like(hidden)
            self.extras = tuple(output[1:]) if is_several else ()
            if not is_several:
                return self.left
            self.exchange.tuple_length = len(output)
            for extra in tensors_in(self.extras):
                add_labels(extra, {index + 1})
            return [self.left, *self.extras] if isinstance(output, list) else (self.left, *self.extras)

        return hook

    def layout(self) -> Layout:
        weighty = {name for name, module in self.outside.items() if has_parameters(module)}
        everywhere = weighty & self.exchange.modules
        before, between, after = (weighty & names - everywhere for names in self.ran.values())
        before |= (weighty & self.exchange.first_modules) - after - everywhere  # also of modules that never run
        if between:
            self.fault = self.fault or f"{', '.join(sorted(between))} runs between the layers"
        if self.left is None:
            self.fault = self.fault or "the forward does not run its layers in order"
        if self.fault is not None or self.left is None:
            raise ValueError(unsupported(self.model.config, str(self.fault)))
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
