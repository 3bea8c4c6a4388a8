"""Frames built the slow way, value by value from docs/internals/frame_format.md; shares no code with orbitsplit.

Python floats are doubles: products and quotients of float32 values round to the right float32 through them.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from tests.judges import stream as judge_stream

DTYPES = ("float32", "float16", "bfloat16")
CODECS = {"raw": 0, "bf16": 1, "int8": 2, "int4": 3, "topk": 4, "lossless_bf16": 5}
_NAMES = {number: name for name, number in CODECS.items()}


def _divided(crc: int) -> int:
    """What eight steps of the division make of a register."""
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_DIVIDED = [_divided(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _DIVIDED[crc & 255 ^ byte]
    return crc ^ 0xFFFFFFFF


def float_of_bits(bits: int) -> float:
    """The float32 of 32 bits."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of_float(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def bf16_nearest(value: float) -> int:
    """The 16 bits of the bfloat16 nearest to a float32, ties to even."""
    bits = bits_of_float(value) if not math.isnan(value) else None
    assert bits is not None
    below, above = bits >> 16, (bits >> 16) + 1
    if math.isinf(value):
        return below
    down = abs(value) - abs(float_of_bits(below << 16))
    # One step beyond the largest finite bfloat16 lies 2^128, where infinity stands.
    step = 2.0**128 if (above & 0x7FFF) == 0x7F80 else abs(float_of_bits(above << 16))
    up = step - abs(value)
    if down == up:
        return below if below % 2 == 0 else above
    return below if down < up else above


def bf16_above(value: float) -> int:
    """The 16 bits of the smallest bfloat16 that is not below a positive float32."""
    below = bits_of_float(value) >> 16
    return below if float_of_bits(below << 16) == value else below + 1


def value_of(bits: int, dtype: str) -> float:
    if dtype == "float32":
        return float_of_bits(bits)
    if dtype == "bfloat16":
        return float_of_bits(bits << 16)
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def encode(bits: np.ndarray, dtype: str, codec: str, *, group: int = 64, keep: float = 0.25) -> bytes:
    """The frame of an array given by the bits of its elements (uint32 or uint16), finite but for raw."""
    shape = bits.shape
    row_length = shape[-1] if shape else 1
    flat = [int(b) for b in bits.reshape(-1)]
    rows = [flat[i : i + row_length] for i in range(0, len(flat), row_length or 1)]
    values = [[value_of(b, dtype) for b in row] for row in rows]
    flags = parameter = 0
    if codec == "raw":
        payload = bits.tobytes()
    elif codec == "bf16":
        payload = b"".join(struct.pack("<H", bf16_nearest(v)) for row in values for v in row)
    elif codec == "lossless_bf16":
        exact = flat if dtype == "bfloat16" else [bf16_nearest(v) for row in values for v in row]
        payload = judge_stream.encode_lossless(exact)
    elif codec == "topk":
        parameter = max(1, round(keep * row_length)) if row_length else 0
        payload, flags = _topk(rows, values, dtype, parameter)
    else:
        parameter = group
        payload = _groups(values, codec, group)
    fixed = b"OSPF" + bytes([1, CODECS[codec], DTYPES.index(dtype), len(shape)])
    fixed += struct.pack("<HHIQQI", flags, 0, parameter, 0, len(payload), 0)
    axes = b"".join(struct.pack("<Q", n) for n in shape)
    checksum = crc32c(fixed + bytes(4) + axes + payload)
    return fixed + struct.pack("<I", checksum) + axes + payload


def _groups(rows: list[list[float]], codec: str, group: int) -> bytes:
    top = 127 if codec == "int8" else 7
    scales, codes = b"", b""
    for row in rows:
        row_codes: list[int] = []
        for start in range(0, len(row), group):
            part = row[start : start + group]
            largest = max(abs(v) for v in part)
            scale_bits = bf16_above(max(float(np.float32(largest / top)), 2.0**-126))
            inverse = float(np.float32(1 / float_of_bits(scale_bits << 16)))
            scales += struct.pack("<H", scale_bits)
            row_codes += [round(float(np.float32(v * inverse))) for v in part]
        if codec == "int8":
            codes += struct.pack(f"{len(row)}b", *row_codes)
        else:
            nibbles = [c + 8 for c in row_codes] + [0] * (len(row) % 2)
            codes += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return scales + codes


