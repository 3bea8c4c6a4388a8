"""The structure of a model, found by inspecting it: there is no table of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .cut_form import CutForm
from .encoder_layout import EncoderLayout
from .own_state import StateKind
from .passthrough import LayerCall
from .source import (
    layer_count,
    unsupported,
)


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

    With an `encoder`, `before` runs before the layers of that, and `layers_name` and `call` are the decoder's; the
    layers of a problem are those of both lists and what is between.
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
    encoder: EncoderLayout | None = None

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


def plain_bounds(layers: int) -> tuple[int, ...]:
    """Return the bounds of embeddings, single layers, and a head."""
    return (0, *range(layers + 1), layers)


def without_paths(value: Any) -> Any:
    """Return a configuration's document without where the model lies."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items() if key not in ("_name_or_path", "source")}
    return [without_paths(part) for part in value] if isinstance(value, list) else value


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
