"""A model's stages quantised one after the other, each for what the quantised ones before it give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orbitsplit._weights.int4 import LARGEST_CODE
from orbitsplit._weights.quantized import QuantizedWeights
from orbitsplit._weights.refined import Matrix, RefinedWeights

from .architecture import has_parameters
from .compensation import TIED_DAMPING, compensated
from .experts import ExpertsWeight
from .gguf import Progress
from .module_inputs import second_moments
from .stage import StageModel


class Compensator:
    """Quantises the stages of a model, each of one layer and in order, for token ids [N, S].

    `load` returns the stage of a layer; `layers` is their number with embeddings and head. `formats` has the format of
    each module by name, `tied` the head that shares a table by the name of the table; `refined` the indices of rows of
    tables in int4 that are in int8. The hidden state of every row is kept.
    """

    def __init__(
        self,
        load: Callable[[int], StageModel],
        layers: int,
        ids: Tensor,
        *,
        formats: Mapping[str, str],
        tied: Mapping[str, str],
        refined: Mapping[str, Tensor],
        progress: Progress,
    ) -> None:
        self._load, self._layers = load, layers
        self._ids = ids
        self._formats, self._tied, self._refined = formats, tied, refined
        self._progress = progress
        self._states: list[Tensor | None] = [None] * len(ids)

    @torch.inference_mode()
    def quantize(self, stage: StageModel) -> dict[str, Matrix]:
        """Return the matrices of a stage's modules by name. When it returns, the stage computes with them."""
        modules = self._modules(stage)
        moments = self._moments(stage, modules)
        found: dict[str, Matrix] = {}
        for name, module in modules.items():
            values = matrix_of(module)
            found[name] = matrix = self._rounded(name, values, moments.get(name))
            rows = self._refined.get(name)
            if rows is not None:
                found[name] = RefinedWeights.refine(matrix, rows.numpy(), values[rows].numpy())
            put(module, found[name])
        if not stage.is_last:
            self._states = [forward() for forward in self._forwards(stage, self._states)]
        return found

    def _rounded(self, name: str, values: Tensor, moments: Tensor | None) -> QuantizedWeights:
        wanted: Any = self._formats[name]
        if moments is not None:
            return compensated(values, moments, weight_format=wanted)
        if name in self._tied and wanted in LARGEST_CODE:
            of_head = self._head_moments(self._tied[name])
            return compensated(values, of_head, damping=TIED_DAMPING, weight_format=wanted)
        return QuantizedWeights.quantize(values.numpy(), wanted)

    def _modules(self, stage: StageModel) -> dict[str, nn.Module]:
        """Return the modules that the stage has to quantise: a tied head has the table of the first stage."""
        return {
            name: module
            for name, module in stage.model.named_modules()
            if name in self._formats and name not in self._tied.values() and has_parameters(module)
        }

    def _moments(self, stage: StageModel, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return the moments of the linear layers that a stage, still in floats, shall have in int4 or int5."""
        adapted = {
            name: module
            for name, module in modules.items()
            if self._formats[name] in LARGEST_CODE and not isinstance(module, nn.Embedding)
        }
        return second_moments(adapted, self._forwards(stage, self._states)) if adapted else {}

    def _head_moments(self, head: str) -> Tensor:
        """Return the second moments of what a tied head gets: a forward of the float model."""
        states: list[Tensor | None] = [None] * len(self._ids)
        for number in range(self._layers - 1):
            self._progress(f"inputs of the head, layer {number + 1} of {self._layers}", number / self._layers)
            states = [forward() for forward in self._forwards(self._load(number), states)]
        stage = self._load(self._layers - 1)
        return second_moments({head: stage.model.get_submodule(head)}, self._forwards(stage, states))[head]

    def _forwards(self, stage: StageModel, states: list[Tensor | None]) -> Iterator[Callable[[], Any]]:
        for ids, state in zip(self._ids, states, strict=True):
            yield partial(stage.forward_once, state, {"input_ids": ids[None]})


def matrix_of(module: nn.Module | ExpertsWeight) -> Tensor:
    """Return the float32 weight [outputs, inputs] of a linear layer, an embedding or experts, contiguous."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return (weight.t() if isinstance(module, Conv1D) else weight).float().contiguous().flatten(0, -2)


def put(module: nn.Module | ExpertsWeight, weights: Matrix) -> None:
    """Give a module the values of quantised weights."""
    values = torch.from_numpy(weights.dequantize())
    values = values.t().contiguous() if isinstance(module, Conv1D) else values
    module.weight = nn.Parameter(values.to(module.weight.dtype), requires_grad=False)  # type: ignore[arg-type]
