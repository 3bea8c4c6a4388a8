"""Models without the values of their weights: on the meta device, and in memory that is never written."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import initialization
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .quantized import replace_with_quantized
from .quantizer import weights_config
from .source import classifies_texts, forget_padding, model_class

# The C library may reuse memory of smaller blocks, and gets larger ones from the system.
_LARGEST_REUSED_BYTES = 32 << 20
_DRAWING = (
    "normal_",
    "uniform_",
    "trunc_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "xavier_uniform_",
    "xavier_normal_",
)
# While transformers builds a model, its functions stand for those of torch.nn.init.
_FILLS = frozenset(
    getattr(place, name)
    for place in (torch.Tensor, torch.nn.init, initialization)
    for name in _DRAWING
    if hasattr(place, name)
)


def build_on_meta(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model without weights, ready for a forward on the meta device."""
    with torch.device("meta"), without_values():
        return _built(config, dtype)


def build_unfilled(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model whose weights are not initialised, for forwards that need values where any will do.

    Memory that was never written takes none: what the system gives for a large matrix reads as zeros. Small tensors,
    which may lie in memory that was used before, are filled.
    """
    with _WithoutValues(everywhere=True):
        model = _built(config, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.nbytes <= _LARGEST_REUSED_BYTES:
                parameter.fill_(0.01)
    return model


def _built(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):  # some constructors draw
        model: PreTrainedModel = model_class(config)._from_config(copy.deepcopy(config), dtype=dtype)
    if not model.config.architectures:  # as of a model that takes a part of its configuration
        vars(model.config)["architectures"] = [type(model).__name__]
    quantized = weights_config(config)
    if quantized is not None:
        replace_with_quantized(model, quantized.by_module(), quantized.int8_rows)
    model.eval().requires_grad_(False)  # counters of FLOP follow gradients even where none is computed
    forget_padding(model)
    text = model.config.get_text_config(decoder=True)
    if classifies_texts(model.config, type(model)) and getattr(text, "pad_token_id", None) is None:
        vars(text)["pad_token_id"] = 0  # for forwards of several rows; a single one runs without
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the default has no meta kernel for float32
    return model


class _WithoutValues(TorchFunctionMode):
    """Skips what fills tensors on the meta device, which have no values: each call takes longer than to make one.

    With `everywhere`, weights on other devices are not drawn either: small ones are zero, the memory of large ones is
    left alone.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        super().__init__()
        self._everywhere = everywhere

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _FILLS:
            tensor: Tensor = args[0] if args else options["tensor"]
            if tensor.is_meta:
                return tensor
            # Other tensors are drawn: `trunc_normal_` goes on until all numbers are within its limits.
            if self._everywhere and isinstance(tensor, torch.nn.Parameter):
                if tensor.nbytes <= _LARGEST_REUSED_BYTES:
                    tensor.data.zero_()
                return tensor
        return func(*args, **options)


def without_values() -> AbstractContextManager[Any]:
    """Return a context in which models on the meta device are built without initialising their weights."""
    return _WithoutValues()