def _topk(rows: list[list[int]], values: list[list[float]], dtype: str, kept: int) -> tuple[bytes, int]:
    stored, bitmaps, gaps = b"", b"", b""
    for bits, row in zip(rows, values, strict=True):
        ranking = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))
        chosen = sorted(ranking[:kept])
        last = -1
        for i in chosen:
            if dtype == "float32":
                bound = float_of_bits(0x7F7F0000)
                stored += struct.pack("<H", bf16_nearest(min(max(row[i], -bound), bound)))
            else:
                stored += struct.pack("<H", bits[i])
            skipped = i - last - 1
            gaps += b"\xff" * (skipped // 255) + bytes([skipped % 255])
            last = i
        bitmap = [0] * ((len(row) + 7) // 8)
        for i in chosen:
            bitmap[i // 8] |= 1 << i % 8
        bitmaps += bytes(bitmap)
    return (stored + gaps, 1) if len(gaps) < len(bitmaps) else (stored + bitmaps, 0)


def decode(frame: bytes) -> bytes:
    """The elements of a valid frame as bytes."""
    codec, dtype, rank = _NAMES[frame[5]], DTYPES[frame[6]], frame[7]
    parameter = struct.unpack_from("<I", frame, 12)[0]
    shape = struct.unpack_from(f"<{rank}Q", frame, 40)
    payload = frame[40 + 8 * rank :]
    length = shape[-1] if shape else 1
    rows = math.prod(shape[:-1]) if length else 0
    if codec == "raw":
        return payload
    if codec == "bf16":
        return b"".join(store(float_of_bits(b << 16), dtype) for (b,) in struct.iter_unpack("<H", payload))
    if codec == "lossless_bf16":
        exact = judge_stream.decode_lossless(payload, rows * length)
        if dtype == "bfloat16":
            return b"".join(struct.pack("<H", b) for b in exact)
        return b"".join(store(float_of_bits(b << 16), dtype) for b in exact)
    if codec == "topk":
        return _decode_topk(payload, dtype, rows, length, parameter, uses_gaps=frame[8] == 1)
    groups = -(-length // parameter)
    scales = struct.unpack_from(f"<{rows * groups}H", payload)
    codes = payload[2 * rows * groups :]
    if codec == "int8":
        numbers = list(struct.unpack(f"{rows * length}b", codes))
    else:
        halves = [half - 8 for byte in codes for half in (byte & 15, byte >> 4)]
        width = 2 * ((length + 1) // 2)
        numbers = [halves[row * width + i] for row in range(rows) for i in range(length)]
    return b"".join(
        store(number * float_of_bits(scales[i // length * groups + i % length // parameter] << 16), dtype)
        for i, number in enumerate(numbers)
    )


def store(value: float, dtype: str) -> bytes:
    """A value in its dtype; finite ones stop at the dtype's largest."""
    largest = {"float32": float_of_bits(0x7F7FFFFF), "float16": 65504.0, "bfloat16": float_of_bits(0x7F7F0000)}
    if math.isfinite(value):
        value = min(max(value, -largest[dtype]), largest[dtype])
    if dtype == "bfloat16":
        return struct.pack("<H", bf16_nearest(value))
    return struct.pack("<f" if dtype == "float32" else "<e", value)


def _decode_topk(payload: bytes, dtype: str, rows: int, length: int, kept: int, *, uses_gaps: bool) -> bytes:
    values = [payload[2 * i : 2 * i + 2] for i in range(rows * kept)]
    positions = payload[2 * rows * kept :]
    blank = bytes(4 if dtype == "float32" else 2)
    out = [blank] * (rows * length)
    if uses_gaps:
        steps, skipped = [], 0
        for byte in positions:
            skipped += byte
            if byte < 255:
                steps.append(skipped + 1)
                skipped = 0
        chosen = []
        for row in range(rows):
            at = -1
            for step in steps[row * kept : (row + 1) * kept]:
                at += step
                chosen.append(row * length + at)
    else:
        width = (length + 7) // 8
        chosen = [
            row * length + i
            for row in range(rows)
            for i in range(length)
            if positions[row * width + i // 8] >> i % 8 & 1
        ]
    for i, value in zip(chosen, values, strict=True):
        out[i] = (b"\0\0" if dtype == "float32" else b"") + value
    return b"".join(out)
