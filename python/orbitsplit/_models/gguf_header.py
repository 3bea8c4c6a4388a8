"""The header of a GGUF file, read as far as needed to see whether the file is whole."""

from __future__ import annotations

import struct
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


def check_gguf(file: Path) -> None:
    """Raise `ValueError`, naming the file, unless it is a GGUF file whose tensors begin within it."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if opened.read(4) != _MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with GGUF")
        try:
            needed = _least_bytes(opened, size)
        except (EOFError, struct.error):
            raise ValueError(f"{file} is truncated: its {size} bytes end within the header") from None
        except ValueError as error:
            raise ValueError(f"{file} is no GGUF file that can be read, or damaged: {error}") from None
    if size < needed:
        raise ValueError(f"{file} is truncated: it has {size} bytes, its header declares at least {needed}")


def _least_bytes(opened: BinaryIO, size: int) -> int:
    """Return the bytes that a file has at least: up to the beginning of its last tensor."""
    version, tensors, entries = struct.unpack("<IQQ", _take(opened, 20))
    if version not in _VERSIONS:
        raise ValueError(f"it has version {version}, known are 2 and 3")
    if max(tensors, entries) > _MOST_ENTRIES:
        raise ValueError(f"it declares {tensors} tensors and {entries} values of metadata")
    alignment = 32
    for _ in range(entries):
        key = _take(opened, _number(opened, "<Q", size))
        kind = _number(opened, "<I", 1 << 32)
        if key == b"general.alignment" and kind == _UINT32:
            alignment = max(1, _number(opened, "<I", 1 << 32))
        else:
            _skip_value(opened, kind, size)
    offsets = [0]
    for _ in range(tensors):
        _take(opened, _number(opened, "<Q", size))
        dimensions = _number(opened, "<I", 1 << 32)
        if dimensions > 8:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        _take(opened, 8 * dimensions + 4)
        offsets.append(_number(opened, "<Q", 1 << 62))
    start = -(-opened.tell() // alignment) * alignment
    return start + max(offsets) + (1 if tensors else 0)


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
