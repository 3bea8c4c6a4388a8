"""Models with the weights of a part of their layers: other layers and modules are replaced by ones without weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .architecture import Layout, modules_outside
from .encoder_layout import EncoderLayout
from .fused_layers import fuse_layers
from .fused_norms import fuse_norms
from .layouts import find_layout
from .passthrough import LayerCall, Passthrough
from .source import load_options, model_class, read_config
from .stored_dtype import convert_parameters, keep_stored, stored_dtype
from .valueless import without_values


def load_part(
    model: str | Path,
    start: int,
    stop: int,
    *,
    dtype: torch.dtype = torch.float32,
    tensors: Mapping[str, Any] | None = None,
    is_fused: bool = True,
) -> tuple[PreTrainedModel, Layout]:
    """Return a model with the weights of its layers [start, stop) alone, and how it runs its layers.

    Arguments and errors as of `StageModel.load`. In the place of other modules are ones without weights. If `is_fused`,
    the core computes layers and norms where it gives what they do.
    """
    config = read_config(model)
    layout = find_layout(config)
    layers = layout.layer_count + 2
    if not 0 <= start < stop <= layers:
        raise ValueError(f"stage [{start}, {stop}) is not a non-empty range within the model's {layers} layers")
    stored = stored_dtype(model, config)
    architecture = _stage_class(model_class(config), layout, start, stop, stored)
    source = model if tensors is None else None
    with _quiet_loading():
        loaded, info = architecture.from_pretrained(
            source,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            **load_options(model, config),
        )
    _check_complete(loaded, set(info["missing_keys"]), f"stage [{start}, {stop}) of {model}")
    convert_parameters(loaded)
    _settle_shared(loaded, layout, start)
    for module in loaded.modules():
        if isinstance(module, _Placeholder):
            module.finish_loading(loaded._init_weights)
    if is_fused:
        fuse_layers(layout.layers_of(loaded))
        fuse_norms(loaded)
    return loaded, layout


class _Placeholder(nn.Module):
    """Replaces a module of another stage: its output has the right shape and is NaN; it has no weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_module", module.to("meta"))  # unregistered: its weights are not ours to load
        self._signature: Any = None
        self._output: Any = None
        self._device = torch.device("cpu")
        self._is_loaded = False
        self._constants: dict[str, Tensor] = {}

    def finish_loading(self, initialise: Callable[[nn.Module], None]) -> None:
        """Find the constants of the module, which a forward may read elsewhere; `initialise` sets those of a module.

        They are its buffers that no checkpoint has, as the numbers of positions.
        """
        self._is_loaded = True
        module: nn.Module = object.__getattribute__(self, "_module")
        on_meta = module._buffers
        self._constants = {
            name: _filled(value, device=self._device)
            for name, value in on_meta.items()
            if value is not None and name in module._non_persistent_buffers_set
        }
        module._buffers = {**on_meta, **self._constants}  # the others are set too, on meta, where that takes nothing
        try:
            initialise(module)
        finally:
            module._buffers = on_meta

    def __getattr__(self, name: str) -> Any:
        constants = self.__dict__.get("_constants", {})
        if name in constants:
            return constants[name]
        value = getattr(object.__getattribute__(self, "_module"), name)
        if not self._is_loaded or not isinstance(value, nn.Parameter) or not value.is_floating_point():
            return value
        # It may be computed with, as rows of a table are. Its numbers take no memory.
        numbers = torch.full((), float("nan"), dtype=value.dtype, device=self._device).expand(value.shape)
        return nn.Parameter(numbers, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Inputs may come on the meta device: some models send them to where the weights of a module lie.
        self._device = fn(torch.empty(0)).device
        self._constants = {name: fn(value) for name, value in self._constants.items()}
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The forward on meta takes about as long as half a layer of a small model, and decode steps repeat it
        # with the same shapes. Only the shapes are kept: some models scale the embeddings in place.
        signature = tree_map_only(Tensor, lambda x: (x.shape, x.dtype), (args, kwargs))
        if self._signature != signature:
            on_meta = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
            self._output = object.__getattribute__(self, "_module")(*on_meta[0], **on_meta[1])
            self._signature = signature
        return tree_map_only(Tensor, functools.partial(_filled, device=self._device), self._output)


def _filled(x: Tensor, *, device: torch.device | None) -> Tensor:
    value = float("nan") if x.is_floating_point() else 0
    return torch.full(x.shape, value, dtype=x.dtype, device=device)


def _stage_class(
    architecture: type[PreTrainedModel], layout: Layout, start: int, stop: int, stored: torch.dtype | None
) -> type[PreTrainedModel]:
    """Return the architecture as it is on a stage, for transformers' own loader to fill; see `keep_stored`."""

    def initialise(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        with without_values():
            architecture.__init__(self, config, *args, **kwargs)
        _strip(self, layout, start, stop)
        keep_stored(self, stored)

    members = {
        "__init__": initialise,
        "__module__": architecture.__module__,
        # By default these are the first weight's, and what runs after the layers may have none.
        "dtype": property(lambda model: model.config.dtype),
        "device": property(lambda model: next((weight.device for weight in model.parameters()), torch.device("cpu"))),
        # The weights of other stages; missing weights of the stage itself are checked.
        "_keys_to_ignore_on_load_unexpected": [".*"],
    }
    return type(architecture.__name__, (architecture,), members)


def _strip(model: PreTrainedModel, layout: Layout, start: int, stop: int) -> None:
    """Replace the modules of other stages. The source of a tied module stays on its stage until that is loaded."""
    if layout.encoder is not None:
        _strip_both(model, layout, layout.encoder, start, stop)
        return
    is_first, is_last = start == 0, stop == layout.layer_count + 2
    owned = (layout.before | layout.image_modules if is_first else frozenset()) | (
        layout.after if is_last else frozenset()
    )
    others = (layout.before | layout.image_modules | layout.after | layout.idle) - owned
    inside, outside = (tuple(f"{name}." for name in names) for names in (owned, others))
    ties = {key: source for key, source in (model.all_tied_weights_keys or {}).items() if not key.startswith(outside)}
    model.all_tied_weights_keys = {key: source for key, source in ties.items() if is_last or key.startswith(inside)}
    sources = set(model.all_tied_weights_keys.values())
    for name, module in modules_outside(model, layout.layers_name).items():
        tied = any(f"{name}.{key}" in sources for key, _ in module.named_parameters())
        if name in others and not tied:
            model.set_submodule(name, _Placeholder(module))
    layers = layout.layers_of(model)
    for index, layer in enumerate(layers):
        if not layout.bounds[start] <= index < layout.bounds[stop]:
            layers[index] = Passthrough(index, layer.to("meta"), layout.call)


def _strip_both(model: PreTrainedModel, layout: Layout, encoder: EncoderLayout, start: int, stop: int) -> None:
    """Replace the modules of other stages of an encoder and a decoder.

    Embeddings of both and the head are often tied to a module that does not run, which is kept with any of them.
    """
    parts = ((0, layout.before), (encoder.middle_layer, encoder.middle), (layout.layer_count + 1, layout.after))
    owned = {name for layer, names in parts if start <= layer < stop for name in names}
    ties = {
        target: source
        for target, source in (model.all_tied_weights_keys or {}).items()
        if any(target.startswith(f"{name}.") for name in owned)
    }
    model.all_tied_weights_keys = ties
    for name in (layout.before | encoder.middle | layout.after | layout.idle) - owned:
        if not any(source.startswith(f"{name}.") for source in ties.values()):
            model.set_submodule(name, _Placeholder(model.get_submodule(name)))
    layers, own_layers = layout.encoder_layers_of(model), layout.decoder_layers_of(model)
    _replace_layers(layers, start - 1, stop - 1, encoder.tuple_length, encoder.shared)
    first = encoder.middle_layer
    _replace_layers(own_layers, start - 1 - first, stop - 1 - first, layout.call.tuple_length, encoder.decoder_shared)


def _replace_layers(
    layers: nn.ModuleList, start: int, stop: int, tuple_length: int | None, shared: frozenset[str]
) -> None:
    """Replace all layers but those from `start` to `stop`; what the first layer shares with others stays."""
    own = [index for index in range(len(layers)) if start <= index < stop]
    kept = {name: layers[0].get_submodule(name) for name in shared} if own and own[0] > 0 else {}
    for index, layer in enumerate(layers):
        if index not in own:
            layers[index] = Passthrough(index, layer.to("meta"), LayerCall(tuple_length), {} if index else kept)


def _share_first(layers: nn.ModuleList, shared: frozenset[str]) -> None:
    """Give the first layer of a stage what the first layer of all has alone, and others use by what it returns."""
    target = next((layer for layer in layers if not isinstance(layer, Passthrough)), None)
    if target is None or target is layers[0]:
        return
    for name in shared:
        holder, _, last = name.rpartition(".")
        source, own = (layer.get_submodule(holder) for layer in (layers[0], target))
        own.add_module(last, source.get_submodule(last))
        # By a switch a layer knows whether it has such a module.
        switches = {key: value for key, value in vars(source).items() if isinstance(value, bool)}
        vars(own).update({**switches, "training": own.training})


def _settle_shared(model: PreTrainedModel, layout: Layout, start: int) -> None:
    """Give weights that several modules share to those of the stage, and drop modules that they came from."""
    if layout.encoder is not None:
        _share_first(layout.encoder_layers_of(model), layout.encoder.shared)
        _share_first(layout.decoder_layers_of(model), layout.encoder.decoder_shared)
        return
    # A tied head has its weight by now; the embeddings it came from are neither run nor kept.
    if start > 0:
        for name in layout.before:
            module = model.get_submodule(name)
            if not isinstance(module, _Placeholder) and name not in layout.after:
                model.set_submodule(name, _Placeholder(module))


def _check_complete(model: PreTrainedModel, missing: set[str], what: str) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = (missing & tensors.keys()) | {name for name, tensor in tensors.items() if tensor.is_meta}
    if missing:
        raise ValueError(f"{what}: the checkpoint lacks {len(missing)} weights, the first is {min(missing)}")


@contextmanager
def _quiet_loading() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
