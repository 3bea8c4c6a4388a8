"""Experts of a mixture whose weights are quantized: transformers has the matrices of all of a layer in one parameter.

How they compute is written down in attributes of their module, for the implementations that transformers chooses from
(`transformers.integrations.moe`): so one forward serves all classes that have these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orbitsplit._weights.quantized import QuantizedWeights, quantized_bytes

from .weight_products import product

# What says how a class of transformers computes.
_DESCRIPTION = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class ExpertsWeight:
    """A parameter of experts as the `weight` [experts, outputs, inputs] of a module of its own."""

    def __init__(self, name: str, experts: nn.Module, parameter: str) -> None:
        self.name, self.experts, self.parameter = f"{name}.{parameter}".lstrip("."), experts, parameter
        count, rows, columns = self.weight.shape
        self.stacked = count, rows
        self.shape = count * rows, columns

    @property
    def weight(self) -> Tensor:
        """The parameter, in the orientation of linear layers."""
        weight: Tensor = getattr(self.experts, self.parameter)
        return weight.transpose(1, 2) if self.experts.is_transposed else weight

    @weight.setter
    def weight(self, values: Tensor) -> None:
        stacked = values.detach().reshape(*self.stacked, self.shape[1])
        stacked = stacked.transpose(1, 2).contiguous() if self.experts.is_transposed else stacked
        setattr(self.experts, self.parameter, nn.Parameter(stacked, requires_grad=False))


def experts_weights(name: str, module: nn.Module) -> Iterator[ExpertsWeight]:
    """Yield the weights in floats that a module of this name has, if it is one of experts that are known to compute."""
    if not _is_known(module):
        return
    for parameter, weight in module.named_parameters(recurse=False):
        if parameter in _WEIGHTS and weight.dim() == 3 and weight.is_floating_point():
            yield ExpertsWeight(name, module, parameter)


def check_experts(model: nn.Module) -> None:
    """Raise `ValueError`, naming the class, for a model with experts whose weights cannot be quantized."""
    for module in model.modules():
        several = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        if several and "Expert" in type(module).__name__ and not _is_known(module):
            reason = f"how its {type(module).__name__} compute is not known"
            raise ValueError(f"weights of {type(model).__name__} cannot be quantized: {reason}")


def _is_known(module: nn.Module) -> bool:
    if not type(module).__module__.startswith(("transformers.", __name__)):
        return False
    up = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    return all(hasattr(module, name) for name in (*_DESCRIPTION, up, "down_proj"))


def quantize_experts(weight: ExpertsWeight, weight_format: str) -> None:
    """Give experts, on the meta device, quantized weights in the place of a parameter."""
    experts: Any = weight.experts
    if not isinstance(experts, QuantizedExperts):
        original: Any = type(experts)
        experts.__class__ = _quantized_class(original)
        experts.weight_formats, experts.own_matrices = {}, {}
    experts.weight_formats[weight.parameter] = weight_format, weight.shape[1]
    row_bytes = quantized_bytes(weight_format, (1, weight.shape[1]))
    data = torch.empty((*weight.stacked, row_bytes), dtype=torch.uint8, device="meta")
    setattr(experts, weight.parameter, nn.Parameter(data, requires_grad=False))


@functools.cache
def _quantized_class(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantized{original.__name__}", (QuantizedExperts, original), {"__module__": __name__})


class QuantizedExperts(nn.Module):
    """Experts whose weights [experts, outputs, bytes of a row] are uint8; of some parameters, or of all.

    Gates, activations, biases and norms are those of the original class, which comes next in the order of bases.
    """

    weight_formats: dict[str, tuple[str, int]]  # format and columns of each parameter
    own_matrices: dict[str, tuple[int, list[QuantizedWeights]]]  # those of each expert, for an address of the weight
    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    has_post_expert_norm: bool

    def matrices(self, name: str) -> Iterator[tuple[str, QuantizedWeights]]:
        """Yield the name of each quantized parameter and its weights, with the rows of all experts."""
        for parameter, (weight_format, columns) in self.weight_formats.items():
            data = getattr(self, parameter).detach().flatten(0, 1).numpy()
            yield f"{name}.{parameter}", QuantizedWeights(weight_format, (len(data), columns), data)  # type: ignore[arg-type]

    def _matrices(self, parameter: str) -> list[QuantizedWeights]:
        """Return the weights of each expert, not copied, made once for each parameter."""
        weight: Any = self._parameters[parameter]
        address = weight.data_ptr()
        if self.own_matrices.get(parameter, (0, []))[0] != address:
            weight_format, columns = self.weight_formats[parameter]
            shape: Any = weight.shape[1], columns
            made = [QuantizedWeights(weight_format, shape, data) for data in weight.detach().numpy()]  # type: ignore[arg-type]
            self.own_matrices[parameter] = address, made
        return self.own_matrices[parameter][1]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the sum [tokens, columns] of what `top_k_index` [tokens, k] experts make of each token."""
        tokens, most = top_k_index.shape
        chosen = top_k_index.reshape(-1)
        x = hidden_states.float().contiguous()
        if x.is_meta:
            outputs = self._of_expert(chosen, x.repeat_interleave(most, dim=0))
        else:
            outputs = torch.empty(len(chosen), x.shape[1])
            for expert in sorted(set(chosen.tolist())):
                rows = (chosen == expert).nonzero().flatten()
                outputs[rows] = self._of_expert(expert, x[rows // most])
        weighted = outputs * top_k_weights.reshape(-1, 1)
        return weighted.view(tokens, most, -1).sum(dim=1).to(hidden_states.dtype)

    def _of_expert(self, expert: Any, x: Tensor) -> Tensor:
        """Return what an expert makes of rows; on the meta device, what an expert for each row does."""
        own: Any = self  # an instance of the original class too
        up = "gate_up_proj" if self.has_gate else "up_proj"
        inner = self._linear(up, expert, x)
        inner = own._apply_gate(inner) if self.has_gate else own.act_fn(inner)
        outer = self._linear("down_proj", expert, inner)
        if self.has_post_expert_norm:
            outer = own.post_expert_norm(outer)
        return outer.float()

    def _linear(self, parameter: str, expert: Any, x: Tensor) -> Tensor:
        weight = getattr(self, parameter)
        quantized = self.weight_formats.get(parameter)
        if x.is_meta:
            outputs = weight.shape[2 if quantized is None and self.is_transposed else 1]
            values = x.new_empty(()).expand(len(x), outputs, x.shape[1])  # no memory for floats: there is none
            y = torch.bmm(values, x.unsqueeze(-1)).squeeze(-1)
        elif quantized is None:
            values = weight[expert].to(x.dtype)
            y = x @ values if self.is_transposed else nn.functional.linear(x, values)
        else:
            y = product(self._matrices(parameter)[expert], x.float().contiguous())
        if self.has_bias:
            y = y + getattr(self, f"{parameter}_bias")[expert]
        return y
