"""Calibrated codecs in NumPy and Numba; the counterpart of the files calibrated*.cpp.

Every operation on a float is the one the C++ does, in its order and in float32: the frames are the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orbitsplit._errors import CorruptFrameError
from orbitsplit._numba.float_bits import bf16_from_singles, singles_from_bf16

from .codec import check_array, declare, decode, refuse_non_finite, shorten, singles
from .frame import (
    CALIBRATED,
    FrameInfo,
    check_apart,
    check_threads,
    describe_key,
    inspect,
    seal,
    verify_seal,
    view_bytes,
    write_header,
)
from .stream import MAX_ROWS, Tables, decode_stream, encode_stream, stream_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    Bytes = npt.NDArray[np.uint8]
    Codes = npt.NDArray[np.int8]
    Shorts = npt.NDArray[np.uint16]
    Singles = npt.NDArray[np.float32]

_LARGEST_WIDTH = 1 << 20
_MOST_ELEMENTS = 1 << 56
_MOST_TABLES = 64
_LARGEST_BF16 = np.float32(3.3895314e38)
_LARGEST = (np.float32(3.4028235e38), np.float32(65504.0), _LARGEST_BF16)
_ESCAPE = -128
_LARGEST_ENTRY = np.float32(2.0**40)
_IDENTITY_TOLERANCE = 1e-2


class CalibratedCodec:
    """Parameters that were checked, and what is derived from them once; empty arrays leave a step out."""

    def __init__(
        self,
        codebook: int,
        cut: int,
        level: int,
        step: Singles,
        shift: Singles,
        scale: Singles,
        threshold: Singles,
        rounding: float,
        shrink: float,
        hadamard: int,
        matrix: Singles,
        inverse: Singles,
        tables: Bytes,
        table_of_channel: Bytes,
    ) -> None:
        if codebook == 0:
            raise ValueError("codebook is 0, which stands for none")
        self.key = (codebook, cut, level)
        self.step, self.shift, self.scale, self.threshold = step, shift, scale, threshold
        self.rounding, self.shrink = np.float32(rounding), np.float32(shrink)
        self.hadamard = hadamard
        self.matrix, self.inverse = matrix, inverse
        self.frequencies = tables.reshape(-1, 256)
        self.table_of_channel = table_of_channel
        self._check_width()
        self._check_scales()
        self._check_transform()
        self._check_tables()
        one = np.float32(1)
        self.inverse_step, self.inverse_scale = one / step, one / scale
        self.matrix, self.inverse = matrix.reshape(self.width, -1), inverse.reshape(self.width, -1)
        self.hadamard_scale = np.float32(1 / math.sqrt(hadamard)) if hadamard > 1 else one
        self.tables = Tables(self.frequencies, table_of_channel) if len(self.frequencies) else None

    @property
    def width(self) -> int:
        return len(self.step)

    def frame_bytes(self, dtype: int, shape: Sequence[int]) -> int:
        """Return the size of the frame at most."""
        info = self._declare(dtype, shape)
        return info.header_bytes + info.payload_bytes

    def encode(self, data: Buffer, dtype: int, shape: Sequence[int], threads: int = 1) -> bytes:
        """Encode the bytes of a row-major array into a frame; one thread does the work of all."""
        check_threads(threads)
        info = self._declare(dtype, shape)
        values = view_bytes(data)
        if values.size != info.data_bytes:
            raise ValueError(f"data has {values.size} bytes, its shape needs {info.data_bytes}")
        x = singles(values, dtype).reshape(info.rows, self.width)
        y = self._transform(x)
        codes, is_escape = self._quantise(y)
        if not np.isfinite(y[is_escape]).all():
            refuse_non_finite(values, info)
            raise ValueError("an element leaves the range of float32 when it is shifted and transformed")
        payload = self._encode_streams(info, codes, y, is_escape)
        info.payload_bytes = payload.size
        frame = np.concatenate((np.frombuffer(write_header(info), np.uint8), payload))
        seal(frame)
        return frame.tobytes()

    def encode_into(self, data: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> int:
        """Encode into the beginning of `out`; return the size of the frame."""
        memory = view_bytes(out)
        bound = self.frame_bytes(dtype, shape)
        if memory.size < bound:
            raise ValueError(f"the buffer has {memory.size} bytes, the frame may need {bound}")
        check_apart(memory[:bound], view_bytes(data), "the array and the buffer of its frame")
        frame = self.encode(data, dtype, shape, threads)
        memory[: len(frame)] = np.frombuffer(frame, np.uint8)
        return len(frame)

    def decode_into(self, frame: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> None:
        """Decode a frame of a dtype and shape into the bytes of an array."""
        given, memory = view_bytes(frame), view_bytes(out)
        check_array(inspect(given, (1 << 64) - 1), dtype, shape, memory, given)
        data = self.decode(frame, memory.size, threads)[2]
        if data.size:  # memory of no bytes counts as read-only
            memory[:] = data

    def decode(self, frame: Buffer, max_bytes: int | None, threads: int = 1) -> tuple[int, tuple[int, ...], Bytes]:
        """Decode a frame into dtype, shape and the bytes of the array; one thread does the work of all."""
        check_threads(threads)
        given = view_bytes(frame)
        info = inspect(given, max_bytes)
        if info.codec != CALIBRATED:
            return decode(frame, max_bytes)
        if info.key != self.key:
            raise CorruptFrameError(f"frame needs {describe_key(info.key)}, this codec is {describe_key(self.key)}")
        if info.row_length != self.width:
            raise CorruptFrameError(
                f"frame has rows of {info.row_length} elements, its codec has {self.width} channels"
            )
        verify_seal(given)
        codes, values = self._decode_streams(info, given[info.header_bytes :])
        y = self._dequantise(codes, values)
        largest = _LARGEST[info.dtype]
        with np.errstate(over="ignore", invalid="ignore"):
            x = self._transform_back(y)
            # Also of NaN, which a transform can make of numbers near the end of the range.
            below = np.where(x < largest, x, largest)
            x = np.where(below > -largest, below, -largest)
        return info.dtype, info.shape, shorten(x, info.dtype).reshape(-1).view(np.uint8)

    def _declare(self, dtype: int, shape: Sequence[int]) -> FrameInfo:
        info = declare(CALIBRATED, dtype, shape)
        if info.row_length != self.width:
            raise ValueError(f"rows have {info.row_length} elements, the codec has {self.width} channels")
        info.key = self.key
        if info.elements > _MOST_ELEMENTS:
            raise ValueError(f"shape has {info.elements} elements, a calibrated frame holds at most {_MOST_ELEMENTS}")
        info.payload_bytes = _directory_bytes(info.rows) + self._coded_bound(info.rows) + 2 * info.elements
        return info

    def _coded_bound(self, rows: int) -> int:
        if not self.tables:
            return rows * self.width
        whole, rest = divmod(rows, MAX_ROWS)
        return whole * stream_bound(MAX_ROWS, self.width) + (stream_bound(rest, self.width) if rest else 0)

    def _transform(self, x: Singles) -> Singles:
        with np.errstate(over="ignore", invalid="ignore"):
            y = x - self.shift if self.shift.size else x
            if self.scale.size:
                y = y * self.scale
            if self.hadamard > 1:
                return _hadamard(y, self.hadamard, self.hadamard_scale)
            return _multiply(y, self.matrix.T) if self.matrix.size else y

    def _transform_back(self, y: Singles) -> Singles:
        if self.hadamard > 1:
            y = _hadamard(y, self.hadamard, self.hadamard_scale)
        elif self.matrix.size:
            y = _multiply(y, self.inverse.T if self.inverse.size else self.matrix)
        if self.scale.size:
            y = y * self.inverse_scale
        return y + self.shift if self.shift.size else y

    def _quantise(self, y: Singles) -> tuple[Codes, npt.NDArray[np.bool_]]:
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.abs(y) * self.inverse_step + self.rounding
            is_kept = ~(np.abs(y) < self.threshold) if self.threshold.size else np.ones(y.shape, np.bool_)
            is_coded = is_kept & (steps < 128)
        codes = np.trunc(np.where(is_coded, steps, 0)).astype(np.int8)
        is_escape = is_kept & ~is_coded
        return np.where(is_escape, np.int8(_ESCAPE), np.where(y < 0, -codes, codes)), is_escape

    def _dequantise(self, codes: Codes, values: Shorts) -> Singles:
        numbers = codes.astype(np.float32)
        y = np.where(codes == 0, np.float32(0), numbers - np.copysign(self.shrink, numbers)) * self.step
        y[codes == _ESCAPE] = singles_from_bf16(values) + np.float32(0)  # no negative zero
        return y

    def _encode_streams(self, info: FrameInfo, codes: Codes, y: Singles, is_escape: npt.NDArray[np.bool_]) -> Bytes:
        parts: list[Bytes] = []
        sizes: list[tuple[int, int]] = []
        for start in range(0, info.rows, MAX_ROWS):
            rows = slice(start, start + MAX_ROWS)
            symbols = codes[rows].view(np.uint8)
            coded = encode_stream(self.tables, symbols) if self.tables else symbols.reshape(-1)
            escaped = y[rows][is_escape[rows]]
            values = bf16_from_singles(np.clip(escaped, -_LARGEST_BF16, _LARGEST_BF16))
            sizes.append((coded.size, values.size))
            parts += [coded, values.view(np.uint8)]
        info.parameter = sizes[-1][1] if sizes else 0
        directory = np.array(sizes[:-1], "<u4").reshape(-1).view(np.uint8)
        return np.concatenate([directory, *parts])

    def _decode_streams(self, info: FrameInfo, payload: Bytes) -> tuple[Codes, Shorts]:
        at = _directory_bytes(info.rows)
        if payload.size < at:
            raise _wrong_size(payload.size, at)
        if not info.rows and (info.parameter or payload.size):
            raise _wrong_size(payload.size, 0)
        directory = np.frombuffer(payload[:at].tobytes(), "<u4").reshape(-1, 2).tolist()
        codes = np.empty((info.rows, self.width), np.uint8)
        values: list[Bytes] = []
        for k, rows in enumerate(_stream_rows(info.rows)):
            left = payload.size - at
            coded, escapes = directory[k] if k < len(directory) else (left - 2 * info.parameter, info.parameter)
            if coded < 0 or coded + 2 * escapes > left:
                raise _wrong_size(payload.size, at + max(coded, 0) + 2 * escapes)
            here = codes[k * MAX_ROWS : k * MAX_ROWS + rows]
            here[:] = self._decode_codes(payload[at : at + coded], rows)
            at += coded + 2 * escapes
            values.append(payload[at - 2 * escapes : at])
            _check_values(here, values[-1])
        joined = np.concatenate(values).tobytes() if values else b""
        return codes.view(np.int8), np.frombuffer(joined, "<u2")

    def _decode_codes(self, coded: Bytes, rows: int) -> Bytes:
        if self.tables:
            return decode_stream(self.tables, coded, rows, self.width)
        if coded.size != rows * self.width:
            raise CorruptFrameError(f"frame has a stream of {coded.size} codes, its rows need {rows * self.width}")
        return coded.reshape(rows, self.width)

    def _check_width(self) -> None:
        if not 0 < self.width <= _LARGEST_WIDTH:
            raise ValueError(f"step has {self.width} channels, it must have from 1 to {_LARGEST_WIDTH}")
        for name in ("shift", "scale", "threshold"):
            size = len(getattr(self, name))
            if size not in (0, self.width):
                raise ValueError(f"{name} has {size} channels, step has {self.width}")
        needed = self.width if len(self.frequencies) else 0
        if len(self.table_of_channel) != needed:
            raise ValueError(
                f"table_of_channel has {len(self.table_of_channel)} channels, "
                f"with {len(self.frequencies)} tables it must have {needed}"
            )

    def _check_scales(self) -> None:
        _check_numbers("step", self.step, 2.0**-126, 2.0**120, "from 2^-126 to 2^120")
        _check_numbers("shift", self.shift, -(2.0**126), 2.0**126, "from -2^126 to 2^126")
        _check_numbers("scale", self.scale, 2.0**-120, 2.0**120, "from 2^-120 to 2^120")
        _check_numbers("threshold", self.threshold, 0, float(_LARGEST[0]), "finite and at least 0")
        if not 0 < self.rounding <= 0.5:
            raise ValueError(f"rounding is {self.rounding:g}, it must be in (0, 0.5]")
        if not 0 <= self.shrink < 0.5:
            raise ValueError(f"shrink is {self.shrink:g}, it must be in [0, 0.5)")

    def _check_transform(self) -> None:
        block, n = self.hadamard, self.width
        if block < 0 or block & (block - 1) or (block and n % block):
            raise ValueError(f"hadamard is {block}, it must be 0 or a power of two that divides the width of {n}")
        if not self.matrix.size and block < 2 and self.scale.size:
            raise ValueError("scale is given without a transform, where it belongs into step")
        if not self.matrix.size:
            if self.inverse.size:
                raise ValueError("inverse is given without a matrix")
            return
        if block:
            raise ValueError(f"hadamard is {block} beside a matrix, a codec has one transform")
        if self.matrix.size != n * n:
            raise ValueError(f"matrix has {self.matrix.size} numbers, a width of {n} needs {n * n}")
        if self.inverse.size:
            self._check_inverse()
            return
        norms = (self.matrix.reshape(n, n).astype(np.float64) ** 2).sum(axis=1)
        for row in np.flatnonzero(~(np.abs(norms - 1) <= 1e-3)).tolist():
            raise ValueError(f"row {row} of matrix has the squared norm {norms[row]:g}, an orthogonal matrix has 1")

    def _check_inverse(self) -> None:
        n = self.width
        if self.inverse.size != n * n:
            raise ValueError(f"inverse has {self.inverse.size} numbers, a width of {n} needs {n * n}")
        for name in ("matrix", "inverse"):
            entries = getattr(self, name)
            for k in np.flatnonzero(~(np.abs(entries) <= _LARGEST_ENTRY)).tolist():
                raise ValueError(f"{name}[{k // n}, {k % n}] is {entries[k]:g}, it must be from -2^40 to 2^40")
        vectors = _test_vectors(n)
        matrix, inverse = (entries.reshape(n, n).astype(np.float64) for entries in (self.matrix, self.inverse))
        deviations = np.abs(inverse @ (matrix @ vectors) - vectors).max(axis=1)
        worst = int(deviations.argmax())
        if deviations[worst] > _IDENTITY_TOLERANCE:
            raise ValueError(
                f"inverse times matrix deviates from the identity by {deviations[worst]:g} in row {worst}, "
                f"the limit is {_IDENTITY_TOLERANCE:g}"
            )

    def _check_tables(self) -> None:
        if len(self.frequencies) > _MOST_TABLES:
            raise ValueError(f"there are {len(self.frequencies)} tables, the limit is {_MOST_TABLES}")
        sums = self.frequencies.sum(axis=1, dtype=np.int64)
        for t in np.flatnonzero((sums < 1) | (sums > 255)).tolist():
            raise ValueError(f"tables[{t}] has frequencies that add up to {sums[t]}, they must add up to 1 to 255")
        for c in np.flatnonzero(self.table_of_channel >= max(len(self.frequencies), 1)).tolist():
            raise ValueError(
                f"table_of_channel[{c}] is {self.table_of_channel[c]}, there are {len(self.frequencies)} tables"
            )


def codebook_key(frame: Buffer, max_bytes: int) -> tuple[int, int, int]:
    """Return codebook, cut and level that a frame needs; zeros for none."""
    return inspect(view_bytes(frame), max_bytes).key


def _check_numbers(name: str, numbers: Singles, low: float, high: float, valid: str) -> None:
    for c in np.flatnonzero(~((numbers >= low) & (numbers <= high))).tolist():
        raise ValueError(f"{name}[{c}] is {numbers[c]:g}, it must be {valid}")


def _test_vectors(n: int) -> npt.NDArray[np.float64]:
    """Return eight columns of signs in no order that a matrix could have."""
    bits = (np.arange(n, dtype=np.uint32) + np.uint32(1)) * np.uint32(0x9E3779B1)
    bits = (bits ^ bits >> np.uint32(15)) * np.uint32(0x85EBCA77)
    signs: npt.NDArray[np.float64] = 1.0 - 2.0 * (bits[:, None] >> np.arange(24, 32, dtype=np.uint32) & 1)
    return signs


def _check_values(codes: Bytes, values: Bytes) -> None:
    escapes = int(np.count_nonzero(codes == _ESCAPE & 0xFF))
    numbers = np.frombuffer(values.tobytes(), "<u2")[:escapes]
    if numbers.size < escapes or bool(((numbers & 0x7FFF) >= 0x7F80).any()):
        raise CorruptFrameError("frame has escapes without a value or with one that is not finite")
    if values.size > 2 * escapes:
        raise CorruptFrameError(f"frame has {values.size // 2 - escapes} values more than escapes")


def _wrong_size(present: int, needed: int) -> CorruptFrameError:
    return CorruptFrameError(f"frame has a payload of {present} bytes, its streams need {needed}")


def _stream_rows(rows: int) -> list[int]:
    return [min(MAX_ROWS, rows - start) for start in range(0, rows, MAX_ROWS)]


def _directory_bytes(rows: int) -> int:
    """Return the bytes of two numbers for each stream but the last."""
    return 8 * max(-(-rows // MAX_ROWS) - 1, 0)


def _hadamard(y: Singles, block: int, scale: np.float32) -> Singles:
    distance = 1
    while distance < block:
        pairs = y.reshape(-1, 2, distance)
        y = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(y.shape)
        distance *= 2
    return y * scale


def _multiply(x: Singles, matrix: Singles) -> Singles:
    """Return x times matrix, summed one factor after the other."""
    y = np.zeros_like(x)
    for i in range(x.shape[1]):
        y += x[:, i : i + 1] * matrix[i]
    return y
