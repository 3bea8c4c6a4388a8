"""What can be wrong with the files of a model, found in their headers: without torch, and without reading weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orbitsplit._io.files import read_text
from orbitsplit._io.validation import quoted

from .gguf_header import check_gguf

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The limit of the safetensors library.
_LARGEST_HEADER = 100_000_000


def check_files(model: Path) -> None:
    """Check the headers of the files that a model is loaded from: that they are whole, and those that its index names.

    `model` is a directory or a `.gguf` file. A directory may have no weights at all: its configuration can be profiled.
    Raises `ValueError` of one line that names the file and the cause.
    """
    if model.is_file():
        _check_no_pointer(model)
        check_gguf(model)
        return
    for file in (*sorted(model.glob("*.json")), *sorted(model.glob("*.bin"))):
        _check_no_pointer(file)
    # In the order in which transformers looks for weights.
    if (model / "model.safetensors").is_file():
        _stored_tensors(model / "model.safetensors")
        return
    for index in _INDICES:
        if (model / index).is_file():
            _check_index(model / index)
            return


def _check_no_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: `git lfs pull` fetches it")


def _stored_tensors(file: Path) -> frozenset[str]:
    """Return the names of the tensors in a safetensors file."""
    _check_no_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= _LARGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file, or damaged: its {size} bytes do not begin with a header")
        text = opened.read(header_bytes)
    if len(text) < header_bytes:
        raise ValueError(f"{file} is truncated: it has {size} bytes, its header alone {8 + header_bytes}")
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + header_bytes + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"{file} is no safetensors file, or damaged: its header is no list of tensors") from None
    if size != needed:
        state = "is truncated" if size < needed else "is damaged"
        raise ValueError(f"{file} {state}: it has {size} bytes, its header declares {needed}")
    return frozenset(header) - {"__metadata__"}


def _check_index(index: Path) -> None:
    shards = _shards(index)
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        count = f"{index.name} names {len(shards)} files, {len(missing)} of them not there"
        raise ValueError(f"{index.parent / missing[0]} is missing: {count}")
    for shard, names in shards.items():
        if not shard.endswith(".safetensors"):
            continue
        lacking = sorted(names - _stored_tensors(index.parent / shard))
        if lacking:
            raise ValueError(
                f"{index.parent / shard} lacks {len(lacking)} of the {len(names)} tensors that {index.name} "
                f"says it has, the first is {lacking[0]}"
            )


def _shards(index: Path) -> dict[str, set[str]]:
    """Return the files that an index names, with the tensors in each."""
    found: dict[str, set[str]] = {}
    try:
        for tensor, shard in _entries(json.loads(read_text(index))):
            found.setdefault(shard, set()).add(tensor)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{index} is no index of weights: {error}") from None
    return found


def _entries(document: Any) -> Iterator[tuple[str, str]]:
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise TypeError("it has no weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise TypeError(f"the file of {tensor} is {quoted(shard)}")
        yield tensor, shard
