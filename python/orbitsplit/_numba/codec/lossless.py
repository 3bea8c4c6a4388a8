"""lossless_bf16: exponents through the stream coder; the counterpart of lossless.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._errors import CorruptFrameError

from .stream import Tables, decode_stream, encode_stream
from .symbol_table import build_table, table_bytes, take_table

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Shorts = npt.NDArray[np.uint16]

_STORED, _CODED = 0, 1
_STREAM_VALUES = 65536
_BLOCK = 64
_SAMPLED_BLOCKS = 512


def encode_values(values: Shorts) -> Bytes:
    """Return the payload of bfloat16 values given as 16-bit numbers."""
    if values.size == 0:
        return np.empty(0, np.uint8)
    exponents = (values >> 7 & 0xFF).astype(np.uint8)
    others = ((values >> 8 & 0x80) | (values & 0x7F)).astype(np.uint8)
    table = build_table(_counts(exponents))
    streams = [
        encode_stream(_tables(table, part.size), part[None])
        for part in np.split(exponents, range(_STREAM_VALUES, exponents.size, _STREAM_VALUES))
    ]
    lengths = np.array([stream.size for stream in streams] if len(streams) > 1 else [], "<u4")
    head = np.concatenate((np.array([_CODED], np.uint8), table_bytes(table)))
    coded = np.concatenate((head, others, lengths.view(np.uint8), *streams))
    if coded.size < 1 + 2 * values.size:
        return coded
    return np.concatenate((np.array([_STORED], np.uint8), values.view(np.uint8)))


def decode_values(payload: Bytes, count: int) -> Shorts:
    """Return the 16-bit numbers of `count` bfloat16 values; raise `CorruptFrameError`."""
    if count == 0:
        return np.empty(0, np.uint16)
    form, rest = payload[0], payload[1:]
    if form == _STORED:
        if rest.size != 2 * count:
            raise CorruptFrameError(f"frame has {payload.size} bytes of stored values, they need {1 + 2 * count}")
        return rest.copy().view(np.uint16)
    if form != _CODED:
        raise CorruptFrameError(f"frame has values in form {form}, this reader knows 0 and 1")
    table, rest = take_table(rest)
    streams = -(-count // _STREAM_VALUES)
    directory = 4 * streams if streams > 1 else 0
    if rest.size < count + directory:
        raise CorruptFrameError(
            f"frame has {rest.size} bytes for signs, mantissas and lengths of streams, they need {count + directory}"
        )
    others = rest[:count].astype(np.uint16)
    lengths = rest[count : count + directory].copy().view("<u4").tolist() or [rest.size - count]
    rest = rest[count + directory :]
    left = rest.size
    for i, length in enumerate(lengths):
        if length > left or (i + 1 == streams and length != left):
            raise CorruptFrameError(f"frame has a stream of {length} bytes where {left} are left")
        left -= length
    ends = np.cumsum(lengths)
    exponents = np.empty(count, np.uint16)
    for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        part = exponents[i * _STREAM_VALUES : (i + 1) * _STREAM_VALUES]
        part[:] = decode_stream(_tables(table, part.size), rest[end - length : end], 1, part.size)[0]
    bits: Shorts = (exponents << 7 | (others & 0x80) << 8 | others & 0x7F).astype(np.uint16)
    return bits


def _tables(table: Bytes, channels: int) -> Tables:
    return Tables(table[None], np.zeros(channels, np.uint8))


def _counts(exponents: Bytes) -> list[int]:
    """Count all exponents of a small array, of a large one 512 blocks of 64, one in each of 512 equal parts."""
    sample = exponents
    if exponents.size > _BLOCK * _SAMPLED_BLOCKS:
        part = exponents.size // _BLOCK // _SAMPLED_BLOCKS
        i = np.arange(_SAMPLED_BLOCKS)
        blocks = i * part + ((i * 2654435761 & 0xFFFFFFFF) * part >> 32)
        sample = exponents[(blocks[:, None] * _BLOCK + np.arange(_BLOCK)).reshape(-1)]
    counts: list[int] = np.bincount(sample, minlength=256).tolist()
    return counts
