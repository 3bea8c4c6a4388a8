"""The header of a GGUF file: whether the file is whole, and where its tensors are."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Bytes of the values of metadata by their type; 8 are strings, 9 arrays.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_UINT32 = 4
# More than any file has: a damaged count must not keep a reader busy.
_MOST_ENTRIES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file: its shape in torch's order, GGUF's number of its type, and its first byte there."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What llama.cpp calls the architecture of the model in a GGUF file, and the file's tensors in their order."""

    architecture: str
    tensors: tuple[StoredTensor, ...]
    tensors_start: int  # in bytes


def check_gguf(file: Path) -> None:
    """Raise `ValueError`, naming the file, unless it is a GGUF file whose tensors begin within it."""
    header = read_header(file)
    size = file.stat().st_size
    needed = max((tensor.offset + 1 for tensor in header.tensors), default=header.tensors_start)
    if size < needed:
        raise ValueError(f"{file} is truncated: it has {size} bytes, its header declares at least {needed}")


def read_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file. Raises `ValueError`, naming the file, where it is none or damaged."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if opened.read(4) != _MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with GGUF")
        try:
            return _read(opened, size)
        except (EOFError, struct.error):
            raise ValueError(f"{file} is truncated: its {size} bytes end within the header") from None
        except ValueError as error:
            raise ValueError(f"{file} is no GGUF file that can be read, or damaged: {error}") from None


def _read(opened: BinaryIO, size: int) -> GgufHeader:
    version, tensors, entries = struct.unpack("<IQQ", _take(opened, 20))
    if version not in _VERSIONS:
        raise ValueError(f"it has version {version}, known are 2 and 3")
    if max(tensors, entries) > _MOST_ENTRIES:
        raise ValueError(f"it declares {tensors} tensors and {entries} values of metadata")
    alignment, architecture = 32, ""
    for _ in range(entries):
        key = _take(opened, _number(opened, "<Q", size))
        kind = _number(opened, "<I", 1 << 32)
        if key == b"general.alignment" and kind == _UINT32:
            alignment = max(1, _number(opened, "<I", 1 << 32))
        elif key == b"general.architecture" and kind == _STRING:
            architecture = _text(opened, size)
        else:
            _skip_value(opened, kind, size)
    found = [_tensor(opened, size) for _ in range(tensors)]
    start = -(-opened.tell() // alignment) * alignment
    return GgufHeader(architecture, tuple(replace(one, offset=start + one.offset) for one in found), start)


def _tensor(opened: BinaryIO, size: int) -> StoredTensor:
    """Return a tensor whose offset is, as in the file, from where tensors start."""
    name = _text(opened, size)
    dimensions = _number(opened, "<I", 1 << 32)
    if not 1 <= dimensions <= 8:
        raise ValueError(f"a tensor has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", _take(opened, 8 * dimensions))
    kind = _number(opened, "<I", 1 << 32)
    return StoredTensor(name, shape[::-1], kind, _number(opened, "<Q", 1 << 62))  # files have the fastest first


def _text(opened: BinaryIO, size: int) -> str:
    return _take(opened, _number(opened, "<Q", size)).decode(errors="replace")


def _skip_value(opened: BinaryIO, kind: int, size: int) -> None:
    if kind == _STRING:
        _skip(opened, _number(opened, "<Q", size), size)
    elif kind == _ARRAY:
        of, count = struct.unpack("<IQ", _take(opened, 12))
        if of in _VALUE_BYTES:
            _skip(opened, count * _VALUE_BYTES[of], size)
            return
        if count > size:
            raise EOFError
        for _ in range(count):
            _skip_value(opened, of, size)
    elif kind in _VALUE_BYTES:
        _skip(opened, _VALUE_BYTES[kind], size)
    else:
        raise ValueError(f"a value of metadata has type {kind}, known are 0 to 12")


def _number(opened: BinaryIO, form: str, most: int) -> int:
    number = int(struct.unpack(form, _take(opened, struct.calcsize(form)))[0])
    if number > most:
        raise EOFError
    return number


def _take(opened: BinaryIO, count: int) -> bytes:
    taken = opened.read(count)
    if len(taken) < count:
        raise EOFError
    return taken


def _skip(opened: BinaryIO, count: int, size: int) -> None:
    if opened.tell() + count > size:
        raise EOFError
    opened.seek(count, 1)
