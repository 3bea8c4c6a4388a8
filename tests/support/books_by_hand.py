"""Codebooks written by hand, where only names, bits and losses count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

import orbitsplit as osp


def book_by_hand(
    levels: Mapping[int, Sequence[tuple[str, float, float]]],
    *,
    layers: int,
    width: int,
    drop_per_loss: float = 0.5,
    step: float = 0.25,
    layer_hashes: Sequence[str] | None = None,
    has_matrix: bool = False,
) -> osp.Codebook:
    """Return a book with these levels at each cut: (name, bits per element, loss); of no model unless hashes say so."""
    tensors = {"step": np.full(width, step, np.float32)}
    if has_matrix:
        tensors["matrix"] = np.eye(width, dtype=np.float32)
    entries = {
        cut: [
            osp.CodebookEntry(
                level=osp.CodebookLevel(
                    name=name,
                    bits_per_element=bits,
                    loss=loss,
                    loss_error=0.0,
                    encode_s_per_byte=0.0,
                    decode_s_per_byte=0.0,
                ),
                arrays={name: name for name in tensors},
            )
            for name, bits, loss in found
        ]
        for cut, found in levels.items()
    }
    model = osp.CalibratedModel(
        name="toy",
        architecture="ToyForCausalLM",
        layers=layers,
        width=width,
        layer_hashes=tuple(layer_hashes or (f"hash {k}" for k in range(layers))),
    )
    return osp.Codebook(
        model,
        entries,
        tensors,
        accuracy=osp.AccuracyCurve(drop_per_loss, 0.01, 5),
        provenance={},
    )
