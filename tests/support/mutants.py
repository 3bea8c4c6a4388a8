"""Hostile frames: valid ones changed by a seed, most of them with lengths and checksums that fit again."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np

from orbitsplit import CalibratedCodec
from orbitsplit._backend import load_backend
from orbitsplit._codec.calibrated import prepared
from orbitsplit._codec.codecs import Codec
from tests.judges import codec as judge

CODECS = ("raw", "bf16", "int8", "int4", "int8:8", "topk", "topk:0.02", "lossless_bf16")
SHAPES = ((3, 130), (2, 2, 65), (70, 40), (0, 4), ())
# Several streams, also an odd number of full ones and a short last one: readers decode them side by side. Rare, because
# they take long.
LARGE_SHAPES = ((2, 65536), (131077,), (5, 65600))
LARGE_ROWS = (512, 600, 1100)
LARGE_SHARE = 0.003

_WIDTH = 65
_TABLES = np.zeros((2, 256), np.uint8)
_TABLES[0, np.arange(-6, 7)] = 18
_TABLES[1, 0] = 1
# Codes of two tables, one of them nearly all escape, and steps so small that some values escape.
CALIBRATED = CalibratedCodec(
    codebook=1,
    step=np.where(np.arange(_WIDTH) % 7 == 3, 2.0**-9, 0.25).astype(np.float32),
    tables=_TABLES,
    table_of_channel=np.arange(_WIDTH) % 5 == 0,
)

_HEADER = 40
_NATIVE = load_backend("native")
# Numbers at which the arithmetic of sizes might turn over.
_CORNERS = (0, 1, 2, 7, 8, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WIDE_CORNERS = (*_CORNERS, 1 << 60, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def sealed(frame: bytes) -> bytes:
    """The frame with a checksum that is right, so that a reader gets past it."""
    if len(frame) < _HEADER:
        return frame
    blank = frame[:36] + bytes(4) + frame[40:]
    return frame[:36] + struct.pack("<I", _NATIVE.crc32c(blank)) + frame[40:]


def patched(frame: bytes, at: int, form: str, value: int) -> bytes:
    """The sealed frame with one number in it replaced."""
    piece = struct.pack(form, value)
    return sealed(frame[:at] + piece + frame[at + len(piece) :])


def valid_frames() -> list[bytes]:
    """Frames of every codec and dtype: rows that are short, odd, many, none, and a scalar."""
    rng = np.random.default_rng(20)
    frames = []
    for codec in map(Codec.parse, CODECS):
        for dtype, _ in enumerate(judge.DTYPES):
            for shape in SHAPES:
                single = np.asarray(rng.standard_normal(shape), np.float32)
                short = (single.view(np.uint32) >> 16).astype(np.uint16)
                bits = (single, single.astype(np.float16), short)[dtype]
                numbers = judge.CODECS[codec.name], codec.group or 64, codec.keep or 0.25
                frames.append(_NATIVE.encode(bits, dtype, shape, *numbers))
    for shape in ((1, _WIDTH), (3, _WIDTH), (2, 35, _WIDTH), (300, _WIDTH), (0, _WIDTH)):
        x = rng.standard_normal(shape).astype(np.float32)
        frames.append(prepared(CALIBRATED, _NATIVE).encode(x, 0, shape))
    return frames


def large_frames() -> list[bytes]:
    """Frames of several streams: lossless_bf16 of each dtype, and rows of the calibrated codec."""
    rng = np.random.default_rng(22)
    frames = []
    for dtype, shape in enumerate(LARGE_SHAPES):
        single = np.asarray(rng.standard_normal(shape), np.float32)
        bits = (single, single.astype(np.float16), (single.view(np.uint32) >> 16).astype(np.uint16))[dtype]
        frames.append(_NATIVE.encode(bits, dtype, shape, judge.CODECS["lossless_bf16"], 64, 0.25))
    for rows in LARGE_ROWS:
        x = rng.standard_normal((rows, _WIDTH)).astype(np.float32)
        frames.append(prepared(CALIBRATED, _NATIVE).encode(x, 0, x.shape))
    return frames


def mutants(count: int, seed: int = 20) -> Iterator[bytes]:
    """Yield `count` frames with bytes changed, numbers replaced, parts cut, added or taken from another frame."""
    chance = random.Random(seed)
    seeds, large = valid_frames(), large_frames()
    changes = (_change_byte, _change_byte, _change_byte, _replace_number, _cut, _extend)
    for _ in range(count):
        frame = bytearray(chance.choice(large if chance.random() < LARGE_SHARE else seeds))
        if chance.random() < 0.05:
            _splice(frame, chance.choice(seeds), chance)
        for _ in range(chance.randrange(1, 4)):
            chance.choice(changes)(frame, chance)
        yield _repaired(frame, chance)


def _header_end(frame: bytearray) -> int:
    return min(_HEADER + 8 * frame[7], len(frame)) if len(frame) > 7 else len(frame)


def _change_byte(frame: bytearray, chance: random.Random) -> None:
    if frame:
        end = _header_end(frame) if chance.random() < 0.4 else len(frame)
        frame[chance.randrange(end)] = chance.choice((0, 1, 2, 127, 128, 255, chance.randrange(256)))


def _replace_number(frame: bytearray, chance: random.Random) -> None:
    if len(frame) < _HEADER:
        return
    at, form, corners = chance.choice(((12, "<I", _CORNERS), (16, "<Q", _WIDE_CORNERS), (24, "<Q", _WIDE_CORNERS)))
    if frame[7] and chance.random() < 0.5 and _header_end(frame) == _HEADER + 8 * frame[7]:
        at, form, corners = _HEADER + 8 * chance.randrange(frame[7]), "<Q", _WIDE_CORNERS
    struct.pack_into(form, frame, at, chance.choice(corners))


def _cut(frame: bytearray, chance: random.Random) -> None:
    if chance.random() < 0.3:
        del frame[chance.randrange(len(frame) + 1) :]


def _extend(frame: bytearray, chance: random.Random) -> None:
    if chance.random() < 0.3:
        frame += chance.randbytes(chance.randrange(1, 9))


def _splice(frame: bytearray, other: bytes, chance: random.Random) -> None:
    at = chance.randrange(min(len(frame), len(other)))
    frame[at:] = other[at:]


def _repaired(frame: bytearray, chance: random.Random) -> bytes:
    if len(frame) >= _HEADER and chance.random() < 0.7:
        struct.pack_into("<Q", frame, 24, max(0, len(frame) - _header_end(frame)))
    return sealed(bytes(frame)) if chance.random() < 0.9 else bytes(frame)
