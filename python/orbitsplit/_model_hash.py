"""Digests of a model's layers, to tell whether a codebook belongs to it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

# Elements of each tensor that count, evenly spaced: other weights differ everywhere, and reading all would take as
# long as loading the model.
_SAMPLED = 256


def hash_layer(layer: nn.Module) -> str:
    """Return a SHA-256 of a layer's weights, rounded to bfloat16 so that loading in 16 bits does not change it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(layer.named_parameters()):
        flat = parameter.detach().reshape(-1)
        chosen = flat[torch.arange(min(_SAMPLED, flat.numel())) * flat.numel() // min(_SAMPLED, flat.numel())]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(chosen.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
