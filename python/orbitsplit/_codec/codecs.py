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

from .arrays import as_tensor, dtype_number, view_bytes, view_writable
from .calibrated import CalibratedCodec, CodecOfLevel, select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .arrays import Array

# Index = the number of the codec in a frame.
_CODECS = ("raw", "bf16", "int8", "int4", "topk", "lossless_bf16")

_VALID = (
    "valid are raw, bf16, int8, int8:GROUP, int4, int4:GROUP, topk, topk:KEEP and lossless_bf16 "
    "(GROUP a multiple of 8 from 8 to 65536, KEEP in (0, 1])"
)
ANY_BYTES = (1 << 64) - 1  # where nothing of the array's size is allocated
_DEFAULT_GROUP = 64
_DEFAULT_KEEP = 0.25


@dataclass(frozen=True)
class Codec:
    """Say how an activation is encoded: a name and what that codec can be told.

    `group` is the number of neighbouring elements of a row that share a scale (int8 and int4, default 64);
    `keep` the fraction of each row that is kept (topk, default 0.25). Both are None where they mean nothing.

    >>> str(Codec.parse("int8:128"))
    'int8:128'
    """

    name: str
    group: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _CODECS:
            raise ValueError(f'codec "{self.name}" is unknown; {_VALID}')
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

        Raises `ValueError` that lists the valid forms.
        """
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
    if name in ("int8", "int4") and re.fullmatch(r"[0-9]+", number):
        return Codec(name, group=int(number))
    if name == "topk" and re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", number):
        return Codec(name, keep=float(number))
    raise ValueError(f'codec "{text}" is unknown; {_VALID}')


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
    any shape up to 8 axes; it is read in place. The rows that codecs speak of run along the last axis; a calibrated
    codec takes rows of its width. `out` is writable, contiguous memory of at least `frame_bytes` bytes apart from `x`:
    the frame is written to its beginning, and the result is a view of these bytes. `Encoder` saves time where many
    arrays are alike. Large arrays are encoded on up to `threads` threads (1 to 256; topk and
    lossless_bf16 use one); the frame does not depend on it.

    Raises `TypeError` for what is not such an array, codec or memory, `ValueError` for one that is not contiguous, for
    an invalid codec, for an `out` that is too small or cannot be written, and for NaN or infinity in a codec that
    cannot keep them (all but raw, bf16 and lossless_bf16); `out` then holds anything.

    >>> frame = compress(np.ones((4, 64), np.float32), codec="int8")
    >>> len(frame)
    320
    """
    data, dtype, shape = view_bytes(x)
    core, arguments = core_of(codec)
    if out is None:
        frame: bytes = core.encode(data, dtype, shape, *arguments, threads=threads)
        return frame
    memory = _view_out(out)
    return memory[: core.encode_into(data, dtype, shape, *arguments, memory, threads=threads)]


def decompress(
    frame: Buffer,
    codebook: CalibratedCodec | CodecOfLevel | None = None,
    *,
    framework: Literal["numpy", "torch"] | None = None,
    max_bytes: int = 1 << 30,
    out: Array | None = None,
    threads: int = 1,
) -> Any:
    """Decode a frame into an array of the original dtype and shape.

    The result is a NumPy array, for bfloat16 a CPU torch tensor (NumPy has no bfloat16); `framework` asks for
    one or the other. `frame` is any contiguous bytes-like object; it is read in place and may come from an
    untrusted sender. At most `max_bytes` are allocated for the array. With `out`, an array or tensor of the
    frame's dtype and shape, nothing is: it is written and returned, and after an error holds anything.
    `codebook` has the codecs of calibrated frames; others do not need it. `Decoder` saves time where many
    frames are alike. Large arrays are decoded on up to `threads` threads (1 to 256).

    Raises `CorruptFrameError` for anything that is not a valid frame within the limit, also for one that needs
    another codebook, cut or level; `ValueError` for an `out` of another dtype or shape or that cannot be written, or a
    negative `max_bytes`; `TypeError` for what is no codebook or a bfloat16 frame with `framework="numpy"`;
    `ImportError` if torch is needed and missing.

    >>> decompress(compress(np.arange(3, dtype=np.float32), codec="raw"))
    array([0., 1., 2.], dtype=float32)
    """
    if framework not in (None, "numpy", "torch"):
        raise ValueError(f'framework is "{framework}"; valid are numpy and torch')
    if not 0 <= max_bytes <= ANY_BYTES:
        raise ValueError(f"max_bytes is {max_bytes}, it must be from 0 to {ANY_BYTES}")
    view = memoryview(frame)
    if not view.c_contiguous:
        raise ValueError("frame is not contiguous in memory; bytes(frame) makes a contiguous copy")
    codec = None if codebook is None else select(codebook, backend().codebook_key(view, ANY_BYTES))
    core = backend() if codec is None else codec.prepared(backend())
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
    """Return the size in bytes of the frame of an array, without one.

    `dtype` is a NumPy or torch dtype or its name. For topk, lossless_bf16 and calibrated codecs it is an upper
    bound, else exact.

    >>> frame_bytes((4, 64), "float32", "int8")
    320
    """
    core, arguments = core_of(codec)
    size: int = core.frame_bytes(dtype_number(dtype), tuple(shape), *arguments)
    return size


def core_of(codec: str | Codec | CalibratedCodec) -> tuple[Any, tuple[Any, ...]]:
    """Return what has the functions of the core for a codec, and what they are told of it."""
    if isinstance(codec, CalibratedCodec):
        return codec.prepared(backend()), ()
    return backend(), codec_arguments(codec)


def codec_arguments(codec: str | Codec) -> tuple[int, int, float]:
    """Return a codec as the core takes it."""
    chosen = _parse(codec) if isinstance(codec, str) else codec
    if not isinstance(chosen, Codec):
        raise TypeError(f"codec is of type {type(codec).__name__}, it must be a name, a Codec or a CalibratedCodec")
    return _CODECS.index(chosen.name), chosen.group or _DEFAULT_GROUP, chosen.keep or _DEFAULT_KEEP


def _view_out(out: Buffer) -> memoryview:
    try:
        memory = memoryview(out)
    except TypeError:
        raise TypeError(
            f"out is a {type(out).__name__}, it must be a bytearray, a NumPy array or other writable memory"
        ) from None
    if memory.readonly:
        raise ValueError("out is read-only")
    if not memory.c_contiguous:
        raise ValueError("out is not contiguous in memory")
    # An empty view with several axes cannot be cast.
    return memory.cast("B") if memory.nbytes else memoryview(bytearray())
