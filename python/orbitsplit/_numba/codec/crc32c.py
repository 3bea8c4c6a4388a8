"""CRC-32C (Castagnoli) in Numba; the counterpart of crc32c.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orbitsplit._numba.jit import jit

if TYPE_CHECKING:
    Bytes = npt.NDArray[np.uint8]


def _make_tables() -> npt.NDArray[np.int64]:
    """Return tables[k, b]: the checksum of byte b followed by k zero bytes ("slicing by 8")."""
    tables = np.empty((8, 256), np.int64)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        tables[0, byte] = crc
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0, tables[k - 1] & 0xFF]
    return tables


_TABLES = _make_tables()


@jit
def extend_crc32c(data: Bytes, before: int) -> int:
    """Return the checksum of bytes that follow others, whose checksum is `before` (0: none)."""
    # Signed 64-bit numbers throughout: mixed with unsigned ones Numba would convert to float64.
    crc = before ^ 0xFFFFFFFF
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        for k in range(4):
            crc ^= np.int64(data[i + k]) << (8 * k)
        following = np.int64(0)
        for k in range(4):
            following ^= _TABLES[7 - k, (crc >> (8 * k)) & 0xFF] ^ _TABLES[3 - k, data[i + 4 + k]]
        crc = following
    for i in range(whole, len(data)):
        crc = (crc >> 8) ^ _TABLES[0, (crc ^ np.int64(data[i])) & 0xFF]
    return crc ^ 0xFFFFFFFF
