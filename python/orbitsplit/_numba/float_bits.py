"""Conversions between float32, float16 and bfloat16 by their bits; the counterpart of float_bits.hpp.

NumPy's own casts would do but for NaN payloads, which depend on the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Shorts = npt.NDArray[np.uint16]
    Singles = npt.NDArray[np.float32]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)


def singles_from_bf16(bits: Shorts) -> Singles:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_from_singles(values: Singles) -> Shorts:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where((bits & _MAGNITUDE) > _INFINITY, quiet, rounded).astype(np.uint16)


def singles_from_halves(halves: Shorts) -> Singles:
    sign = (halves.astype(np.uint32) & 0x8000) << 16
    shifted = (halves.astype(np.uint32) & 0x7FFF) << 13
    small = (shifted + 0x38800000).view(np.float32) - np.float32(2.0**-14)
    bits = np.where(shifted < 0x00800000, small.view(np.uint32), shifted + 0x38000000)
    bits = np.where(shifted >= 0x0F800000, shifted + 0x70000000, bits)
    singles: Singles = (bits | sign).view(np.float32)
    return singles


def halves_from_singles(values: Singles) -> Shorts:
    bits = values.view(np.uint32)
    size = bits & _MAGNITUDE
    normal = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13
    with np.errstate(invalid="ignore"):
        small = (size.view(np.float32) + np.float32(0.5)).view(np.uint32) - 0x3F000000
    special = np.where(size > _INFINITY, 0x7E00 | ((size >> 13) & 0x3FF), 0x7C00)
    half = np.where(size < 0x38800000, small, normal)
    half = np.where(size >= 0x47800000, special, half)
    halves: Shorts = (half | ((bits >> 16) & 0x8000)).astype(np.uint16)
    return halves
