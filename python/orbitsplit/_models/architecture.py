"""The structure of a model, found by inspecting it: there is no table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .device import single_thread
from .encoder_layout import EncoderLayout
from .image_inputs import image_names
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

    It is the ModuleList of length `num_hidden_layers` of the configuration; of several, one that is not in the vision
    model beside a text model, and the one with the most parameters. It is for whole models: a stage has
    `Layout.layers_of`. Raises `ValueError` if there is none.
    """
    count = layer_count(model.config, type(model))
    own = _own_modules(model)
    candidates = [
        ((module in own, sum(parameter.numel() for parameter in module.parameters())), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
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
    are images beside a text, `idle` those that never run. A layer returns the hidden state alone
    (`tuple_length` None) or first in a tuple of that length. `image_tokens` are the tokens of the hidden state that an
    image becomes, None for a model of texts. One that generates keeps keys and values.

    With an `encoder`, `before` runs before the layers of that, and `layers_name` and `tuple_length` are the decoder's;
    `layer_count` is of both lists and what is between.
    """

    layers_name: str
    layer_count: int
    hidden_size: int
    before: frozenset[str]
    after: frozenset[str]
    image_modules: frozenset[str]
    idle: frozenset[str]
    tuple_length: int | None
    image_tokens: int | None
    generates: bool
    encoder: EncoderLayout | None = None

    def layers_of(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers of a model, also where layers and modules of other stages were replaced.

        With an encoder it is a list of its own, of the layers of both and of what is between them.
        """
        layers = self.decoder_layers_of(model)
        if self.encoder is None:
            return layers
        middle = nn.ModuleList(model.get_submodule(name) for name in sorted(self.encoder.middle))
        return nn.ModuleList([*self.encoder_layers_of(model), middle, *layers])

    def decoder_layers_of(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers of the decoder of a model with an encoder, of others the only one."""
        return _list_in(model, self.layers_name)

    def encoder_layers_of(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers of the encoder of a model that has one."""
        assert self.encoder is not None, "it has an encoder"
        return _list_in(model, self.encoder.layers_name)


def _list_in(model: nn.Module, name: str) -> nn.ModuleList:
    layers = model.get_submodule(name)
    assert isinstance(layers, nn.ModuleList), "it was found as one"
    return layers


def without_paths(value: Any) -> Any:
    """Return a configuration's document without where the model lies."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items() if key not in ("_name_or_path", "source")}
    return [without_paths(part) for part in value] if isinstance(value, list) else value


def find_plain_layout(config: PreTrainedConfig) -> Layout:
    """Return the layout of a model without an encoder beside its decoder; raises as `find_layout`."""
    shared = getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    if shared:
        raise ValueError(unsupported(config, f"{shared} layers read the KV cache of earlier layers"))
    if can_generate(config) and cache_argument(model_class(config)) is None:
        raise ValueError(unsupported(config, "its forward takes no cache"))
    with running_unknown_code(config, "it cannot be built"):
        model = build_on_meta(config)
    probe = Probe(model, generates=can_generate(config))
    try:
        probe.run(config, "meta")
    except Exception:  # whatever an architecture's code makes of tensors without values
        return _find_layout_with_values(config)
    return probe.layout()


def _find_layout_with_values(config: PreTrainedConfig) -> Layout:
    """Find the layout where the forward depends on numbers: on the processor, of the model with few of its layers."""
    few = shrunk(config, strength=0)
    with running_unknown_code(config, "it cannot be built"):
        probe = Probe(build_unfilled(few), generates=can_generate(config))
    with running_unknown_code(config, "its forward fails"), single_thread():
        probe.run(few, "cpu")
    return replace(probe.layout(), layer_count=layer_count(config, model_class(config)))


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


class _Origins(TorchDispatchMode):
    """Tracks tensors computed from data that only one stage has, by marks on their memory.

    Marked are the inputs, the hidden states of earlier layers and, while `marks_weights`, everything computed from a
    weight.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks_weights = True

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = str(func._schema.name).partition("::")[2]
        takes_shape_only = name.endswith("_like") or name.startswith("new_")
        if not takes_shape_only and any(self._is_origin(tensor) for tensor in _tensors((args, kwargs))):
            for tensor in _tensors(output):
                mark(tensor)
        return output

    def _is_origin(self, tensor: Tensor) -> bool:
        return is_marked(tensor) or (self.marks_weights and isinstance(tensor, nn.Parameter))


def mark(tensor: Tensor) -> None:
    """Mark a tensor's memory as data that only one stage has."""
    tensor.untyped_storage()._orbitsplit_marked = True  # type: ignore[attr-defined]


def is_marked(tensor: Tensor) -> bool:
    """Return whether a tensor's memory is marked."""
    return getattr(tensor.untyped_storage(), "_orbitsplit_marked", False)


@dataclass
class Probe:
    """Observes one forward: which modules run before, between and after the layers, and what the layers exchange.

    The layers are a list that was `found` by name, or else what `find_layers` finds. If they are `sharing`, later ones
    may use what the first one makes of positions.
    """

    model: PreTrainedModel
    generates: bool
    found: tuple[str, nn.ModuleList] | None = None
    sharing: bool = False
    ran: dict[str, set[str]] = field(default_factory=lambda: {"before": set(), "between": set(), "after": set()})
    origins: _Origins = field(default_factory=_Origins)
    phase: str = "before"
    left: Tensor | None = None  # the hidden state behind the last layer that ran
    tuple_length: int | None = None
    fault: str | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers_name, self.layers = self.found or find_layers(self.model)
        self.outside = modules_outside(self.model, self.layers_name)
        for name, module in self.outside.items():
            for part in module.modules():
                hook = part.register_forward_pre_hook(lambda *_, name=name: self.ran[self.phase].add(name))
                self.hooks.append(hook)
            if has_parameters(module):
                self.hooks.append(module.register_forward_hook(self._mark_output))
        for index, layer in enumerate(self.layers):
            self.hooks.append(layer.register_forward_pre_hook(self._enter(index), with_kwargs=True))
            self.hooks.append(layer.register_forward_hook(self._leave(index)))

    def run(self, config: PreTrainedConfig, device: str) -> None:
        """Run the model of a configuration once on a device, with inputs of zeros."""
        inputs = example_inputs(config, rows=_PROBE_ROWS, tokens=_PROBE_TOKENS, device=device)
        options: dict[str, Any] = {}
        if self.generates:
            # With a cache: without one, masks are made from values, which meta tensors do not have.
            options[str(cache_argument(type(self.model)))] = DynamicCache(config=config.get_text_config(decoder=True))
        # Which tokens are padding is known from the attention mask on every stage, see `dummy_ids`.
        known = classifies_texts(config, type(self.model))
        self.observe(lambda: self.model(**inputs, **options), () if known else inputs.values())

    def observe(self, forward: Callable[[], Any], inputs: Iterable[Tensor]) -> None:
        """Run a forward once, of which one stage alone has the inputs."""
        for tensor in inputs:
            mark(tensor)
        with torch.no_grad(), self.origins:
            output = forward()
        for hook in self.hooks:
            hook.remove()
        returned = output.values() if isinstance(output, Mapping) else output
        if any(is_marked(value) for value in returned if isinstance(value, Tensor)):
            self._record_fault("what comes after the layers takes more than the hidden state of the last one")

    def _enter(self, index: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            hidden = args[0] if args else kwargs["hidden_states"]
            beside = [value for value in _tensors((args, kwargs)) if value is not hidden]
            if index > 0 and hidden is not self.left:
                self._record_fault(f"the hidden state is changed between layers {index - 1} and {index}")
            if self.left is not None and hidden.shape != self.left.shape:
                self._record_fault(f"the hidden state has another shape behind layer {index - 1} than before")
            if any(is_marked(value) or isinstance(value, nn.Parameter) for value in beside):
                self._record_fault(f"layer {index} takes more than the hidden state of the layer before it")
            self.phase, self.left = "between", hidden
            self.origins.marks_weights = False
            # From here on, a use of the original hidden state is detected.
            mark(hidden)
            fresh = torch.empty_like(hidden)
            return ((fresh, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": fresh})

        return hook

    def _leave(self, index: int) -> Any:
        def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, (tuple, list)):
                self.tuple_length = len(output)
                for extra in () if self.sharing else _tensors(output[1:]):
                    mark(extra)
                output = output[0]
            if self.left is not None and output.shape != self.left.shape:
                self._record_fault(f"the hidden state has another shape behind layer {index} than before")
            self.left = output
            is_last = index == len(self.layers) - 1
            self.phase = "after" if is_last else "between"
            self.origins.marks_weights = not is_last

        return hook

    def _mark_output(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self.phase != "after":  # computed by the first stage only
            for tensor in _tensors(output):
                mark(tensor)

    def _record_fault(self, fault: str) -> None:
        self.fault = self.fault or fault

    def weighty(self) -> set[str]:
        """Return the names of the modules with parameters outside of the layers. Raises `ValueError` for a fault."""
        weighty = {name for name, module in self.outside.items() if has_parameters(module)}
        between = weighty & self.ran["between"]
        if between:
            self.fault = f"{', '.join(sorted(between))} runs between the layers"
        if self.phase != "after" or self.left is None:
            self.fault = "the forward does not run its layers in order"
        elif self.left.dim() != 3:
            self._record_fault(f"the hidden state has {self.left.dim()} dimensions, not rows, tokens and channels")
        if self.fault is not None or self.left is None:
            raise ValueError(unsupported(self.model.config, str(self.fault)))
        return weighty

    def layout(self) -> Layout:
        """Return what was observed. Raises as `weighty`."""
        weighty = self.weighty()
        assert self.left is not None, "else there is a fault"
        before, after = weighty & self.ran["before"], weighty & self.ran["after"]
        idle = weighty - before - after
        sees = self.generates and image_names(type(self.model))
        images = {name for name in idle if "audio" not in name} if sees else set()
        return Layout(
            layers_name=self.layers_name,
            layer_count=len(self.layers),
            hidden_size=self.left.shape[-1],
            before=frozenset(before),
            after=frozenset(after),
            image_modules=frozenset(images),
            idle=frozenset(idle - images),
            tuple_length=self.tuple_length,
            image_tokens=self.left.shape[1] if self.model.main_input_name == "pixel_values" else None,
            generates=self.generates,
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
