"""Encoder and Decoder with the functions of the C++ extension's; the counterpart of bind_encoder.cpp.

They keep memory between calls as its do, save no time and use one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .calibrated import CalibratedCodec
from .codec import decode_into, encode_into, frame_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer


class Encoder:
    """Encode arrays of one dtype and shape into memory of its own."""

    def __init__(self, dtype: int, shape: Sequence[int], codec: int | CalibratedCodec, *options: Any) -> None:
        options = options[:-1]  # but the threads
        if isinstance(codec, CalibratedCodec):
            self._encode_into: Callable[..., int] = codec.encode_into
            self._arguments: tuple[Any, ...] = (dtype, shape)
            bound = codec.frame_bytes(dtype, shape)
        else:
            self._encode_into = encode_into
            self._arguments = (dtype, shape, codec, *options)
            bound = frame_bytes(dtype, shape, codec, *options)
        self._frame = memoryview(bytearray(bound))

    def encode(self, x: Any) -> memoryview | None:
        """Return None: nothing is read here but buffers."""
        return None

    def encode_bytes(self, data: Buffer) -> memoryview:
        """Encode the bytes of an array."""
        return self._frame[: self._encode_into(data, *self._arguments, self._frame)]


class Decoder:
    """Decode frames of one dtype and shape into one array."""

    def __init__(
        self, dtype: int, shape: Sequence[int], array: Buffer, codec: CalibratedCodec | None, threads: int
    ) -> None:
        self._decode_into = decode_into if codec is None else codec.decode_into
        self._dtype = dtype
        self._shape = shape
        self._array = array

    def decode(self, frame: Buffer) -> None:
        """Decode a frame into the array."""
        self._decode_into(frame, self._dtype, self._shape, self._array)
