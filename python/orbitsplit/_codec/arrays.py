"""Arrays and tensors as the memory that codecs read and write; torch is imported only to return a tensor."""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitsplit._io.dtypes import DTYPES
from orbitsplit._io.validation import check_is_integer, quoted

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = npt.NDArray[Any] | torch.Tensor


# Frames and both frameworks count in 64 bits.
_LARGEST_EXTENT = 2**63 - 1


def dtype_number(dtype: Any) -> int:
    """Return the number of a NumPy or torch dtype or its name.

    Raises `TypeError` for one that frames do not have.
    """
    try:
        return _number_of(dtype)
    except TypeError as error:
        if isinstance(dtype, Hashable):
            raise
        raise TypeError(f"cannot compress {quoted(dtype)}: supported are {', '.join(DTYPES)}") from error


@functools.lru_cache(maxsize=64)
def _number_of(dtype: Any) -> int:
    name = str(dtype).removeprefix("torch.") if is_torch_dtype(dtype) else _numpy_dtype_name(dtype)
    if name not in DTYPES:
        raise TypeError(f"cannot compress {name}: supported are {', '.join(DTYPES)}")
    return DTYPES.index(name)


def shape_of(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of Python's integers.

    Raises `TypeError` for what is no sequence of integers, `ValueError` for integers that no array has.
    """
    if isinstance(shape, (str, bytes, bytearray, Mapping, Set)) or not isinstance(shape, Iterable):
        raise TypeError(f"shape is {quoted(shape)}, must be a sequence of integers")
    extents = tuple(shape)
    for axis, extent in enumerate(extents):
        if type(extent) is not int:
            check_is_integer(f"shape[{axis}]", extent)
    if not all(0 <= extent <= _LARGEST_EXTENT for extent in extents):
        raise ValueError("shape has a negative extent or 2^63 bytes or more")
    return tuple(map(int, extents))  # NumPy's overflow


def is_torch_dtype(dtype: Any) -> bool:
    """Return whether a dtype is one of torch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(dtype, torch.dtype)


def _numpy_dtype_name(dtype: Any) -> str:
    if isinstance(dtype, str) and dtype == "bfloat16":
        return dtype
    try:
        native = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"cannot compress {quoted(dtype)}: supported are {', '.join(DTYPES)}") from None
    return native.name if native.isnative else f"byte-swapped {native.name}"


def view_bytes(x: Array) -> tuple[npt.NDArray[Any], int, tuple[int, ...]]:
    """Return the memory of an array as NumPy sees it, its dtype number and its shape.

    Raises `TypeError` for what is not an array or has a mask, `ValueError` for one that is not contiguous.
    """
    if isinstance(x, np.ndarray):
        check_unmasked("the array", x)
        if not x.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous; np.ascontiguousarray(x) makes a contiguous copy")
        return x, dtype_number(x.dtype), x.shape
    # A tensor implies that torch is imported already; importing it here would cost users of NumPy seconds.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        raise TypeError(f"cannot compress {type(x).__name__}: give a NumPy array or a CPU torch tensor")
    if x.device.type != "cpu":
        raise TypeError(f"the tensor is on {x.device}; x.cpu() copies it to memory that can be read")
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"a tensor of layout {x.layout}"
        raise TypeError(f"cannot compress {kind}: give a dense one")
    if x.is_neg():
        raise ValueError("the tensor has its negative bit set; x.resolve_neg() makes a copy with the values themselves")
    if not x.is_contiguous():
        raise ValueError("the tensor is not contiguous; x.contiguous() makes a contiguous copy")
    dtype = dtype_number(x.dtype)
    values = x.detach() if x.requires_grad else x
    try:
        data = values.view(torch.int16).numpy() if DTYPES[dtype] == "bfloat16" else values.numpy()
    except RuntimeError as error:  # such as a tensor that is traced
        raise TypeError(f"the memory of the tensor cannot be read: {error}") from error
    return data, dtype, tuple(x.shape)


def check_unmasked(name: str, x: Any) -> None:
    """Raise `TypeError` for a masked array, whose mask a frame would lose; `name` begins the message."""
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
        hint = "x.filled(0) makes an array without one, x.data ignores it"
        raise TypeError(f"{name} is masked, and a frame has no mask; {hint}")


def view_frame(frame: Any) -> memoryview:
    """Return a view of a frame. Raises `TypeError` for what is no memory, `ValueError` if it is not contiguous."""
    check_unmasked("frame", frame)
    try:
        view = memoryview(frame)
    except TypeError:
        hint = ", such as frame.numpy()" if hasattr(frame, "numpy") else ""
        raise TypeError(f"frame: a bytes-like object is required, not '{type(frame).__name__}'{hint}") from None
    except BufferError as error:
        raise ValueError(f"frame cannot be read as bytes: {error}") from error
    if "O" in view.format:
        raise TypeError("frame holds Python objects, it must hold bytes")
    if not view.c_contiguous:
        raise ValueError("frame is not contiguous in memory; bytes(frame) makes a contiguous copy")
    return view


def view_buffer(out: Any) -> memoryview:
    """Return a view of the bytes of memory that a frame is written into.

    Raises `TypeError` for what is no memory, `ValueError` for memory that is read-only or not contiguous.
    """
    check_unmasked("out", out)
    try:
        memory = memoryview(out)
    except TypeError:
        raise TypeError(
            f"out is a {type(out).__name__}, it must be a bytearray, a NumPy array or other writable memory"
        ) from None
    except BufferError as error:
        raise ValueError(f"out cannot be written as bytes: {error}") from error
    if "O" in memory.format:
        raise TypeError("out holds Python objects, which bytes must not replace")
    if memory.readonly:
        raise ValueError("out is read-only")
    if not memory.c_contiguous:
        raise ValueError("out is not contiguous in memory")
    # An empty view with several axes cannot be cast.
    return memory.cast("B") if memory.nbytes else memoryview(bytearray())


def as_tensor(data: npt.NDArray[Any], dtype: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return memory as a tensor that shares it.

    Raises `ImportError` if torch is missing.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f'decoding {DTYPES[dtype]} into a tensor needs torch: pip install "orbitsplit[models]"'
        ) from error
    if DTYPES[dtype] == "bfloat16":
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).reshape(shape)
    return torch.from_numpy(data.view(DTYPES[dtype])).reshape(shape)


def view_writable(out: Array) -> tuple[npt.NDArray[Any], int, tuple[int, ...]]:
    """Return what `view_bytes` does for an array that will be written.

    Raises `ValueError` also for an array that cannot be written.
    """
    torch = sys.modules.get("torch")
    if not isinstance(out, np.ndarray) and (torch is None or not isinstance(out, torch.Tensor)):
        raise TypeError(f"out is a {type(out).__name__}, it must be a NumPy array or a CPU torch tensor")
    check_unmasked("out", out)
    data, dtype, shape = view_bytes(out)
    if not isinstance(out, np.ndarray) and out.requires_grad:
        raise ValueError("out requires grad, and autograd would not see that its values change")
    if not data.flags.writeable:
        raise ValueError("out is read-only")
    return data, dtype, shape
