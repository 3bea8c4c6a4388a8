"""Bytes of the tensors that are alive in a forward."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors, and their peak.

    Two things differ on the meta device from a processor and are not counted: the score matrix of attention, which
    fused kernels never build, and the copies of expert weights that the only experts implementation with meta kernels
    makes per token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for weight in (*model.parameters(), *model.buffers()):  # their views are not new bytes
            weight.untyped_storage()._orbitsplit_counted = True  # type: ignore[attr-defined]
        self.bytes = 0
        self.peak = 0
        self._is_paused = False
        self._is_in_experts = False

    def take_peak(self) -> int:
        """Return the peak since the last call, and reset it."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def enter_experts(self, entered: bool) -> None:
        """Set whether the forward is in a module of expert weights."""
        self._is_in_experts = entered

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """Count only the result of an attention."""
        live = self

        class Fused(TorchFunctionMode):
            def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is not nn.functional.scaled_dot_product_attention:
                    return func(*args, **(kwargs or {}))
                live._is_paused = True
                try:
                    output = func(*args, **(kwargs or {}))
                finally:
                    live._is_paused = False
                live._count(output)
                return output

        with Fused():
            yield

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        is_weight_copy = self._is_in_experts and func is torch.ops.aten.index.Tensor
        if not self._is_paused and not is_weight_copy:
            for tensor in tree_leaves(output):
                self._count(tensor)
        return output

    def _count(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        if getattr(storage, "_orbitsplit_counted", False):
            return
        storage._orbitsplit_counted = True  # type: ignore[attr-defined]
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size
