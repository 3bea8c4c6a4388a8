"""Streams and lossless_bf16 the slow way, from docs/internals/frame_format.md; shares no code with orbitsplit."""

from __future__ import annotations

import functools
import struct

ESCAPE = -1


def slots_of(table: dict[int, int]) -> list[int]:
    """The entry (a symbol or ESCAPE) of each of the 256 slots."""
    slots = [ESCAPE] * table[ESCAPE]
    for symbol in range(256):
        slots += [symbol] * table.get(symbol, 0)
    assert len(slots) == 256
    return slots


def table_of(counts: list[int]) -> dict[int, int]:
    """Frequencies for these counts."""
    if not any(counts):
        return {0: 255, ESCAPE: 1}
    return min((_table_above(counts, h) for h in range(8, 13)), key=lambda table: _bits(counts, table))


def _table_above(counts: list[int], h: int) -> dict[int, int]:
    total = sum(counts)
    coded = {s: n for s, n in enumerate(counts) if n * 2**h >= total}
    if len(coded) == 256:
        del coded[min(coded, key=lambda s: (coded[s], s))]
    shares = coded | {ESCAPE: total - sum(coded.values())}
    f = {s: max(1, 256 * n // total) for s, n in shares.items()}
    while sum(f.values()) < 256:
        f[max(f, key=lambda s: _order(shares[s], 2 * f[s] + 1))] += 1
    while sum(f.values()) > 256:
        f[min((s for s in f if f[s] > 1), key=lambda s: _order(shares[s], 2 * f[s] - 1))] -= 1
    return f


def _order(share: int, divisor: int) -> int:
    """A number in the order of share / divisor, exactly: two such ratios that differ do so by 2^-20 or more."""
    assert divisor < 2**10
    return share * 2**20 // divisor


def _bits(counts: list[int], table: dict[int, int]) -> int:
    cost = {s: 8 * 65536 - _scaled_log2(f) for s, f in table.items()}
    return sum(n * cost[s] if s in table else n * (cost[ESCAPE] + 8 * 65536) for s, n in enumerate(counts))


@functools.cache
def _scaled_log2(f: int) -> int:
    """floor(65536 log2 f), which is one less than the number of binary digits of f^65536."""
    return (f**65536).bit_length() - 1


def table_bytes(table: dict[int, int]) -> bytes:
    symbols = sorted(s for s in table if s != ESCAPE)
    between = range(symbols[0], symbols[-1] + 1)
    return bytes([symbols[0], symbols[-1], table[ESCAPE], *(table.get(s, 0) for s in between)])


def row_lanes(length: int) -> int:
    """States of a stream of one row."""
    return max(k for k in (1, 2, 4, 8, 16, 32, 64) if k == 1 or 128 * k <= length)


def encode_row(table: dict[int, int], symbols: bytes) -> bytes:
    """The stream of one row."""
    slots = slots_of(table)
    states = [256] * row_lanes(len(symbols))
    refills, escapes = [], []
    for i in reversed(range(len(symbols))):
        entry = symbols[i] if symbols[i] in table else ESCAPE
        if entry == ESCAPE:
            escapes.insert(0, symbols[i])
        f, start = table[entry], slots.index(entry)
        x = states[i % len(states)]
        if x >= 256 * f:
            refills.insert(0, x % 256)
            x //= 256
        states[i % len(states)] = 256 * (x // f) + x % f + start
    count = len(escapes)
    varint = [count % 128]
    while count >= 128:
        count //= 128
        varint[-1] += 128
        varint.append(count % 128)
    return bytes(varint) + struct.pack(f"<{len(states)}H", *states) + bytes(refills) + bytes(escapes)


def decode_row(table: dict[int, int], stream: bytes, length: int) -> bytes:
    slots = slots_of(table)
    escaped = at = 0
    while True:
        escaped += stream[at] % 128 * 128**at
        at += 1
        if stream[at - 1] < 128:
            break
    lanes = row_lanes(length)
    states = list(struct.unpack_from(f"<{lanes}H", stream, at))
    refills = iter(stream[at + 2 * lanes : len(stream) - escaped])
    escapes = iter(stream[len(stream) - escaped :])
    symbols = []
    for i in range(length):
        x = states[i % lanes]
        entry = slots[x % 256]
        x = table[entry] * (x // 256) + x % 256 - slots.index(entry)
        states[i % lanes] = 256 * x + next(refills) if x < 256 else x
        symbols.append(next(escapes) if entry == ESCAPE else entry)
    assert states == [256] * lanes
    assert not [*refills, *escapes]
    return bytes(symbols)


def sampled(exponents: bytes) -> bytes:
    """The exponents that the table is made from."""
    if len(exponents) <= 512 * 64:
        return exponents
    part = len(exponents) // 64 // 512
    blocks = [i * part + i * 2654435761 % 2**32 * part // 2**32 for i in range(512)]
    return b"".join(exponents[64 * b : 64 * b + 64] for b in blocks)


def encode_lossless(values: list[int]) -> bytes:
    """The payload of bfloat16 values given by their bits."""
    if not values:
        return b""
    stored = b"\0" + struct.pack(f"<{len(values)}H", *values)
    exponents = bytes(v // 128 % 256 for v in values)
    others = bytes(v // 32768 * 128 + v % 128 for v in values)
    sample = sampled(exponents)
    table = table_of([sample.count(s) for s in range(256)])
    streams = [encode_row(table, exponents[i : i + 65536]) for i in range(0, len(exponents), 65536)]
    lengths = b"".join(struct.pack("<I", len(s)) for s in streams) if len(streams) > 1 else b""
    coded = b"\1" + table_bytes(table) + others + lengths + b"".join(streams)
    return min(stored, coded, key=len)


def decode_lossless(payload: bytes, count: int) -> list[int]:
    """The bits of `count` bfloat16 values."""
    if count == 0:
        return []
    if payload[0] == 0:
        return list(struct.unpack(f"<{count}H", payload[1:]))
    first, last, escape = payload[1:4]
    at = 4 + last - first + 1
    table = {first + i: f for i, f in enumerate(payload[4:at]) if f} | {ESCAPE: escape}
    others, rest = payload[at : at + count], payload[at + count :]
    sizes = [min(65536, count - i) for i in range(0, count, 65536)]
    lengths = [len(rest)]
    if len(sizes) > 1:
        lengths = list(struct.unpack_from(f"<{len(sizes)}I", rest))
        rest = rest[4 * len(sizes) :]
    exponents = b""
    for size, length in zip(sizes, lengths, strict=True):
        exponents += decode_row(table, rest[:length], size)
        rest = rest[length:]
    assert not rest
    return [o // 128 * 32768 + e * 128 + o % 128 for e, o in zip(exponents, others, strict=True)]
