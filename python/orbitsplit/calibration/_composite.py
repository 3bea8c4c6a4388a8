"""A model whose layers are in part those of other models, as the stages of a plan load them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._io.validation import quoted
from orbitsplit._models.architecture import find_layers
from orbitsplit._models.fingerprint import first_other_layer, hash_layers
from orbitsplit._models.model_part import load_part
from orbitsplit._models.quantizer import weights_config
from orbitsplit._models.source import open_model
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanStage

from ._activation_hooks import ActivationHooks

# The model, the first layer and the one after the last.
_Part = tuple[str, int, int]


class Composite:
    """Gives a model the weights of a plan's stages: what a stage loads, it loads, and nothing else of these models."""

    def __init__(self, hooked: ActivationHooks) -> None:
        self._model, self._own = hooked.model, hooked.layers
        self._layers_name, _ = find_layers(hooked.model)
        self._parts: dict[_Part, Mapping[str, nn.Module]] = {}

    def load(self, plan: Plan) -> None:
        """Load what the plan's stages with `weights` run, unless it is loaded, and forget what they do not.

        Raises `ValueError` where weights were converted from another model, or are of another architecture.
        """
        wanted = {self._part(plan, stage): stage for stage in plan.stages if stage.weights is not None}
        kept = {part: modules for part, modules in self._parts.items() if part in wanted}
        if len(kept) < len(self._parts):
            self._parts = kept
            gc.collect()  # layers refer to themselves: their weights would stay beside those that come
        for part, stage in wanted.items():
            if part not in self._parts:
                self._parts[part] = self._load(part, str(stage.weights))

    @contextmanager
    def holding(self, plan: Plan) -> Iterator[None]:
        """Give the model the weights of the plan, which are loaded, until the block ends."""
        kept: dict[str, nn.Module] = {}
        try:
            for stage in plan.stages:
                if stage.weights is not None:
                    for name, module in self._parts[self._part(plan, stage)].items():
                        kept[name] = self._model.get_submodule(name)
                        self._model.set_submodule(name, module)
            yield
        finally:
            for name, module in kept.items():
                self._model.set_submodule(name, module)

    def _part(self, plan: Plan, stage: PlanStage) -> _Part:
        return plan.weight_models[str(stage.weights)], stage.start, stage.stop

    def _load(self, part: _Part, weights: str) -> dict[str, nn.Module]:
        """Return the modules of a stage by their names in the model."""
        name, start, stop = part
        loaded, layout = load_part(open_model(name), start, stop, dtype=self._model.dtype)
        # Of a model with another head than its task's, the model is the part below: `load_model`.
        above = layout.layers_name.removesuffix(self._layers_name)
        if not layout.layers_name.endswith(self._layers_name) or layout.layer_count != len(self._own):
            kinds = f"{name} is a {type(loaded).__name__}, {self._model.name_or_path} a {type(self._model).__name__}"
            raise ValueError(f"weights {quoted(weights)} are of another architecture than the model: {kinds}")
        own = range(max(0, start - 1), min(layout.layer_count, stop - 1))
        layers = layout.layers_of(loaded)
        self._check_source(name, weights, loaded, {index: layers[index] for index in own})
        outside = (layout.before if start == 0 else frozenset()) | (
            layout.after if stop == layout.layer_count + 2 else frozenset()
        )
        found = {f"{self._layers_name}.{index}": layers[index] for index in own}
        for module in outside:
            if module.startswith(above):
                found[module.removeprefix(above)] = loaded.get_submodule(module)
        return found

    def _check_source(self, name: str, weights: str, loaded: PreTrainedModel, layers: Mapping[int, nn.Module]) -> None:
        if weights_config(loaded.config) is None:
            return  # a model of other weights that `convert` did not write has no digest of what it was made from
        own = hash_layers({index: self._own[index] for index in layers})
        if first_other_layer(layers, own) is not None:
            model = self._model.name_or_path or "the model"
            raise ValueError(f"weights {quoted(weights)} in {name} were converted from another model than {model}")
