"""Headers of frames; the counterpart of frame.cpp. The bytes are laid out in docs/internals/frame_format.md."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orbitsplit._errors import CorruptFrameError

from .crc32c import extend_crc32c

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    Bytes = npt.NDArray[np.uint8]

RAW, BF16, INT8, INT4, TOPK, LOSSLESS_BF16, CALIBRATED = range(7)
FLOAT32, FLOAT16, BFLOAT16 = range(3)
ITEM_BYTES = (4, 2, 2)
MAX_RANK = 8

# magic, version, codec, dtype, rank, flags, reserved, parameter, codebook, payload bytes, cut, level, checksum
_FIXED = struct.Struct("<4sBBBBHHIQQHHI")
_CHECKSUM_AT = 36
_MAGIC = b"OSPF"
_VERSION = 1
_INDEX_GAPS = 1
_LARGEST_DEFAULT = 1 << 30


@dataclass
class FrameInfo:
    """What a frame declares about itself; the fields of `FrameInfo` in frame.hpp."""

    codec: int
    dtype: int
    index_gaps: bool
    parameter: int
    shape: tuple[int, ...]
    payload_bytes: int
    key: tuple[int, int, int] = (0, 0, 0)  # codebook, cut, level

    @property
    def row_length(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return 0 if 0 in self.shape else math.prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        return self.rows * self.row_length

    @property
    def data_bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def header_bytes(self) -> int:
        return _FIXED.size + 8 * len(self.shape)

    @property
    def groups_per_row(self) -> int:
        return -(-self.row_length // self.parameter)

    @property
    def packed_row_bytes(self) -> int:
        return (self.row_length + 1) // 2

    @property
    def bitmap_row_bytes(self) -> int:
        return (self.row_length + 7) // 8

    def payload_bound(self) -> int:
        """Return the size of the payload, an upper bound where kept positions are gaps and for lossless_bf16."""
        if self.codec == RAW:
            return self.data_bytes
        if self.codec == BF16:
            return self.elements * 2
        if self.codec == INT8:
            return self.rows * self.groups_per_row * 2 + self.elements
        if self.codec == INT4:
            return self.rows * (self.groups_per_row * 2 + self.packed_row_bytes)
        if self.codec == TOPK:
            return self.rows * (self.parameter * 2 + self.bitmap_row_bytes)
        return 1 + 2 * self.elements if self.elements else 0


def fits(shape: Sequence[int], dtype: int) -> bool:
    """Return whether the non-empty axes multiply to less than 2^63 bytes and none is negative."""
    return min(shape, default=0) >= 0 and math.prod(n for n in shape if n) * ITEM_BYTES[dtype] < 1 << 63


def is_group(group: int) -> bool:
    return 8 <= group <= 65536 and group % 8 == 0


def describe_key(key: tuple[int, int, int]) -> str:
    return f"codebook {key[0]}, cut {key[1]}, level {key[2]}"


def write_header(info: FrameInfo) -> bytes:
    """Return the header with a checksum of zero."""
    flags = _INDEX_GAPS if info.index_gaps else 0
    identity = (_MAGIC, _VERSION, info.codec, info.dtype, len(info.shape))
    fixed = _FIXED.pack(*identity, flags, 0, info.parameter, info.key[0], info.payload_bytes, *info.key[1:], 0)
    return fixed + struct.pack(f"<{len(info.shape)}Q", *info.shape)


def seal(frame: Bytes) -> None:
    """Write the checksum over everything but itself."""
    frame[_CHECKSUM_AT : _CHECKSUM_AT + 4].view("<u4")[0] = _checksum(frame)


def verify_seal(frame: Bytes) -> None:
    """Raise `CorruptFrameError` unless the checksum is that of the bytes."""
    written = int.from_bytes(frame[_CHECKSUM_AT : _CHECKSUM_AT + 4].tobytes(), "little")
    computed = _checksum(frame)
    if written != computed:
        raise CorruptFrameError(f"frame is damaged: it carries checksum {written}, its bytes give {computed}")


def default_max_bytes(frame_bytes: int) -> int:
    """Return the bytes of the largest array that a frame of this size may hold unless its reader sets a limit."""
    return min(_LARGEST_DEFAULT, (16 << 20) + 8192 * frame_bytes)


def inspect(frame: Bytes, max_bytes: int | None) -> FrameInfo:
    """Read and check everything but the payload; raise `CorruptFrameError`."""
    _check_identity(frame)
    codec, dtype, rank, flags, spare, parameter, codebook, payload_bytes, cut, level = _FIXED.unpack(
        frame[: _FIXED.size].tobytes()
    )[2:12]
    if flags & ~(_INDEX_GAPS if codec == TOPK else 0):
        raise CorruptFrameError(f"frame has flags {flags} this reader does not know")
    if spare or (codec != CALIBRATED and (cut or level)):
        raise CorruptFrameError("frame uses reserved header bytes, this reader expects zeros")
    if (codec == CALIBRATED) != bool(codebook):
        # A damaged frame is reported as that: it would be in vain to look for the codebook it names.
        verify_seal(frame)
        if codebook:
            raise CorruptFrameError("frame names a codebook, its codec has none")
        raise CorruptFrameError("frame is calibrated and names no codebook")
    shape = struct.unpack(f"<{rank}q", frame[_FIXED.size : _FIXED.size + 8 * rank].tobytes())
    info = FrameInfo(codec, dtype, flags == _INDEX_GAPS, parameter, shape, payload_bytes, (codebook, cut, level))
    _check_sizes(info, frame.size - info.header_bytes, max_bytes)
    return info


def _check_identity(frame: Bytes) -> None:
    if frame.size < _FIXED.size:
        raise CorruptFrameError(f"frame has {frame.size} bytes, a header needs at least {_FIXED.size}")
    if frame[:4].tobytes() != _MAGIC:
        raise CorruptFrameError("frame does not begin with OSPF")
    version, codec, dtype, rank = frame[4:8].tolist()
    if version != _VERSION:
        raise CorruptFrameError(f"frame has version {version}, this reader knows 1")
    if codec > CALIBRATED:
        raise CorruptFrameError(f"frame has codec id {codec}, this reader knows 0 to 6")
    if dtype > BFLOAT16:
        raise CorruptFrameError(f"frame has dtype id {dtype}, this reader knows 0 to 2")
    if rank > MAX_RANK:
        raise CorruptFrameError(f"frame has rank {rank}, the limit is {MAX_RANK}")
    header = _FIXED.size + 8 * rank
    if frame.size < header:
        raise CorruptFrameError(f"frame has {frame.size} bytes, its header needs {header}")


def _check_parameter(info: FrameInfo) -> None:
    if info.codec in (RAW, BF16, LOSSLESS_BF16):
        if info.parameter:
            raise CorruptFrameError(f"frame has codec parameter {info.parameter}, its codec has none")
    elif info.codec in (INT8, INT4):
        if not is_group(info.parameter):
            raise CorruptFrameError(f"frame has groups of {info.parameter}, a group is a multiple of 8 from 8 to 65536")
    elif info.codec == CALIBRATED:
        return  # what it counts shows in reading
    elif info.parameter > info.row_length or (info.parameter == 0 and info.row_length > 0):
        raise CorruptFrameError(f"frame keeps {info.parameter} values of rows of {info.row_length}")


def _check_limit(array_bytes: int, frame_bytes: int, max_bytes: int | None) -> None:
    limit = default_max_bytes(frame_bytes) if max_bytes is None else max_bytes
    if array_bytes <= limit:
        return
    hint = f" for a frame of {frame_bytes} unless max_bytes is given" if max_bytes is None else ""
    raise CorruptFrameError(f"frame declares an array of {array_bytes} bytes, the limit is {limit}{hint}")


def _check_sizes(info: FrameInfo, present: int, max_bytes: int | None) -> None:
    if not fits(info.shape, info.dtype):
        raise CorruptFrameError("frame declares a shape of 2^63 bytes or more")
    _check_limit(info.data_bytes, info.header_bytes + present, max_bytes)
    _check_parameter(info)
    if info.payload_bytes != present:
        raise CorruptFrameError(f"frame declares a payload of {info.payload_bytes} bytes, it has {present}")
    if info.codec == CALIBRATED:
        return  # its parameters decide, which are not in the frame
    bound = info.payload_bound()
    if info.codec == LOSSLESS_BF16:
        least = 1 + info.elements if info.elements else 0
        if not least <= present <= bound:
            raise CorruptFrameError(
                f"frame has a payload of {present} bytes, its shape and codec need {least} to {bound}"
            )
        return
    if present >= bound if info.index_gaps else present != bound:
        fewer = "fewer than " if info.index_gaps else ""
        raise CorruptFrameError(f"frame has a payload of {present} bytes, its shape and codec need {fewer}{bound}")


def check_threads(threads: int) -> None:
    """Raise `ValueError` for a number of threads the C++ extension refuses; here there is always one."""
    if not 1 <= threads <= 256:
        raise ValueError(f"threads is {threads}, it must be from 1 to 256")


def view_bytes(data: Buffer) -> Bytes:
    """Return the memory of a contiguous object as bytes."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("memory is not contiguous")
    # An empty view with several axes cannot be cast.
    return np.frombuffer(view.cast("B") if view.nbytes else b"", np.uint8)


def check_apart(written: Bytes, read: Bytes, what: str) -> None:
    """Raise `ValueError` if two contiguous arrays overlap in memory."""
    first, second = written.ctypes.data, read.ctypes.data
    if written.size and read.size and first < second + read.nbytes and second < first + written.nbytes:
        raise ValueError(f"{what} overlap in memory")


def crc32c(data: Buffer) -> int:
    """Return the CRC-32C (Castagnoli) of the bytes: that of b"123456789" is 0xE3069283."""
    return int(extend_crc32c(view_bytes(data), 0))


def _checksum(frame: Bytes) -> int:
    blank = np.zeros(4, np.uint8)
    before = extend_crc32c(blank, extend_crc32c(frame[:_CHECKSUM_AT], 0))
    return int(extend_crc32c(frame[_CHECKSUM_AT + 4 :], before))
