"""The stream coder in Numba; the counterpart of stream.cpp (docs/internals/frame_format.md, "Streams")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orbitsplit._errors import CorruptFrameError
from orbitsplit._numba.jit import jit

if TYPE_CHECKING:
    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.int64]

MAX_ROWS = 256
_GROUP_ROWS = 64
_LOWEST_STATE = 256


class Tables:
    """Frequencies of symbols ([T, 256] bytes, each row below 256) made ready for both directions."""

    def __init__(self, frequency: Bytes, table_of_channel: Bytes) -> None:
        counts = frequency.astype(np.int64)
        escape = 256 - counts.sum(axis=1)
        # A symbol without a frequency is coded as the escape, whose slots are the first ones.
        start = escape[:, None] + np.cumsum(counts, axis=1) - counts
        self.start: Words = np.where(counts == 0, 0, start)
        self.frequency: Words = np.where(counts == 0, escape[:, None], counts)
        self.symbol_of_slot: Words = np.array(
            [np.repeat(np.append(-1, np.arange(256)), np.append(e, f)) for e, f in zip(escape, counts, strict=True)]
        )
        self.escape: Words = escape
        self.table_of_channel: Words = table_of_channel.astype(np.int64)


def lanes_of(rows: int, channels: int) -> int:
    """Return the number of states of a stream."""
    if rows >= _GROUP_ROWS:
        return _GROUP_ROWS
    interleaved = 1
    while rows * interleaved * 2 <= _GROUP_ROWS and channels >= interleaved * 2 * 128:
        interleaved *= 2
    return rows * interleaved


def stream_bound(rows: int, channels: int) -> int:
    """Return the bytes of a stream at most."""
    return len(_varint(rows * channels)) + 2 * lanes_of(rows, channels) + 2 * rows * channels


def encode_stream(tables: Tables, codes: Bytes) -> Bytes:
    """Encode the symbols [rows, channels] of one stream."""
    rows, channels = codes.shape
    lanes = lanes_of(rows, channels)
    symbols, channel, lane = _in_order(codes, lanes)
    states = np.full(lanes, _LOWEST_STATE, np.int64)
    refills, escapes = np.empty(symbols.size, np.uint8), np.empty(symbols.size, np.uint8)
    table = tables.table_of_channel[channel]
    refilled, escaped = _encode(symbols, table, lane, tables.frequency, tables.start, states, refills, escapes)
    return np.concatenate(
        (
            np.frombuffer(_varint(escaped), np.uint8),
            states.astype("<u2").view(np.uint8),
            refills[:refilled][::-1],
            escapes[:escaped][::-1],
        )
    )


def decode_stream(tables: Tables, data: Bytes, rows: int, channels: int) -> Bytes:
    """Decode a stream into its symbols [rows, channels]; raise `CorruptFrameError` for any other bytes."""
    escaped, begin = _take_varint(data)
    lanes = lanes_of(rows, channels)
    if escaped > data.size - begin or data.size - begin - escaped < 2 * lanes:
        needed = 2 * lanes + escaped
        raise CorruptFrameError(
            f"frame has a stream of {data.size - begin} bytes, its states and escaped symbols need {needed}"
        )
    states = np.frombuffer(data[begin : begin + 2 * lanes].tobytes(), "<u2").astype(np.int64)
    refills = data[begin + 2 * lanes : data.size - escaped]
    escapes = data[data.size - escaped :]
    symbols = np.empty(rows * channels, np.uint8)
    _, channel, lane = _in_order(np.zeros((rows, channels), np.uint8), lanes)
    table = tables.table_of_channel[channel]
    if not _decode(
        table,
        lane,
        tables.frequency,
        tables.start,
        tables.escape,
        tables.symbol_of_slot,
        states,
        refills,
        escapes,
        symbols,
    ):
        raise CorruptFrameError("frame has a stream that its symbols do not end with")
    return _from_order(symbols, rows, channels)


def _groups(rows: int) -> list[slice]:
    return [slice(start, min(start + _GROUP_ROWS, rows)) for start in range(0, rows, _GROUP_ROWS)]


def _in_order(codes: Bytes, lanes: int) -> tuple[Bytes, Words, Words]:
    """Return symbols in the order they are coded, and the channel and state of each."""
    rows, channels = codes.shape
    symbols = np.concatenate([codes[group].T.reshape(-1) for group in _groups(rows)])
    sizes = [group.stop - group.start for group in _groups(rows)]
    channel = np.concatenate([np.repeat(np.arange(channels), size) for size in sizes])
    if rows < _GROUP_ROWS:
        return symbols, channel, np.arange(symbols.size) % lanes
    return symbols, channel, np.concatenate([np.tile(np.arange(size), channels) for size in sizes])


def _from_order(symbols: Bytes, rows: int, channels: int) -> Bytes:
    codes = np.empty((rows, channels), np.uint8)
    for group in _groups(rows):
        part = symbols[group.start * channels : group.stop * channels]
        codes[group] = part.reshape(channels, group.stop - group.start).T
    return codes


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _take_varint(data: Bytes) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[:9].tolist()):
        value |= (byte & 127) << (7 * i)
        if byte >= 128:
            continue
        if byte == 0 and i > 0:
            break
        return value, i + 1
    raise CorruptFrameError("frame has a stream without a count of escaped symbols")


@jit
def _encode(
    symbols: Bytes,
    table: Words,
    lane: Words,
    frequency: Words,
    start: Words,
    states: Words,
    refills: Bytes,
    escapes: Bytes,
) -> tuple[int, int]:
    refilled, escaped = 0, 0
    for i in range(len(symbols) - 1, -1, -1):
        f, first = frequency[table[i], symbols[i]], start[table[i], symbols[i]]
        if first == 0:
            escapes[escaped] = symbols[i]
            escaped += 1
        x = states[lane[i]]
        if x >= f << 8:
            refills[refilled] = x & 255
            refilled += 1
            x >>= 8
        states[lane[i]] = (x // f) << 8 | (x % f + first)
    return refilled, escaped


@jit
def _decode(
    table: Words,
    lane: Words,
    frequency: Words,
    start: Words,
    escape: Words,
    symbol_of_slot: Words,
    states: Words,
    refills: Bytes,
    escapes: Bytes,
    symbols: Bytes,
) -> bool:
    refilled, escaped = 0, 0
    for i in range(len(symbols)):
        t, x = table[i], states[lane[i]]
        slot = x & 255
        symbol = symbol_of_slot[t, slot]
        if symbol < 0:
            x = escape[t] * (x >> 8) + slot
            if escaped == len(escapes):
                return False
            symbols[i] = escapes[escaped]
            escaped += 1
        else:
            x = frequency[t, symbol] * (x >> 8) + slot - start[t, symbol]
            symbols[i] = symbol
        if x < _LOWEST_STATE:
            if refilled == len(refills):
                return False
            x = x << 8 | refills[refilled]
            refilled += 1
        states[lane[i]] = x
    is_back = True
    for x in states:
        is_back = is_back and x == _LOWEST_STATE
    return is_back and refilled == len(refills) and escaped == len(escapes)
