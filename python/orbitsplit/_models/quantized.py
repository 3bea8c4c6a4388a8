"""Modules whose weights are quantized: linear layers and embeddings as transformers' models have them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orbitsplit._weights.quantized import quantized_bytes
from orbitsplit._weights.refined import Matrix, matrix_of_bytes, refined_bytes

from .experts import ExpertsWeight, QuantizedExperts, experts_weights, quantize_experts
from .weight_products import product


class _Quantized(nn.Module):
    """A module whose `weight` [rows, bytes of a row] is uint8: a matrix of quantized weights.

    Where `int8_rows` of the rows of a matrix in int4 are in int8, `weight` [bytes] has the bytes of `RefinedWeights`.
    """

    def __init__(self, weight_format: str, shape: tuple[int, int], int8_rows: int) -> None:
        super().__init__()
        self.weight_format, self.int8_rows = weight_format, int8_rows
        self._shape = rows, columns = shape
        size = (refined_bytes(shape, int8_rows),) if int8_rows else (rows, quantized_bytes(weight_format, (1, columns)))
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self._matrix: tuple[int, Matrix] | None = None

    def matrix(self) -> Matrix:
        """Return the weights, not copied, made once for each weight: that takes half as long as a small product."""
        weight: Any = self._parameters["weight"]  # a module's attribute takes longer
        address = weight.data_ptr()
        if self._matrix is None or self._matrix[0] != address:
            made = matrix_of_bytes(self.weight_format, self._shape, self.int8_rows, weight.detach().numpy())
            self._matrix = address, made
        return self._matrix[1]


class QuantizedLinear(_Quantized):
    """A linear layer, y = x W^T + b, on weights in 8, 5 or 4 bits.

    `x` and `y` have the dtype of activations, products are float32.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: nn.Parameter | None, weight_format: str, int8_rows: int = 0
    ) -> None:
        super().__init__(weight_format, (out_features, in_features), int8_rows)
        self.in_features, self.out_features = in_features, out_features
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Return y [..., out_features] for x [..., in_features]."""
        if x.is_meta:
            weight = x.new_empty(()).expand(self.out_features, self.in_features)  # no memory for floats: there is none
            return nn.functional.linear(x, weight)
        # Small calls count: a decode step has 7 of these in a layer, each some 20 us of which a half is products.
        singles = (x if x.dtype is torch.float32 else x.float()).contiguous()
        y = product(self.matrix(), singles)
        if self.bias is not None:
            y += self.bias
        return y if x.dtype is torch.float32 else y.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments, for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, weights={self.weight_format}"


class QuantizedEmbedding(_Quantized):
    """An embedding with its table in 8, 5 or 4 bits; beside looking up rows it does what the original class does."""

    def __init__(self, original: nn.Embedding, weight_format: str, int8_rows: int = 0) -> None:
        super().__init__(weight_format, (original.num_embeddings, original.embedding_dim), int8_rows)
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim
        self.dtype = original.weight.dtype
        original.padding_idx = None  # of training; the table of a forward has other rows
        del original.weight
        # No parameter, so that nothing is loaded into it; transformers initialises what an embedding calls so.
        self._no_rows = torch.empty(0, self.embedding_dim, dtype=self.dtype)
        original.weight = self._no_rows
        self.original = original

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., embedding_dim] of ids [...]."""
        flat = ids.reshape(-1)
        if ids.is_meta:
            rows = torch.empty(flat.numel(), self.embedding_dim, dtype=self.dtype, device="meta")
        else:
            if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.num_embeddings:
                least, most = int(flat.min()), int(flat.max())
                raise IndexError(f"token ids from {least} to {most}, must be from 0 to {self.num_embeddings - 1}")
            rows = torch.from_numpy(self.matrix().rows(flat.numpy())).to(self.dtype)
        self.original.weight = rows  # a table of the looked-up rows alone
        try:
            embedded: Tensor = self.original(torch.arange(flat.numel(), device=ids.device).reshape(ids.shape))
        finally:
            self.original.weight = self._no_rows
        return embedded


def _takes_ids_alone(module: nn.Embedding) -> bool:
    """Say whether a module is called as an embedding: some of positions take masks."""
    return len(inspect.signature(module.forward).parameters) == 1


def weights_of(model: nn.Module) -> Iterator[tuple[str, nn.Module | ExpertsWeight, tuple[int, int]]]:
    """Yield name, module and shape (outputs, inputs) of each weight that can be quantized: 32 columns share a scale.

    The matrices of experts are one weight, with their rows behind each other, whose name is that of the parameter.
    """
    for name, module in model.named_modules():
        for weight in experts_weights(name, module):
            if weight.shape[1] % 32 == 0:
                yield weight.name, weight, weight.shape
        if type(module) is nn.Linear:
            shape = (module.out_features, module.in_features)
        elif type(module) is Conv1D:
            shape = (module.nf, module.nx)
        elif isinstance(module, nn.Embedding) and _takes_ids_alone(module):
            shape = (module.num_embeddings, module.embedding_dim)
        else:
            continue
        if shape[1] % 32 == 0:
            yield name, module, shape


def quantized_matrices(model: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Yield name and weights of each quantised module."""
    for name, module in model.named_modules():
        if isinstance(module, _Quantized):
            yield name, module.matrix()
        elif isinstance(module, QuantizedExperts):
            yield from module.matrices(name)


def replace_with_quantized(model: PreTrainedModel, formats: Mapping[str, str], int8_rows: Mapping[str, int]) -> None:
    """Replace the modules that `formats` names, whose weights are on the meta device, by quantized ones.

    `int8_rows` has the number of rows in int8 of modules in int4.
    """
    for name, module, (outputs, inputs) in list(weights_of(model)):
        weight_format = formats.get(name)
        if weight_format is None:
            continue
        replacement: Any
        if isinstance(module, ExpertsWeight):
            quantize_experts(module, weight_format)
            continue
        if isinstance(module, nn.Embedding):
            replacement = QuantizedEmbedding(module, weight_format, int8_rows.get(name, 0))
        else:
            bias = getattr(module, "bias", None)
            replacement = QuantizedLinear(inputs, outputs, bias, weight_format, int8_rows.get(name, 0))
        model.set_submodule(name, replacement)
