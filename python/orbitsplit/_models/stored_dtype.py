"""Weights in another dtype than they are stored in: converted one piece at a time, where a file is mapped."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file

from orbitsplit._io.dtypes import SAFETENSORS_DTYPES

# The size of pieces in which weights are converted, resident twice at a time.
_PIECE_BYTES = 8 << 20
_DTYPES = {stored: getattr(torch, name) for stored, name in SAFETENSORS_DTYPES.items()}
_MADV_DONTNEED = 4
_WANTED = "_orbitsplit_wanted_dtypes"


def stored_dtype(model: str | Path, config: PreTrainedConfig) -> torch.dtype | None:
    """Return the dtype of all weights of a model directory or hub id, None if they have several or none is known."""
    if sys.platform != "linux" or getattr(config, "quantization_config", None) is not None:
        return None
    try:
        folder = Path(cached_file(str(model), "config.json", local_files_only=True)).parent
    except OSError:
        return None
    names = {name for file in folder.glob("*.safetensors") for name in _dtypes_of(file)}
    names = {name for name in names if not name.startswith(("I", "U", "BOOL"))}  # buffers of positions
    return _DTYPES.get(names.pop()) if len(names) == 1 else None


def _dtypes_of(file: Path) -> set[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:  # the loader reports what is wrong with it
        return {"damaged"}


def keep_stored(model: PreTrainedModel, stored: torch.dtype | None) -> None:
    """Make the loader leave a model's parameters, still on the meta device, as they are stored.

    It would convert tensors whole, while the pages of the file that they came from stay resident until the last one is
    loaded: of a float32 file three times the weights in bfloat16. `convert_parameters` gives them the dtype that they
    have now. A model that keeps some weights in float32 whatever is asked for is left to transformers.
    """
    kept = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    if stored is None or any(getattr(model, name, None) for name in kept):
        return
    wanted: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta and parameter.dtype in _DTYPES.values() and parameter.dtype != stored:
            wanted[name] = parameter.dtype
            parameter.data = parameter.data.to(stored)
    setattr(model, _WANTED, wanted)


def convert_parameters(model: PreTrainedModel) -> None:
    """Give the parameters of a loaded model the dtype that they were to have, one piece at a time."""
    wanted: dict[str, torch.dtype] = vars(model).pop(_WANTED, {})
    if not wanted:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mapped = _mapped_ranges()
    for name, dtype in wanted.items():
        parameter = parameters[name]
        if parameter.dtype != dtype:  # not yet, as another name of a tied one
            parameter.data = _converted(parameter.data, dtype, mapped)


def _converted(stored: Tensor, dtype: torch.dtype, mapped: Iterable[range]) -> Tensor:
    address, size = stored.data_ptr(), stored.nbytes
    is_mapped = stored.is_contiguous() and any(address in part and address + size - 1 in part for part in mapped)
    if not is_mapped or stored.dim() == 0:
        return stored.to(dtype)
    converted = torch.empty_like(stored, dtype=dtype)
    rows = max(1, _PIECE_BYTES // max(1, math.prod(stored.shape[1:]) * stored.itemsize))
    for start in range(0, len(stored), rows):
        piece = stored[start : start + rows]
        converted[start : start + rows] = piece
        _forget_pages(piece.data_ptr(), piece.nbytes)
    _forget_pages(address, size)  # pages at the seams of the pieces
    return converted


def _mapped_ranges() -> list[range]:
    """Return the addresses at which this process maps files."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/"):
            start, stop = (int(part, 16) for part in addresses.split("-"))
            found.append(range(start, stop))
    return found


def _forget_pages(address: int, size: int) -> None:
    """Release the whole pages of a mapped file in a range; a later read loads them from the file again."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)
