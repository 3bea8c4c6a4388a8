"""Encode activations into frames and decode them again.

A frame is self-describing bytes (docs/frame_format.md); both backends write the same ones.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ._backend import backend

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

    Array: TypeAlias = npt.NDArray[Any] | torch.Tensor

# Index = the number of the codec, of the dtype in a frame.
_CODECS = ("raw", "bf16", "int8", "int4", "topk")
_DTYPES = ("float32", "float16", "bfloat16")

_VALID = (
    "valid are raw, bf16, int8, int8:GROUP, int4, int4:GROUP, topk and topk:KEEP "
    "(GROUP a multiple of 8 from 8 to 65536, KEEP in (0, 1])"
)
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
        """Read "raw", "bf16", "int8", "int8:128", "int4", "int4:32", "topk" or "topk:0.1".

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


def compress(x: Array, codec: str | Codec = "int8") -> bytes:
    """Encode an array into a frame.

    `x` is a C-contiguous NumPy array (float32, float16) or CPU torch tensor (float32, float16, bfloat16) of
    any shape up to 8 axes; it is read in place. The rows that codecs speak of run along the last axis.

    Raises `TypeError` for what is not such an array, `ValueError` for one that is not contiguous, for an
    invalid codec, and for NaN or infinity in a codec that cannot keep them (all but raw and bf16).

    >>> frame = compress(np.ones((4, 64), np.float32), codec="int8")
    >>> len(frame)
    320
    """
    chosen = _parse(codec) if isinstance(codec, str) else codec
    data, dtype, shape = _view_bytes(x)
    frame: bytes = backend().encode(data, dtype, shape, *_codec_arguments(chosen))
    return frame


def decompress(frame: Buffer, *, framework: Literal["numpy", "torch"] | None = None, max_bytes: int = 1 << 30) -> Any:
    """Decode a frame into an array of the original dtype and shape.

    The result is a NumPy array, for bfloat16 a CPU torch tensor (NumPy has no bfloat16); `framework` asks for
    one or the other. `frame` is any contiguous bytes-like object; it is read in place and may come from an
    untrusted sender. At most `max_bytes` are allocated for the array.

    Raises `CorruptFrameError` for anything that is not a valid frame within the limit, `TypeError` for a
    bfloat16 frame with `framework="numpy"`, `ImportError` if torch is needed and missing.

    >>> decompress(compress(np.arange(3, dtype=np.float32), codec="raw"))
    array([0., 1., 2.], dtype=float32)
    """
    if framework not in (None, "numpy", "torch"):
        raise ValueError(f'framework is "{framework}"; valid are numpy and torch')
    view = memoryview(frame)
    if not view.c_contiguous:
        raise ValueError("frame is not contiguous in memory; bytes(frame) makes a contiguous copy")
    dtype, shape, data = backend().decode(view, max_bytes)
    if framework == "torch" or (framework is None and _DTYPES[dtype] == "bfloat16"):
        return _as_tensor(data, dtype, shape)
    if _DTYPES[dtype] == "bfloat16":
        raise TypeError('NumPy has no bfloat16: decode this frame with framework="torch"')
    return data.view(_DTYPES[dtype]).reshape(shape)


def frame_bytes(shape: Sequence[int], dtype: Any, codec: str | Codec = "int8") -> int:
    """Return the size in bytes of the frame of an array, without one.

    `dtype` is a NumPy or torch dtype or its name. Exact, except for topk, where it is an upper bound.

    >>> frame_bytes((4, 64), "float32", "int8")
    320
    """
    chosen = _parse(codec) if isinstance(codec, str) else codec
    size: int = backend().frame_bytes(_dtype_number(dtype), tuple(shape), *_codec_arguments(chosen))
    return size


def _codec_arguments(codec: Codec) -> tuple[int, int, float]:
    return _CODECS.index(codec.name), codec.group or _DEFAULT_GROUP, codec.keep or _DEFAULT_KEEP


@functools.lru_cache(maxsize=64)
def _dtype_number(dtype: Any) -> int:
    name = str(dtype).removeprefix("torch.") if _is_torch_dtype(dtype) else _numpy_dtype_name(dtype)
    if name not in _DTYPES:
        raise TypeError(f"cannot compress {name}: supported are {', '.join(_DTYPES)}")
    return _DTYPES.index(name)


def _is_torch_dtype(dtype: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dtype, torch.dtype)


def _numpy_dtype_name(dtype: Any) -> str:
    if isinstance(dtype, str) and dtype == "bfloat16":
        return dtype
    native = np.dtype(dtype)
    return native.name if native.isnative else f"byte-swapped {native.name}"


def _view_bytes(x: Array) -> tuple[npt.NDArray[Any], int, tuple[int, ...]]:
    """Return the memory of an array as NumPy sees it, its dtype number and its shape."""
    if isinstance(x, np.ndarray):
        if not x.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous; np.ascontiguousarray(x) makes a contiguous copy")
        return x, _dtype_number(x.dtype), x.shape
    # A tensor can only come from a torch that is already imported; importing it here would cost NumPy users
    # seconds.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        raise TypeError(f"cannot compress {type(x).__name__}: give a NumPy array or a CPU torch tensor")
    if x.device.type != "cpu":
        raise TypeError(f"the tensor is on {x.device}; x.cpu() copies it to memory that can be read")
    if x.layout != torch.strided:
        raise TypeError(f"cannot compress a tensor of layout {x.layout}: give a dense one")
    if not x.is_contiguous():
        raise ValueError("the tensor is not contiguous; x.contiguous() makes a contiguous copy")
    dtype = _dtype_number(x.dtype)
    values = x.detach()
    data = values.view(torch.int16).numpy() if _DTYPES[dtype] == "bfloat16" else values.numpy()
    return data, dtype, tuple(x.shape)


def _as_tensor(data: npt.NDArray[np.uint8], dtype: int, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f'decoding {_DTYPES[dtype]} into a tensor needs torch: pip install "orbitsplit[models]"'
        ) from error
    if _DTYPES[dtype] == "bfloat16":
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).reshape(shape)
    return torch.from_numpy(data.view(_DTYPES[dtype])).reshape(shape)
