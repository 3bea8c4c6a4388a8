"""Encode activations into frames and decode them again.

A frame is self-describing bytes (docs/internals/frame_format.md); both backends write the same ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from orbitsplit._backend import backend
from orbitsplit._io.dtypes import DTYPES
from orbitsplit._io.validation import check_is_integer, check_number, check_range, check_string

from .arrays import as_tensor, dtype_number, shape_of, view_buffer, view_bytes, view_frame, view_writable
from .calibrated import CalibratedCodec, CodecOfLevel, prepared, select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .arrays import Array

# The ids of the fixed codecs in a frame; 6 is that of calibrated codecs.
_CODECS = {"raw": 0, "bf16": 1, "int8": 2, "int4": 3, "topk": 4, "lossless_bf16": 5}

_VALID = (
    "valid are raw, bf16, int8, int8:GROUP, int4, int4:GROUP, topk, topk:KEEP and lossless_bf16 "
    "(GROUP a multiple of 8 from 8 to 65536, KEEP in (0, 1])"
)
ANY_BYTES = (1 << 64) - 1  # no limit: nothing of the array's size is allocated
_DEFAULT_GROUP = 64
_DEFAULT_KEEP = 0.25


@dataclass(frozen=True)
class Codec:
    """A fixed codec: its name and its parameter.

    `group` is the number of adjacent elements of a row that share a scale (int8 and int4, default 64);
    `keep` the fraction of each row that is kept (topk, default 0.25). Both are None for the other codecs.

    Raises:
        TypeError: The name is no string, `group` no integer or `keep` no number.
        ValueError: There is no such codec, or it does not take the parameter or its value.

    >>> str(Codec.parse("int8:128"))
    'int8:128'
    """

    name: str
    group: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        check_string("the name of a codec", self.name)
        if self.group is not None:
            check_is_integer("group", self.group)
        if self.keep is not None:
            check_number("keep", self.keep)
        if self.name not in _CODECS:
            raise _unknown(self.name)
        if self.name in ("int8", "int4"):
            object.__setattr__(self, "group", _DEFAULT_GROUP if self.group is None else self.group)
        elif self.group is not None:
            raise ValueError(f"codec {self.name} has no group")
        if self.name == "topk":
            object.__setattr__(self, "keep", _DEFAULT_KEEP if self.keep is None else float(self.keep))
        elif self.keep is not None:
            raise ValueError(f"codec {self.name} has no keep")
        if self.group is not None and not (8 <= self.group <= 65536 and self.group % 8 == 0):
            raise ValueError(f"group is {self.group}, it must be a multiple of 8 from 8 to 65536")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep:g}, it must be in (0, 1]")

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Read "raw", "bf16", "lossless_bf16", "int8", "int8:128", "int4", "int4:32", "topk" or "topk:0.1".

        Raises `ValueError` that lists the valid forms, `TypeError` for what is no string.
        """
        check_string("codec", text)
        return _parse(text)

    def __str__(self) -> str:
        if self.group not in (None, _DEFAULT_GROUP):
            return f"{self.name}:{self.group}"
        if self.keep not in (None, _DEFAULT_KEEP):
            return f"{self.name}:{self.keep!r}"
        return self.name


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Codec:
    name, colon, number = text.partition(":")
    if not colon:
        return Codec(name)
    if name in ("int8", "int4") and re.fullmatch(r"[0-9]{1,18}", number):
        return Codec(name, group=int(number))
    if name == "topk" and re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", number):
        return Codec(name, keep=float(number))
    raise _unknown(text)


def _unknown(text: str) -> ValueError:
    return ValueError(f'codec "{text if len(text) <= 60 else text[:57] + "..."}" is unknown; {_VALID}')


@overload
def compress(x: Array, codec: str | Codec | CalibratedCodec = ..., *, out: None = ..., threads: int = ...) -> bytes: ...
@overload
def compress(
    x: Array, codec: str | Codec | CalibratedCodec = ..., *, out: Buffer, threads: int = ...
) -> memoryview: ...
def compress(
    x: Array, codec: str | Codec | CalibratedCodec = "int8", *, out: Buffer | None = None, threads: int = 1
) -> bytes | memoryview:
    """Encode an array into a frame.

    `x` is a C-contiguous NumPy array (float32, float16) or CPU torch tensor (float32, float16, bfloat16) of
    any shape up to 8 axes; it is read in place. Rows lie along the last axis; a calibrated codec takes rows of its
    width. `out` is writable, contiguous memory of at least `frame_bytes` bytes that does not overlap `x`: the frame is
    written to its beginning, and the result is a view of these bytes. For many arrays of one shape, `Encoder` is
    faster. Large arrays are encoded on up to `threads` threads (1 to 256; topk and lossless_bf16 use one); the frame
    does not depend on it.

    Raises `TypeError` for what is not such an array, codec, memory or number, `ValueError` for one that is not
    contiguous, for an invalid codec or number of threads, for an `out` that is too small, cannot be written or overlaps
    `x`, and for NaN or infinity in a codec that cannot keep them (all but raw, bf16 and lossless_bf16); the contents of
    `out` are unspecified after an error.

    >>> frame = compress(np.ones((4, 64), np.float32), codec="int8")
    >>> len(frame)
    320
    """
    check_threads(threads)
    data, dtype, shape = view_bytes(x)
    core, arguments = core_of(codec)
    if out is None:
        frame: bytes = core.encode(data, dtype, shape, *arguments, threads=threads)
        return frame
    memory = view_buffer(out)
    return memory[: core.encode_into(data, dtype, shape, *arguments, memory, threads=threads)]


