"""Tables of the stream coder: made from counts, written and read; the counterpart of symbol_table.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orbitsplit._errors import CorruptFrameError

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

_SLOTS = 256
_ESCAPED = 256  # the escape in a table's list of entries


def table_from_counts(counts: npt.NDArray[np.uint64]) -> Bytes:
    """Return `build_table` of an array of 256 counts; raise `ValueError` if they add up to 2^40 or more."""
    if not isinstance(counts, np.ndarray) or counts.dtype != np.uint64:
        raise TypeError("counts must be an array of uint64")
    if counts.shape != (256,):
        raise ValueError(f"counts has {counts.size} numbers in {counts.ndim} axes, it must have 256 in 1")
    numbers: list[int] = counts.tolist()
    if sum(numbers) >= 1 << 40:
        raise ValueError("counts add up to 2^40 or more, they must add up to less")
    return build_table(numbers)


def build_table(counts: list[int]) -> Bytes:
    """Return the frequencies of 256 symbols that code these counts in the fewest bits; the escape has the rest."""
    table = np.zeros(256, np.uint8)
    total = sum(counts)
    if total == 0:
        table[0] = 255
        return table
    best = min((_entries_above(counts, total, shift) for shift in range(8, 13)), key=_bits_of)
    for symbol, _, frequency in best[:-1]:
        table[symbol] = frequency
    return table


def _entries_above(counts: list[int], total: int, shift: int) -> list[tuple[int, int, int]]:
    """Return symbol, count and frequency of what has at least 1 / 2^shift of the counts, the escape last."""
    symbols = [symbol for symbol in range(256) if counts[symbol] << shift >= total]
    if len(symbols) == _SLOTS:
        symbols.remove(min(symbols, key=lambda symbol: counts[symbol]))
    coded = [counts[symbol] for symbol in symbols]
    shares = [*coded, total - sum(coded)]
    return list(zip([*symbols, _ESCAPED], shares, _shared_slots(shares, total), strict=True))


def _shared_slots(counts: list[int], total: int) -> list[int]:
    frequencies = [max(1, count * _SLOTS // total) for count in counts]
    indices = range(len(counts))
    # Comparisons of quotients by common multiples; of equal ones the first.
    while sum(frequencies) < _SLOTS:
        best = 0
        for i in indices:
            if counts[best] * (2 * frequencies[i] + 1) < counts[i] * (2 * frequencies[best] + 1):
                best = i
        frequencies[best] += 1
    while sum(frequencies) > _SLOTS:
        able = [i for i in indices if frequencies[i] > 1]
        cheapest = able[0]
        for i in able:
            if counts[i] * (2 * frequencies[cheapest] - 1) < counts[cheapest] * (2 * frequencies[i] - 1):
                cheapest = i
        frequencies[cheapest] -= 1
    return frequencies


def _cost_of(frequency: int) -> int:
    """Return the bits of a symbol in 65536ths, rounded up: log2(256 / f) by repeated squaring."""
    mantissa, logarithm = frequency << 31, 0
    while mantissa >= 2 << 31:
        mantissa >>= 1
        logarithm += 65536
    bit = 32768
    while bit:
        mantissa = mantissa * mantissa >> 31
        if mantissa >= 2 << 31:
            mantissa >>= 1
            logarithm += bit
        bit >>= 1
    return 8 * 65536 - logarithm


_COSTS = [0] + [_cost_of(frequency) for frequency in range(1, 257)]


def _bits_of(entries: list[tuple[int, int, int]]) -> int:
    escapes = entries[-1][1]
    return sum(count * _COSTS[frequency] for _, count, frequency in entries) + escapes * 8 * 65536


def table_bytes(table: Bytes) -> Bytes:
    """Return a table as it lies in a frame."""
    coded = np.flatnonzero(table)
    first, last = coded[0], coded[-1]
    escape = _SLOTS - table.sum(dtype=np.int64)
    return np.concatenate((np.array([first, last, escape], np.uint8), table[first : last + 1]))


def take_table(data: Bytes) -> tuple[Bytes, Bytes]:
    """Read one table off the front and return it and the rest; raise `CorruptFrameError`."""
    count = int(data[1]) - int(data[0]) + 1 if data.size >= 3 else 0
    if count <= 0 or data.size < 3 + count:
        raise CorruptFrameError("frame has a table of symbols that is cut off or has no symbol")
    table = np.zeros(256, np.uint8)
    table[data[0] : int(data[1]) + 1] = data[3 : 3 + count]
    escape = int(data[2])
    if escape == 0 or escape + table.sum(dtype=np.int64) != _SLOTS or data[3] == 0 or data[2 + count] == 0:
        raise CorruptFrameError("frame has a table of symbols whose frequencies do not add up to 256")
    return table, data[3 + count :]
