"""What a model loses where layers have weights in 8, 5 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._codebook.weight_losses import WeightLosses
from orbitsplit._models.compensator import matrix_of, put
from orbitsplit._models.experts import ExpertsWeight
from orbitsplit._models.fingerprint import hash_layer
from orbitsplit._models.quantized import quantized_matrices, weights_of
from orbitsplit._models.quantizer import weights_config
from orbitsplit._weights.quantized import FORMATS, QuantizedWeights
from orbitsplit._weights.refined import Matrix

from ._activation_hooks import ActivationHooks
from ._data import load_model
from ._measure import Reference
from ._task import Batch

Matrices = Mapping[str, Matrix]


class LayerWeights:
    """The modules of each layer of a model whose weights can be quantised: 0 the embeddings, n + 1 the head.

    Of a tied table, embeddings and head are two modules here: one may be quantised and the other not.
    """

    def __init__(self, hooked: ActivationHooks, batch: Batch) -> None:
        self._hooked = hooked
        self._modules = {name: module for name, module, _ in weights_of(hooked.model)}
        inside = {id(part): number for number, layer in enumerate(hooked.layers, 1) for part in layer.modules()}
        early = self._before_the_layers(batch)
        last = len(hooked.layers) + 1
        self.layers: list[list[str]] = [[] for _ in range(last + 1)]
        for name, module in self._modules.items():
            owner = module.experts if isinstance(module, ExpertsWeight) else module
            self.layers[inside.get(id(owner), 0 if name in early else last)].append(name)

    def _before_the_layers(self, batch: Batch) -> set[str]:
        seen: set[str] = set()
        handles = [
            module.register_forward_pre_hook(lambda *_, name=name: seen.add(name))
            for name, module in self._modules.items()
            if not isinstance(module, ExpertsWeight)  # they are in layers
        ]
        try:
            with torch.no_grad():
                self._hooked.hidden(batch.inputs, 0)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def matrices(self, level: str | Path) -> Matrices:
        """Return the weights of all modules, by name, in a format or as a folder that `convert` wrote has them.

        Raises `ValueError` if the folder is of another model or not by `convert`.
        """
        if level not in FORMATS:
            return self._converted(level)
        found: dict[str, Matrix] = {}
        of_table: dict[int, QuantizedWeights] = {}
        for name, module in self._modules.items():
            address = module.weight.data_ptr()  # type: ignore[operator]
            if address not in of_table:
                of_table[address] = QuantizedWeights.quantize(matrix_of(module).numpy(), str(level))  # type: ignore[arg-type]
            found[name] = of_table[address]
        return found

    def _converted(self, folder: str | Path) -> Matrices:
        own = self._hooked.model
        model: PreTrainedModel = load_model(folder, dtype=own.dtype)
        if weights_config(model.config) is None:
            raise ValueError(f"{folder} has no weights quantized by orbitsplit convert")
        layers = ActivationHooks(model).layers
        if [hash_layer(layer) for layer in layers] != [hash_layer(layer) for layer in self._hooked.layers]:
            raise ValueError(f"{folder} was converted from another model than {own.name_or_path}")
        return dict(quantized_matrices(model))

    @contextmanager
    def holding(self, chosen: Mapping[int, Matrices]) -> Iterator[None]:
        """Give the layers that are named the values of quantised weights, until the block ends."""
        kept: list[tuple[nn.Module | ExpertsWeight, Any]] = []
        try:
            for layer, matrices in chosen.items():
                for name in self.layers[layer]:
                    if name in matrices:
                        module = self._modules[name]
                        kept.append((module, module.weight))
                        put(module, matrices[name])
            yield
        finally:
            for module, weight in kept:
                module.weight = weight


def measure_weights(
    reference: Reference,
    levels: Mapping[str, str | Path],
    *,
    on_batch: Callable[[int], None] = lambda _index: None,
) -> dict[str, WeightLosses]:
    """Return what each layer loses when it alone has its weights in one of the levels, formats or folders by name."""
    weights = LayerWeights(reference.hooked, reference.batches[0])
    matrices = {name: weights.matrices(level) for name, level in levels.items()}
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in weights.layers] for name in levels}
    for index, batch in enumerate(reference.batches):
        own = reference.outputs(index)
        with torch.no_grad():
            states = reference.hooked.hidden_at(batch.inputs, range(len(weights.layers) - 1))
            for name, layers in found.items():
                for layer, values in enumerate(layers):
                    # What comes before the layer has run in floats already.
                    start = (layer - 1, states[layer - 1]) if layer else None
                    with weights.holding({layer: matrices[name]}):
                        result = reference.hooked.run(batch.inputs, start=start)
                    values.append(reference.task.divergence(own, reference.task.outputs(result, batch)))
        on_batch(index)
    return {name: _summed(reference, layers) for name, layers in found.items()}


def _summed(reference: Reference, layers: Sequence[Sequence[Tensor]]) -> WeightLosses:
    means, errors = zip(*(reference.with_error(values) for values in layers), strict=True)
    # A layer that loses nothing may have a mean of -1e-9, by rounding.
    return WeightLosses(loss=tuple(max(0.0, mean) for mean in means), loss_error=errors)