def decompress(
    frame: Buffer,
    codebook: CalibratedCodec | CodecOfLevel | None = None,
    *,
    framework: Literal["numpy", "torch"] | None = None,
    max_bytes: int | None = None,
    out: Array | None = None,
    threads: int = 1,
) -> Any:
    """Decode a frame into an array of the original dtype and shape.

    The result is a NumPy array, for bfloat16 a CPU torch tensor (NumPy has no bfloat16); `framework` selects
    one or the other. `frame` is any contiguous bytes-like object; it is read in place and may come from an
    untrusted sender. At most `max_bytes` are allocated for the array; by default 16 MiB and 8192 bytes for each byte of
    the frame, and never more than 1 GiB, as topk stores nothing of a row beyond its last value. With `out`, an array or
    tensor of the frame's dtype and shape that does not overlap it, nothing is allocated: `out` is written and returned;
    its contents are unspecified after an error. `codebook` has the codecs of calibrated frames; other frames do not
    need it. For many frames of one shape, `Decoder` is faster. Large arrays are decoded on up to `threads` threads (1
    to 256).

    Raises `CorruptFrameError` for anything that is not a valid frame within the limit, also for one that needs
    another codebook, cut or level; `ValueError` for an `out` of another dtype or shape, that cannot be written or
    overlaps the frame, and for a `max_bytes` or number of threads out of range; `TypeError` for what is no codebook,
    for an argument of a wrong type and for a bfloat16 frame with `framework="numpy"`; `ImportError` if torch is needed
    and missing.

    >>> decompress(compress(np.arange(3, dtype=np.float32), codec="raw"))
    array([0., 1., 2.], dtype=float32)
    """
    check_framework(framework)
    check_threads(threads)
    if max_bytes is not None:
        check_range("max_bytes", max_bytes, 0, ANY_BYTES)
    view = view_frame(frame)
    codec = None if codebook is None else select(codebook, backend().codebook_key(view, ANY_BYTES))
    core = backend() if codec is None else prepared(codec, backend())
    if out is not None:
        memory, expected, extents = view_writable(out)
        core.decode_into(view, expected, extents, memory, threads=threads)
        return out
    dtype, shape, data = core.decode(view, max_bytes, threads=threads)
    if framework == "torch" or (framework is None and DTYPES[dtype] == "bfloat16"):
        return as_tensor(data, dtype, shape)
    if DTYPES[dtype] == "bfloat16":
        raise TypeError('NumPy has no bfloat16: decode this frame with framework="torch"')
    return data.view(DTYPES[dtype]).reshape(shape)


def frame_bytes(shape: Sequence[int], dtype: Any, codec: str | Codec | CalibratedCodec = "int8") -> int:
    """Return the size in bytes of the frame of an array of a shape and dtype.

    `dtype` is a NumPy or torch dtype or its name. For topk, lossless_bf16 and calibrated codecs the size is an upper
    bound, else exact.

    Raises:
        TypeError: The shape is no sequence of integers, or the dtype or codec is none.
        ValueError: The codec is invalid, the shape has more than 8 axes, a negative extent or 2^63 bytes or more, or
            its rows have another width than the calibrated codec.

    >>> frame_bytes((4, 64), "float32", "int8")
    320
    """
    extents = shape_of(shape)
    core, arguments = core_of(codec)
    size: int = core.frame_bytes(dtype_number(dtype), extents, *arguments)
    return size


def check_threads(threads: int) -> None:
    """Raise `TypeError` or `ValueError` for what is no number of threads."""
    if type(threads) is not int or not 1 <= threads <= 256:
        check_range("threads", threads, 1, 256)


def check_framework(framework: str | None) -> None:
    """Raise `TypeError` or `ValueError` for what names no framework of arrays."""
    if framework is None:
        return
    check_string("framework", framework)
    if framework not in ("numpy", "torch"):
        raise ValueError(f'framework is "{framework}"; valid are numpy and torch')


def core_of(codec: str | Codec | CalibratedCodec) -> tuple[Any, tuple[Any, ...]]:
    """Return what has the core's functions for a codec, and the arguments that describe the codec to them."""
    if isinstance(codec, CalibratedCodec):
        return prepared(codec, backend()), ()
    return backend(), codec_arguments(codec)


def codec_arguments(codec: str | Codec) -> tuple[int, int, float]:
    """Return a fixed codec as the core takes it: its number, group and keep."""
    chosen = _parse(codec) if isinstance(codec, str) else codec
    if not isinstance(chosen, Codec):
        raise TypeError(f"codec is of type {type(codec).__name__}, it must be a name, a Codec or a CalibratedCodec")
    return _CODECS[chosen.name], chosen.group or _DEFAULT_GROUP, chosen.keep or _DEFAULT_KEEP
