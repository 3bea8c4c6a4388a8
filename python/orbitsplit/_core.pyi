# Extension module in C++; orbitsplit._fallback has the same functions.
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__version__: str

# Codecs (bind_codec.cpp). `dtype` and `codec` are the numbers that frames carry.
def frame_bytes(dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> int: ...
def encode(data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> bytes: ...
def decode(frame: Buffer, max_bytes: int) -> tuple[int, tuple[int, ...], npt.NDArray[np.uint8]]: ...
def crc32c(data: Buffer) -> int: ...
