"""The functions of the C++ extension in Python and Numba: slower, with the same plans and the same frames."""

from __future__ import annotations

from ._codec import decode, encode, frame_bytes
from ._frame import crc32c

__all__ = ["crc32c", "decode", "encode", "frame_bytes"]
