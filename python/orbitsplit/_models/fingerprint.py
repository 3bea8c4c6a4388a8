"""Digests of a model's layers, to tell whether a codebook belongs to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

# Elements of each tensor that are hashed, evenly spaced: other weights differ everywhere, and hashing all would take as
# long as loading the model.
_SAMPLED = 256
# The attribute of a layer with quantized weights that has the digest of the layer it was made from.
SOURCE_HASH = "_orbitsplit_source_hash"


def hash_layers(layers: Mapping[int, nn.Module]) -> dict[int, str]:
    """Return the digests of layers by index, except layers in float16, which cannot be compared."""
    return {
        index: hash_layer(layer)
        for index, layer in layers.items()
        if not any(parameter.dtype == torch.float16 for parameter in layer.parameters())
    }


def first_other_layer(layers: Mapping[int, nn.Module], digests: Mapping[int, str]) -> int | None:
    """Return the index of the first layer whose digest is another than the one given, None if there is none.

    What has no digest, on either side, is not compared.
    """
    found = hash_layers(layers)
    return next((index for index in sorted(found) if digests.get(index, found[index]) != found[index]), None)


def hash_layer(layer: nn.Module) -> str:
    """Return a SHA-256 of a layer's weights, rounded to bfloat16, so that loading in bfloat16 does not change it.

    Loading in float16 changes it, because numbers are rounded twice. The digest of a layer whose weights `convert`
    quantized is that of the layer it was made from.
    """
    known: str | None = vars(layer).get(SOURCE_HASH)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name, parameter in sorted(layer.named_parameters()):
        flat = parameter.detach().reshape(-1)
        chosen = flat[torch.arange(min(_SAMPLED, flat.numel())) * flat.numel() // min(_SAMPLED, flat.numel())]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(chosen.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
