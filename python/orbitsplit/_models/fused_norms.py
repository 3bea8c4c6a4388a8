"""RMS norms in one call of torch instead of six: a third of what a decode step does besides its products is norms.

transformers writes each model's norm in Python. Where torch's own gives the same bits, it stands in for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Rows of the inputs on which both have to agree: kernels differ between few and many.
_PROBED_ROWS = (1, 3, 32)


def fuse_norms(model: nn.Module) -> int:
    """Let torch compute the RMS norms of a model whose results are the same bits, and return how many those are.

    The weights have to have their values, and keep them.
    """
    count = 0
    for module in model.modules():
        forward = _fused_forward(module)
        if forward is not None:
            vars(module)["forward"] = forward
            count += 1
    return count


def _is_rms_norm(module: nn.Module) -> bool:
    """Say whether a module is called an RMS norm and has one vector of weights, in memory, and nothing else."""
    if isinstance(module, nn.RMSNorm) or not type(module).__name__.endswith("RMSNorm"):
        return False
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if list(tensors) != ["weight"] or any(True for _ in module.children()) or module._forward_hooks:
        return False
    weight = tensors["weight"]
    if not isinstance(weight, nn.Parameter):  # FalconMamba's is no scale of the width that it norms
        return False
    return weight.dim() == 1 and not weight.is_meta and weight.is_floating_point()


def _fused_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return a forward with the results of a module's own, None if no scale gives them."""
    found = norm_scale(module)
    if found is None:
        return None
    scale, epsilon = found
    fused = partial(nn.functional.rms_norm, normalized_shape=scale.shape, weight=scale, eps=epsilon)
    return _where_probed(fused, module.forward, scale.dtype)


@torch.inference_mode()
def norm_scale(module: nn.Module) -> tuple[Tensor, float] | None:
    """Return scale and epsilon of torch's RMS norm with the bits of a module's, None if there is none.

    The scale is the module's weight, or 1 more than it.
    """
    if not _is_rms_norm(module):
        return None
    weight = module.get_parameter("weight").detach()
    epsilon = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), None)
    if not isinstance(epsilon, float) or not epsilon > 0:
        return None
    inputs = [_probe(rows, weight, epsilon) for rows in _PROBED_ROWS]
    expected = [module(x) for x in inputs]
    for scale in (weight, 1.0 + weight):
        results = (nn.functional.rms_norm(x, scale.shape, scale, epsilon) for x in inputs)
        if all(torch.equal(x, y) for x, y in zip(results, expected, strict=True)):
            return scale, epsilon
    return None


def _where_probed(
    fused: Callable[[Tensor], Tensor], own: Callable[..., Tensor], dtype: torch.dtype
) -> Callable[..., Tensor]:
    """Return a forward that is `fused` for inputs of the dtype that was probed, and a module's own for others."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if len(args) == 1 and not kwargs and args[0].dtype is dtype:
            return fused(args[0])
        return own(*args, **kwargs)

    return forward


def _probe(rows: int, weight: Tensor, epsilon: float) -> Tensor:
    """Return an input [4, rows, columns]: mean squares far above epsilon, near it, far below it, and zeros.

    So that where epsilon is added, and which one, shows.
    """
    count = rows * len(weight)
    angles = torch.arange(1, count + 1, dtype=torch.float64)
    values = torch.sin(angles * math.e) * torch.exp(torch.sin(angles * math.sqrt(2.0)))
    scales = torch.tensor([300.0, math.sqrt(epsilon), math.sqrt(epsilon) / 100.0, 0.0], dtype=torch.float64)
    return (scales[:, None, None] * values.reshape(1, rows, len(weight))).to(weight.dtype)
