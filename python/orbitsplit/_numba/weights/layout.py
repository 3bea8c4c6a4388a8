"""Where the numbers of a quantised row are; the counterpart of layout.hpp."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitsplit._numba.float_bits import singles_from_halves

if TYPE_CHECKING:
    Bytes: TypeAlias = npt.NDArray[np.uint8]
    Codes: TypeAlias = npt.NDArray[np.int16]
    Singles: TypeAlias = npt.NDArray[np.float32]

INT8, INT4, INT5 = 0, 1, 2
GROUP = 32
INT8_GROUP_BYTES = 2 + GROUP
HALF_BYTES = GROUP // 2
# Of a group, by format: the lower four bits of each code, then their fifth bits.
CODE_BYTES = {INT4: HALF_BYTES, INT5: HALF_BYTES + GROUP // 8}
_SCALES_AT = 8


def row_bytes(format: int, groups: int) -> int:
    """Return the bytes of one row."""
    return groups * INT8_GROUP_BYTES if format == INT8 else _SCALES_AT + groups * (2 + CODE_BYTES[format])


def int8_parts(data: Bytes) -> tuple[Singles, Codes]:
    """Return scales [rows, groups] and codes [rows, groups, 32] of rows of bytes."""
    blocks = data.reshape(data.shape[0], data.shape[1] // INT8_GROUP_BYTES, INT8_GROUP_BYTES)
    scales = singles_from_halves(np.ascontiguousarray(blocks[..., :2]).view("<u2")[..., 0])
    return scales, blocks[..., 2:].view(np.int8).astype(np.int16)


def parts_with_minima(format: int, data: Bytes) -> tuple[Singles, Singles, Singles, Codes]:
    """Return both units [rows, 2], scales and minima in units [rows, groups], and codes [rows, groups, 32]."""
    groups = (data.shape[1] - _SCALES_AT) // (2 + CODE_BYTES[format])
    units = np.ascontiguousarray(data[:, :_SCALES_AT]).view("<f4")
    scales, minima = data[:, _SCALES_AT : _SCALES_AT + 2 * groups].reshape(data.shape[0], 2, groups).swapaxes(0, 1)
    stored = data[:, _SCALES_AT + 2 * groups :].reshape(data.shape[0], groups, CODE_BYTES[format])
    both = stored[..., :HALF_BYTES]
    codes = np.concatenate([both & 15, both >> 4], axis=2).astype(np.int16)
    if format == INT5:
        codes |= np.unpackbits(stored[..., HALF_BYTES:], axis=2, bitorder="little").astype(np.int16) << 4
    return units, scales.astype(np.float32), minima.astype(np.float32), codes
