"""Frames of calibrated codecs built the slow way, number by number from docs/internals/frame_format.md.

Shares no code with orbitsplit.
"""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np

from tests.judges import codec as judge

F = np.float32


def tables_of(parameters):
    """For each table: 257 frequencies, the escape's first."""
    tables = parameters.get("tables")
    return None if tables is None else [[256 - int(sum(map(int, row))), *map(int, row)] for row in tables]


def transform(row, parameters, *, back=False):
    n, block, matrix = len(row), parameters.get("hadamard", 0), parameters.get("matrix")
    inverse = parameters.get("inverse")
    if matrix is not None:
        # y[j] = sum of x[i] factors[i, j], each product and each sum rounded to float32
        factors = matrix.T if not back else matrix if inverse is None else inverse.T
        total = np.zeros(n, F)
        for i in range(n):
            total = total + F(row[i]) * factors[i].astype(F)
        return list(total)
    row = list(row)
    distance = 1
    while distance < block:
        for i in range(n):
            if i // distance % 2 == 0:
                a, b = row[i], row[i + distance]
                row[i], row[i + distance] = F(a + b), F(a - b)
        distance *= 2
    return [F(v * F(1 / math.sqrt(block))) for v in row] if block > 1 else row


@np.errstate(over="ignore", invalid="ignore")
def numbers_of_row(x, parameters):
    """y of a row of float32 numbers."""
    shift, scale = parameters.get("shift"), parameters.get("scale")
    y = [F(v - shift[c]) if shift is not None else v for c, v in enumerate(x)]
    y = [F(v * scale[c]) if scale is not None else v for c, v in enumerate(y)]
    return transform(y, parameters)


@np.errstate(over="ignore")
def code_of(y, c, parameters):
    threshold = parameters.get("threshold")
    if threshold is not None and abs(y) < threshold[c]:
        return 0
    steps = F(F(abs(y) * F(F(1) / parameters["step"][c])) + F(parameters.get("rounding", 0.5)))
    if not steps < 128:
        return -128
    return int(steps) if y > 0 else -int(steps)


def code_order(rows, n):
    """Elements of a stream in the order in which their codes are coded, and the state of each."""
    if rows < 64:
        k = 1
        while 2 * k * rows <= 64 and n >= 2 * k * 128:
            k *= 2
        order = [(row, c) for c in range(n) for row in range(rows)]
        return order, [i % (rows * k) for i in range(len(order))], rows * k
    order, states = [], []
    for group in range(0, rows, 64):
        for c in range(n):
            for row in range(group, min(group + 64, rows)):
                order.append((row, c))
                states.append(row - group)
    return order, states, 64


def encode_stream(codes, parameters):
    """The bytes of one stream, from rows of codes 0..255."""
    tables, table_of = tables_of(parameters), parameters["table_of_channel"]
    starts = [[0, *itertools.accumulate(table)] for table in tables]
    order, state_of, states = code_order(len(codes), len(codes[0]))
    x, refills, escaped = [256] * states, [], []
    for (row, c), state in reversed(list(zip(order, state_of, strict=True))):
        table, symbol = tables[table_of[c]], codes[row][c]
        slot = symbol + 1 if table[symbol + 1] else 0
        if slot == 0:
            escaped.append(symbol)
        f, start = table[slot], starts[table_of[c]][slot]
        if x[state] >= 256 * f:
            refills.append(x[state] % 256)
            x[state] //= 256
        x[state] = 256 * (x[state] // f) + x[state] % f + start
    count, varint = len(escaped), b""
    while count >= 128:
        varint += bytes([count % 128 + 128])
        count //= 128
    varint += bytes([count])
    return varint + struct.pack(f"<{states}H", *x) + bytes(reversed(refills)) + bytes(reversed(escaped))


def encode(bits, dtype, parameters):
    """The frame of an array given by the bits of its elements (uint32 or uint16), finite."""
    n = len(parameters["step"])
    flat = [F(judge.value_of(int(b), dtype)) for b in bits.reshape(-1)]
    rows = [numbers_of_row(flat[i : i + n], parameters) for i in range(0, len(flat), n)]
    directory, body, last = b"", b"", 0
    for start in range(0, len(rows), 256):
        y = rows[start : start + 256]
        codes = [[code_of(v, c, parameters) for c, v in enumerate(row)] for row in y]
        largest = F(judge.float_of_bits(0x7F7F0000))
        values = [
            min(max(v, -largest), largest)
            for numbers, row in zip(y, codes, strict=True)
            for v, code in zip(numbers, row, strict=True)
            if code == -128
        ]
        symbols = [[code % 256 for code in row] for row in codes]
        coded = b"".join(bytes(row) for row in symbols)
        if parameters.get("tables") is not None:
            coded = encode_stream(symbols, parameters)
        last = len(values)
        if start + 256 < len(rows):
            directory += struct.pack("<II", len(coded), len(values))
        body += coded + b"".join(struct.pack("<H", judge.bf16_nearest(float(v))) for v in values)
    payload = directory + body
    fixed = b"OSPF" + bytes([1, 6, judge.DTYPES.index(dtype), len(bits.shape)])
    fixed += struct.pack("<HHIQQ", 0, 0, last, parameters["codebook"], len(payload))
    fixed += struct.pack("<HH", parameters.get("cut", 0), parameters.get("level", 0))
    axes = b"".join(struct.pack("<Q", extent) for extent in bits.shape)
    return fixed + struct.pack("<I", judge.crc32c(fixed + bytes(4) + axes + payload)) + axes + payload


@np.errstate(over="ignore", invalid="ignore")
def decoded_row(y, parameters):
    """x' of a row, of float32 numbers y whose codes and escapes say all of them."""
    shrink, step = F(parameters.get("shrink", 0.0)), parameters["step"]
    numbers = []
    for c, v in enumerate(y):
        code = code_of(v, c, parameters)
        if code == -128:
            largest = F(judge.float_of_bits(0x7F7F0000))
            numbers.append(F(judge.float_of_bits(judge.bf16_nearest(float(min(max(v, -largest), largest))) << 16)))
        elif code == 0:
            numbers.append(F(0))
        else:
            numbers.append(F(F(math.copysign(F(abs(code) - shrink), code)) * step[c]))
    x = transform(numbers, parameters, back=True)
    if parameters.get("scale") is not None:
        x = [F(v * F(F(1) / s)) for v, s in zip(x, parameters["scale"], strict=True)]
    if parameters.get("shift") is not None:
        x = [F(v + s) for v, s in zip(x, parameters["shift"], strict=True)]
    return x


def decode(bits, dtype, parameters):
    """The bytes of the array that decoding the frame of these elements gives."""
    n = len(parameters["step"])
    flat = [F(judge.value_of(int(b), dtype)) for b in bits.reshape(-1)]
    rows = [numbers_of_row(flat[i : i + n], parameters) for i in range(0, len(flat), n)]
    return b"".join(judge.store(float(v), dtype) for row in rows for v in decoded_row(row, parameters))
