"""Codecs in NumPy and Numba; the counterpart of codec.cpp and scalar/.

Every operation on a float is the one the C++ does, in its order and in float32: the frames are the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orbitsplit._errors import CorruptFrameError
from orbitsplit._io.dtypes import describe_array
from orbitsplit._numba.float_bits import (
    bf16_from_singles,
    halves_from_singles,
    singles_from_bf16,
    singles_from_halves,
)
from orbitsplit._numba.jit import jit

from .frame import (
    BF16,
    BFLOAT16,
    CALIBRATED,
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    LOSSLESS_BF16,
    MAX_RANK,
    RAW,
    TOPK,
    FrameInfo,
    check_apart,
    check_threads,
    describe_key,
    fits,
    inspect,
    is_group,
    seal,
    verify_seal,
    view_bytes,
    write_header,
)
from .lossless import decode_values, encode_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    Bytes = npt.NDArray[np.uint8]
    Shorts = npt.NDArray[np.uint16]
    Words = npt.NDArray[np.uint32]
    Singles = npt.NDArray[np.float32]

_NAMES = {RAW: "raw", BF16: "bf16", INT8: "int8", INT4: "int4", TOPK: "topk", LOSSLESS_BF16: "lossless_bf16"}
_LARGEST = (np.float32(3.4028235e38), np.float32(65504.0), np.float32(3.3895314e38))
_INFINITE_KEY = (0x7F800000, 0x7C000000, 0x7F800000)

# Added to a float below 2^22 and taken away again it leaves the nearest integer, ties to even.
_ROUNDING_MAGIC = np.float32(12582912.0)
_SMALLEST_SCALE = np.float32(2.0**-126)
_ONE = np.float32(1.0)
_GAP_STEP = 255


def frame_bytes(dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> int:
    """Return the size of the frame, for topk an upper bound."""
    info = _declare(dtype, shape, codec, group, keep)
    return info.header_bytes + info.payload_bytes


def encode(
    data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float, threads: int = 1
) -> bytes:
    """Encode the bytes of a row-major array into a frame."""
    check_threads(threads)
    info = _declare(dtype, shape, codec, group, keep)
    values = view_bytes(data)
    if values.size != info.data_bytes:
        raise ValueError(f"data has {values.size} bytes, its shape needs {info.data_bytes}")
    payload = _encode_payload(values, info)
    info.payload_bytes = payload.size
    frame = np.concatenate((np.frombuffer(write_header(info), np.uint8), payload))
    seal(frame)
    return frame.tobytes()


def decode(frame: Buffer, max_bytes: int | None, threads: int = 1) -> tuple[int, tuple[int, ...], Bytes]:
    """Decode a frame into dtype, shape and the bytes of the array."""
    check_threads(threads)
    given = view_bytes(frame)
    info = inspect(given, max_bytes)
    verify_seal(given)
    payload = given[info.header_bytes :]
    return info.dtype, info.shape, _decode_payload(payload, info).reshape(-1).view(np.uint8)


def encode_into(
    data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float, out: Buffer, threads: int = 1
) -> int:
    """Encode into the beginning of `out`; return the size of the frame."""
    memory = view_bytes(out)
    bound = frame_bytes(dtype, shape, codec, group, keep)
    if memory.size < bound:
        raise ValueError(f"the buffer has {memory.size} bytes, the frame may need {bound}")
    check_apart(memory[:bound], view_bytes(data), "the array and the buffer of its frame")
    frame = encode(data, dtype, shape, codec, group, keep, threads)
    memory[: len(frame)] = np.frombuffer(frame, np.uint8)
    return len(frame)


def decode_into(frame: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> None:
    """Decode a frame of a dtype and shape into the bytes of an array."""
    given, memory = view_bytes(frame), view_bytes(out)
    info = inspect(given, (1 << 64) - 1)
    check_array(info, dtype, shape, memory, given)
    data = decode(frame, info.data_bytes, threads)[2]
    if data.size:  # memory of no bytes counts as read-only
        memory[:] = data


def check_array(info: FrameInfo, dtype: int, shape: Sequence[int], memory: Bytes, frame: Bytes) -> None:
    """Raise `ValueError` unless the frame holds an array of this dtype and shape, and `memory` apart takes it."""
    if (info.dtype, info.shape) != (dtype, tuple(shape)):
        raise ValueError(
            f"the frame holds {describe_array(info.dtype, info.shape)}, not {describe_array(dtype, shape)}"
        )
    if memory.size != info.data_bytes:
        raise ValueError(f"the buffer has {memory.size} bytes, the array has {info.data_bytes}")
    check_apart(memory, frame, "the frame and the buffer of its array")


def _declare(dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> FrameInfo:
    if codec in (INT8, INT4) and not is_group(group):
        raise ValueError(f"group is {group}, it must be a multiple of 8 from 8 to 65536")
    if codec == TOPK and not 0 < keep <= 1:
        raise ValueError(f"keep is {keep:f}, it must be in (0, 1]")
    info = declare(codec, dtype, shape)
    if codec in (INT8, INT4):
        info.parameter = group
    elif codec == TOPK:
        info.parameter = _kept_values(keep, info.row_length)
    info.payload_bytes = info.payload_bound()
    return info


def declare(codec: int, dtype: int, shape: Sequence[int]) -> FrameInfo:
    """Return what a frame of this array declares; parameter, payload and key are still to be filled in."""
    if len(shape) > MAX_RANK:
        raise ValueError(f"shape has rank {len(shape)}, the limit is {MAX_RANK}")
    if not fits(shape, dtype):
        raise ValueError("shape has a negative extent or 2^63 bytes or more")
    return FrameInfo(codec, dtype, False, 0, tuple(shape), 0)


def _kept_values(keep: float, length: int) -> int:
    if length > 0xFFFFFFFF:
        raise ValueError(f"rows have {length} elements, topk takes at most 4294967295")
    return max(1, round(keep * length)) if length else 0


def _encode_payload(data: Bytes, info: FrameInfo) -> Bytes:
    if info.codec == RAW:
        return data
    if info.codec == BF16:
        return bf16_from_singles(singles(data, info.dtype)).view(np.uint8)
    if info.codec == LOSSLESS_BF16:
        is_bf16 = info.dtype == BFLOAT16
        return encode_values(_bits(data, BFLOAT16) if is_bf16 else bf16_from_singles(singles(data, info.dtype)))
    if info.codec == TOPK:
        return _encode_topk(data, info)
    return _encode_groups(data, info)


def _decode_payload(payload: Bytes, info: FrameInfo) -> npt.NDArray[Any]:
    if info.codec == RAW:
        return np.array(payload)
    if info.codec == BF16:
        return _from_bf16(_aligned(payload, np.uint16), info.dtype)
    if info.codec == LOSSLESS_BF16:
        bits = decode_values(payload, info.elements)
        return bits if info.dtype == BFLOAT16 else _from_bf16(bits, info.dtype)
    if info.codec == TOPK:
        return _decode_topk(payload, info)
    if info.codec == CALIBRATED:
        raise CorruptFrameError(f"frame needs {describe_key(info.key)}, none was given")
    return _decode_groups(payload, info)


def _from_bf16(bits: Shorts, dtype: int) -> npt.NDArray[Any]:
    values = singles_from_bf16(bits)
    largest = _LARGEST[dtype]
    return shorten(np.where(np.isfinite(values), values.clip(-largest, largest), values), dtype)


def _encode_groups(data: Bytes, info: FrameInfo) -> Bytes:
    values = singles(data, info.dtype).reshape(info.rows, info.row_length)
    scales = np.empty((info.rows, info.groups_per_row), np.uint16)
    codes = np.empty((info.rows, info.row_length), np.int8)
    top = np.float32(127.0 if info.codec == INT8 else 7.0)
    if not _quantise(values, values.view(np.uint32), info.parameter, top, scales, codes):
        refuse_non_finite(data, info)
    packed = codes.view(np.uint8) if info.codec == INT8 else _pack(codes)
    return np.concatenate((scales.view(np.uint8).reshape(-1), packed.reshape(-1)))


def _decode_groups(payload: Bytes, info: FrameInfo) -> npt.NDArray[Any]:
    scale_bytes = info.rows * info.groups_per_row * 2
    scales = _aligned(payload[:scale_bytes], np.uint16)
    if np.any((scales < 0x0080) | (scales >= 0x7F80)):
        raise CorruptFrameError("frame has a scale that is not a positive, normal number")
    codes = payload[scale_bytes:]
    if info.codec == INT8:
        signed = codes.view(np.int8).reshape(info.rows, info.row_length)
    else:
        signed = _unpack(codes.reshape(info.rows, info.packed_row_bytes), info.row_length)
    values = np.empty((info.rows, info.row_length), np.float32)
    rows_of_scales = singles_from_bf16(scales).reshape(info.rows, info.groups_per_row)
    _dequantise(signed, rows_of_scales, info.parameter, _LARGEST[info.dtype], values)
    return shorten(values, info.dtype)


def _pack(codes: npt.NDArray[np.int8]) -> Bytes:
    halves = (codes + 8).view(np.uint8)
    packed: Bytes = halves[:, 0::2].copy()
    packed[:, : codes.shape[1] // 2] |= halves[:, 1::2] << 4
    return packed


def _unpack(packed: Bytes, length: int) -> npt.NDArray[np.int8]:
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    codes[:, 0::2] = (packed & 0x0F).view(np.int8) - 8
    codes[:, 1::2] = (packed >> 4).view(np.int8) - 8
    return codes[:, :length]


def _encode_topk(data: Bytes, info: FrameInfo) -> Bytes:
    bits = _bits(data, info.dtype).reshape(info.rows, info.row_length)
    keys = _keys(bits)
    if np.any(keys >= _INFINITE_KEY[info.dtype]):
        refuse_non_finite(data, info)
    is_kept = np.zeros(bits.shape, np.bool_)
    _select_largest(keys, info.parameter, is_kept)
    kept = bits[is_kept]
    if info.dtype == FLOAT32:
        largest = _LARGEST[BFLOAT16]
        kept = bf16_from_singles(kept.view(np.float32).clip(-largest, largest))
    positions = _gaps(is_kept, info.parameter)
    bitmaps = np.packbits(is_kept, axis=1, bitorder="little").reshape(-1)
    info.index_gaps = positions.size < bitmaps.size
    return np.concatenate((kept.view(np.uint8), positions if info.index_gaps else bitmaps))


def _gaps(is_kept: npt.NDArray[np.bool_], kept: int) -> Bytes:
    """Return the positions skipped before each kept one, in bytes of which only the last is below 255."""
    columns = np.nonzero(is_kept)[1].reshape(is_kept.shape[0], kept)
    skipped = (np.diff(columns, axis=1, prepend=-1) - 1).reshape(-1)
    ends = np.cumsum(skipped // _GAP_STEP + 1) - 1
    gaps = np.full(ends[-1] + 1 if ends.size else 0, _GAP_STEP, np.uint8)
    gaps[ends] = skipped % _GAP_STEP
    return gaps


def _decode_topk(payload: Bytes, info: FrameInfo) -> npt.NDArray[Any]:
    value_bytes = info.rows * info.parameter * 2
    if payload.size < value_bytes:
        raise CorruptFrameError(f"frame has a payload of {payload.size} bytes, its values need {value_bytes}")
    values: npt.NDArray[Any] = _aligned(payload[:value_bytes], np.uint16)
    if info.dtype == FLOAT32:
        values = values.astype(np.uint32) << 16
    read_positions = _columns_of_gaps if info.index_gaps else _columns_of_bitmaps
    columns = read_positions(payload[value_bytes:], info)
    if columns is None:
        raise CorruptFrameError(
            f"frame does not place exactly {info.parameter} values in each row of {info.row_length}"
        )
    out = np.zeros((info.rows, info.row_length), values.dtype)
    np.put_along_axis(out, columns, values.reshape(columns.shape), axis=1)
    return out


def _columns_of_bitmaps(bitmaps: Bytes, info: FrameInfo) -> npt.NDArray[np.int64] | None:
    bits = np.unpackbits(bitmaps.reshape(info.rows, info.bitmap_row_bytes), axis=1, bitorder="little")
    counts = bits[:, : info.row_length].sum(axis=1, dtype=np.int64)
    if bits[:, info.row_length :].any() or np.any(counts != info.parameter):
        return None
    return np.nonzero(bits)[1].reshape(info.rows, info.parameter)


def _columns_of_gaps(gaps: Bytes, info: FrameInfo) -> npt.NDArray[np.int64] | None:
    ends = np.flatnonzero(gaps != _GAP_STEP)
    if ends.size != info.rows * info.parameter or (gaps.size and ends[-1] != gaps.size - 1):
        return None
    steps = _GAP_STEP * (np.diff(ends, prepend=-1) - 1) + gaps[ends].astype(np.int64) + 1
    columns: npt.NDArray[np.int64] = np.cumsum(steps.reshape(info.rows, info.parameter), axis=1) - 1
    return None if np.any(columns >= info.row_length) else columns


def refuse_non_finite(data: Bytes, info: FrameInfo) -> None:
    """Raise `ValueError` that names the first element that is NaN or infinite, if there is one."""
    is_not_finite = _keys(_bits(data, info.dtype)) >= _INFINITE_KEY[info.dtype]
    if not is_not_finite.any():
        return
    first = int(np.argmax(is_not_finite))
    value = singles(data, info.dtype)[first]
    text = "nan" if np.isnan(value) else "inf" if value > 0 else "-inf"
    name = "a calibrated codec" if info.codec == CALIBRATED else _NAMES[info.codec]
    raise ValueError(
        f"element {first} is {text}, {name} takes finite values only (raw, bf16 and lossless_bf16 keep the others)"
    )


def _aligned(data: Bytes, dtype: Any) -> npt.NDArray[Any]:
    """View bytes as numbers, by a copy only where they do not lie on a multiple of their size."""
    view: npt.NDArray[Any] = data.view(dtype)
    return view if view.flags.aligned else view.copy()


def _bits(data: Bytes, dtype: int) -> npt.NDArray[Any]:
    return _aligned(data, np.uint32 if dtype == FLOAT32 else np.uint16)


def _keys(bits: npt.NDArray[Any]) -> Words:
    """Return integers that rank magnitudes, those of 16-bit dtypes shifted to 31 bits."""
    keys: Words = (bits.astype(np.uint32) << (32 - 8 * bits.itemsize)) & np.uint32(0x7FFFFFFF)
    return keys


def singles(data: Bytes, dtype: int) -> Singles:
    bits = _bits(data, dtype)
    if dtype == FLOAT32:
        return bits.view(np.float32)
    return singles_from_halves(bits) if dtype == FLOAT16 else singles_from_bf16(bits)


def shorten(values: Singles, dtype: int) -> npt.NDArray[Any]:
    if dtype == FLOAT32:
        return values
    return halves_from_singles(values) if dtype == FLOAT16 else bf16_from_singles(values)


@jit
def _quantise(
    values: Singles, bits: Words, group: int, top: np.float32, scales: Shorts, codes: npt.NDArray[np.int8]
) -> bool:
    rows, length = values.shape
    scale = np.empty(1, np.float32)
    for row in range(rows):
        for start in range(0, length, group):
            stop = min(start + group, length)
            where = start
            for i in range(start + 1, stop):
                if (bits[row, i] & 0x7FFFFFFF) > (bits[row, where] & 0x7FFFFFFF):
                    where = i
            if (bits[row, where] & 0x7FFFFFFF) >= 0x7F800000:
                return False
            scale[0] = max(abs(values[row, where]) / top, _SMALLEST_SCALE)
            # Up to the next bfloat16, so that nothing is ever clipped.
            scale_bits = (scale.view(np.uint32)[0] + 0xFFFF) >> 16
            scales[row, start // group] = scale_bits
            scale.view(np.uint32)[0] = scale_bits << 16
            inverse = _ONE / scale[0]
            for i in range(start, stop):
                rounded = (values[row, i] * inverse + _ROUNDING_MAGIC) - _ROUNDING_MAGIC
                codes[row, i] = np.int8(rounded)
    return True


@jit
def _dequantise(codes: npt.NDArray[np.int8], scales: Singles, group: int, largest: np.float32, out: Singles) -> None:
    for row in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            value = np.float32(codes[row, i]) * scales[row, i // group]
            out[row, i] = max(min(value, largest), -largest)


@jit
def _select_largest(keys: Words, kept: int, is_kept: npt.NDArray[np.bool_]) -> None:
    histogram = np.empty(2048, np.int64)
    for row in range(keys.shape[0]):
        prefix, missing = 0, kept
        # The kept-th largest key by radix: 11, 10 and 10 bits, most significant first.
        for shift, width in ((20, 11), (10, 10), (0, 10)):
            histogram[:] = 0
            for key in keys[row]:
                if key >> (shift + width) == prefix:
                    histogram[(key >> shift) & ((1 << width) - 1)] += 1
            digit = (1 << width) - 1
            while histogram[digit] < missing:
                missing -= histogram[digit]
                digit -= 1
            prefix = prefix << width | digit
        for i in range(keys.shape[1]):
            is_tie = keys[row, i] == prefix and missing > 0
            missing -= is_tie
            is_kept[row, i] = is_tie or keys[row, i] > prefix
