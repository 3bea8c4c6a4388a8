"""Encoder and Decoder with the functions of the C++ extension's; the counterpart of bind_encoder.cpp.

They keep memory between calls as its do, and save no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._codec import decode_into, encode_into, frame_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer


class Encoder:
    """Encode arrays of one dtype and shape into memory of its own."""

    def __init__(self, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> None:
        self._arguments = (dtype, shape, codec, group, keep)
        self._frame = memoryview(bytearray(frame_bytes(*self._arguments)))

    def encode(self, x: Any) -> memoryview | None:
        """Return None: nothing is read here but buffers."""
        return None

    def encode_bytes(self, data: Buffer) -> memoryview:
        """Encode the bytes of an array."""
        return self._frame[: encode_into(data, *self._arguments, self._frame)]


class Decoder:
    """Decode frames of one dtype and shape into one array."""

    def __init__(self, dtype: int, shape: Sequence[int], array: Buffer) -> None:
        self._dtype = dtype
        self._shape = shape
        self._array = array

    def decode(self, frame: Buffer) -> None:
        """Decode a frame into the array."""
        decode_into(frame, self._dtype, self._shape, self._array)
