"""Arrays and tensors as the memory that codecs read and write; torch is imported only to return a tensor."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitsplit._io.dtypes import DTYPES
from orbitsplit._io.validation import check_is_integer

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = npt.NDArray[Any] | torch.Tensor


@functools.lru_cache(maxsize=64)
def dtype_number(dtype: Any) -> int:
    """Return the number of a NumPy or torch dtype or its name.

    Raises `TypeError` for one that frames do not have.
    """
    name = str(dtype).removeprefix("torch.") if is_torch_dtype(dtype) else _numpy_dtype_name(dtype)
    if name not in DTYPES:
        raise TypeError(f"cannot compress {name}: supported are {', '.join(DTYPES)}")
    return DTYPES.index(name)


def shape_of(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of Python's integers. Raises `TypeError` for what is no sequence of integers."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f"shape is {shape!r}, must be a sequence of integers")
    extents = tuple(shape)
    for axis, extent in enumerate(extents):
        if type(extent) is not int:
            check_is_integer(f"shape[{axis}]", extent)
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
        raise TypeError(f"cannot compress {dtype!r}: supported are {', '.join(DTYPES)}") from None
    return native.name if native.isnative else f"byte-swapped {native.name}"


def view_bytes(x: Array) -> tuple[npt.NDArray[Any], int, tuple[int, ...]]:
    """Return the memory of an array as NumPy sees it, its dtype number and its shape.

    Raises `TypeError` for what is not an array, `ValueError` for one that is not contiguous.
    """
    if isinstance(x, np.ndarray):
        if not x.flags.c_contiguous:
            raise ValueError("the array is not C-contiguous; np.ascontiguousarray(x) makes a contiguous copy")
        return x, dtype_number(x.dtype), x.shape
    # A tensor implies that torch is imported already; importing it here would cost users of NumPy seconds.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        raise TypeError(f"cannot compress {type(x).__name__}: give a NumPy array or a CPU torch tensor")
    if x.device.type != "cpu":
        raise TypeError(f"the tensor is on {x.device}; x.cpu() copies it to memory that can be read")
    if x.layout != torch.strided:
        raise TypeError(f"cannot compress a tensor of layout {x.layout}: give a dense one")
    if not x.is_contiguous():
        raise ValueError("the tensor is not contiguous; x.contiguous() makes a contiguous copy")
    dtype = dtype_number(x.dtype)
    values = x.detach() if x.requires_grad else x
    data = values.view(torch.int16).numpy() if DTYPES[dtype] == "bfloat16" else values.numpy()
    return data, dtype, tuple(x.shape)


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
    data, dtype, shape = view_bytes(out)
    if not isinstance(out, np.ndarray) and out.requires_grad:
        raise ValueError("out requires grad, and autograd would not see that its values change")
    if not data.flags.writeable:
        raise ValueError("out is read-only")
    return data, dtype, shape
