"""Encode and decode many arrays of one shape, as in decode steps: checks and allocations are done once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from orbitsplit._backend import backend
from orbitsplit._io.dtypes import DTYPES, describe_array

from .arrays import as_tensor, dtype_number, is_torch_dtype, shape_of, view_bytes, view_frame
from .calibrated import CalibratedCodec, CodecOfLevel, check_codebook, prepared, select
from .codecs import ANY_BYTES, Codec, check_framework, check_threads, codec_arguments, frame_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .arrays import Array


class _Own(threading.local):
    """What a function makes, once for each thread: what lies in it is overwritten by no other thread."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.it = make()


class Encoder:
    """Encode arrays of one dtype and shape, one after the other, into the same memory.

    `codec` is what `compress` takes, `dtype` a NumPy or torch dtype or its name. The frames are those of
    `compress`; large arrays are encoded on up to `threads` threads (1 to 256). Threads may share an encoder: each of
    them has memory of its own, of `frame_bytes` bytes, which lasts as long as the thread.

    Raises `TypeError` for a dtype that cannot be encoded and for an argument of a wrong type, `ValueError` for an
    invalid codec, shape or number of threads, `MemoryError` where the frame does not fit into memory.

    >>> encoder = Encoder("int8", (1, 640), "float32")
    >>> len(encoder.encode(np.ones((1, 640), np.float32)))
    716
    """

    __slots__ = ("_dtype", "_own", "_shape")

    def __init__(
        self, codec: str | Codec | CalibratedCodec, shape: Sequence[int], dtype: Any, *, threads: int = 1
    ) -> None:
        check_threads(threads)
        self._dtype = dtype_number(dtype)
        self._shape = shape_of(shape)
        arguments: tuple[Any, ...]
        arguments = (prepared(codec, backend()),) if isinstance(codec, CalibratedCodec) else codec_arguments(codec)
        make = functools.partial(backend().Encoder, self._dtype, self._shape, *arguments, threads)
        try:
            self._own = _Own(make)
        except (MemoryError, OverflowError):
            size = frame_bytes(self._shape, dtype, codec)
            what = describe_array(self._dtype, self._shape)
            raise MemoryError(f"cannot allocate {size} bytes for a frame of {what}") from None

    def encode(self, x: Array) -> memoryview:
        """Encode an array and return a view of its frame, which the thread's next call overwrites.

        `bytes(view)` copies it. NumPy arrays and CPU tensors are read in place; with PyTorch before 2.10, a tensor
        takes some microseconds more.

        Raises what `compress` does, and `ValueError` for another dtype or shape than the encoder's.
        """
        frame: memoryview | None = self._own.it.encode(x)
        return self._encode_viewed(x) if frame is None else frame

    def _encode_viewed(self, x: Array) -> memoryview:
        data, dtype, shape = view_bytes(x)
        if (dtype, shape) != (self._dtype, self._shape):
            raise ValueError(f"x is {describe_array(dtype, shape)}, not {describe_array(self._dtype, self._shape)}")
        frame: memoryview = self._own.it.encode_bytes(data)
        return frame


class Decoder:
    """Decode frames of one dtype and shape, one after the other, into the same array.

    The array is a CPU torch tensor with `framework="torch"`, for a torch dtype and for bfloat16, which NumPy does not
    have, else a NumPy array. Frames may be of any codec and come from an untrusted sender; `codebook` has the codecs of
    calibrated frames. Large arrays are decoded on up to `threads` threads (1 to 256). Threads may share a decoder: each
    of them has an array of its own, kept as long as the thread lasts.

    Raises `TypeError` for a dtype that cannot be decoded, bfloat16 with `framework="numpy"` and an argument of a wrong
    type, `ValueError` for an invalid shape, framework or number of threads, `ImportError` if torch is needed and
    missing, `MemoryError` where the array does not fit into memory.

    >>> decoder = Decoder((1, 640), "float32")
    >>> decoder.decode(Encoder("bf16", (1, 640), "float32").encode(np.ones((1, 640), np.float32))).sum()
    np.float32(640.0)
    """

    __slots__ = ("_own",)

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        *,
        codebook: CalibratedCodec | CodecOfLevel | None = None,
        framework: Literal["numpy", "torch"] | None = None,
        threads: int = 1,
    ) -> None:
        check_threads(threads)
        check_framework(framework)
        number, extents = dtype_number(dtype), shape_of(shape)
        is_bfloat16 = DTYPES[number] == "bfloat16"
        if is_bfloat16 and framework == "numpy":
            raise TypeError('NumPy has no bfloat16: decode into a tensor with framework="torch"')
        backend().frame_bytes(number, extents, *codec_arguments("raw"))  # refuses a shape that no frame can have
        is_tensor = framework == "torch" or (framework is None and (is_bfloat16 or is_torch_dtype(dtype)))

        def make() -> tuple[Callable[[Buffer], None], Any]:
            memory = np.zeros(extents, np.int16 if is_bfloat16 else DTYPES[number])
            result: Any = as_tensor(memory, number, extents) if is_tensor else memory
            return _decode_function(codebook, number, extents, memory, threads), result

        self._own = _Own(make)

    def decode(self, frame: Buffer) -> Any:
        """Decode a frame and return the thread's array, the same one every time: its next call overwrites it.

        Raises `CorruptFrameError` for anything that is not a valid frame or needs another codebook, `ValueError` for
        one of another dtype or shape than the decoder's or not contiguous. The contents of the array are unspecified
        after a `CorruptFrameError`.
        """
        decode, result = self._own.it
        try:
            decode(frame if type(frame) is memoryview or type(frame) is bytes else view_frame(frame))
        except BufferError as error:
            raise ValueError("frame is not contiguous in memory; bytes(frame) makes a contiguous copy") from error
        return result


def _decode_function(
    codebook: CalibratedCodec | CodecOfLevel | None, dtype: int, shape: tuple[int, ...], memory: Any, threads: int
) -> Callable[[Buffer], None]:
    """Return a function that decodes a frame into the memory of an array."""
    core = backend()

    def decoder(codec: CalibratedCodec | None) -> Callable[[Buffer], None]:
        decode: Callable[[Buffer], None] = core.Decoder(
            dtype, shape, memory, None if codec is None else prepared(codec, core), threads
        ).decode
        return decode

    if codebook is None or isinstance(codebook, CalibratedCodec):
        return decoder(codebook)
    check_codebook(codebook)
    of_key: dict[tuple[int, int, int], Callable[[Buffer], None]] = {}

    def decode_by_key(frame: Buffer) -> None:
        key = core.codebook_key(frame, ANY_BYTES)
        if key not in of_key:
            of_key[key] = decoder(select(codebook, key))
        of_key[key](frame)

    return decode_by_key
