# Extension module in C++; orbitsplit._numba has the same functions.
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from ._planner.problem import Problem

__version__: str

# Codecs (bind_codec.cpp). `dtype` and `codec` are the numbers that frames carry.
def frame_bytes(dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> int: ...
def encode(
    data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float, threads: int = 1
) -> bytes: ...
def decode(
    frame: Buffer, max_bytes: int | None, threads: int = 1
) -> tuple[int, tuple[int, ...], npt.NDArray[np.uint8]]: ...
def encode_into(
    data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float, out: Buffer, threads: int = 1
) -> int: ...
def decode_into(frame: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> None: ...
def crc32c(data: Buffer) -> int: ...

# Calibrated codecs (bind_calibrated.cpp). Empty arrays leave a step out; `tables` are rows of 256, flat.
class CalibratedCodec:
    def __init__(
        self,
        codebook: int,
        cut: int,
        level: int,
        step: npt.NDArray[np.float32],
        shift: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        threshold: npt.NDArray[np.float32],
        rounding: float,
        shrink: float,
        hadamard: int,
        matrix: npt.NDArray[np.float32],
        inverse: npt.NDArray[np.float32],
        tables: npt.NDArray[np.uint8],
        table_of_channel: npt.NDArray[np.uint8],
    ) -> None: ...
    def frame_bytes(self, dtype: int, shape: Sequence[int]) -> int: ...
    def encode(self, data: Buffer, dtype: int, shape: Sequence[int], threads: int = 1) -> bytes: ...
    def encode_into(self, data: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> int: ...
    def decode_into(self, frame: Buffer, dtype: int, shape: Sequence[int], out: Buffer, threads: int = 1) -> None: ...
    def decode(
        self, frame: Buffer, max_bytes: int | None, threads: int = 1
    ) -> tuple[int, tuple[int, ...], npt.NDArray[np.uint8]]: ...

def table_from_counts(counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]: ...
def inverse_of(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
def codebook_key(frame: Buffer, max_bytes: int) -> tuple[int, int, int]: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...

# Memory kept between calls (bind_encoder.cpp). None: the object cannot be read in place, or is no array of this
# dtype and shape.
class Encoder:
    @overload
    def __init__(self, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float, threads: int) -> None: ...
    @overload
    def __init__(self, dtype: int, shape: Sequence[int], codec: CalibratedCodec, threads: int) -> None: ...
    def encode(self, x: Any) -> memoryview | None: ...
    def encode_bytes(self, data: Buffer) -> memoryview: ...

class Decoder:
    def __init__(
        self, dtype: int, shape: Sequence[int], array: Buffer, codec: CalibratedCodec | None, threads: int
    ) -> None: ...
    def decode(self, frame: Buffer) -> None: ...

# Quantised weights (bind_weights.cpp). `format` is 0 for int8, 1 for int4; arrays are contiguous, of float32, int64
# (indices) or bytes. `importance` may be empty.
def quantized_bytes(format: int, rows: int, columns: int) -> int: ...
def quantize(
    values: Buffer, format: int, rows: int, columns: int, out: Buffer, importance: Buffer, threads: int = 1
) -> None: ...
def dequantize(
    data: Buffer, format: int, rows: int, columns: int, first: int, out: Buffer, threads: int = 1
) -> None: ...
def dequantize_rows(
    data: Buffer, format: int, rows: int, columns: int, indices: Buffer, out: Buffer, threads: int = 1
) -> None: ...
def multiply(
    data: Buffer, format: int, rows: int, columns: int, x: Buffer, inputs: int, out: Buffer, threads: int = 1
) -> None: ...

# A layer of a decoder on quantised weights (bind_decoder.cpp). `matrices` has (data, format, rows, columns) by name,
# `biases` and `scales` float32 arrays for the names that have one. A cache is (keys, values, visible, new tokens of a
# sequence); `visible` may be empty.
class DecoderLayer:
    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_size: int,
        attention_scale: float,
        activation: int,
        epsilon: float,
        matrices: dict[str, tuple[Any, int, int, int]],
        biases: dict[str, Any],
        scales: dict[str, Any],
    ) -> None: ...
    def project(
        self,
        x: Buffer,
        rows: int,
        cosines: Buffer,
        sines: Buffer,
        queries: Buffer,
        keys: Buffer,
        values: Buffer,
        threads: int = 1,
    ) -> None: ...
    def attend(
        self,
        x: Buffer,
        rows: int,
        queries: Buffer,
        caches: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Buffer, int]],
        out: Buffer,
        threads: int = 1,
    ) -> None: ...

# Planner (bind_problem.cpp, bind_planner.cpp). Rows of stages are (node, start, stop, level or -1); the results
# are the fields of orbitsplit.Evaluation and orbitsplit.Solution.
class PreparedProblem:  # made by prepare_problem() alone
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

def prepare_problem(problem: Problem) -> PreparedProblem: ...
def evaluate(problem: Problem | PreparedProblem, stages: npt.NDArray[np.int32]) -> dict[str, Any]: ...
def solve(
    problem: Problem | PreparedProblem,
    objective: str,
    max_nodes: int | None,
    gap: float,
    time_limit_s: float,
    max_labels: int,
    max_bytes: int,
    threads: int,
    incumbent: npt.NDArray[np.int32],
    max_ng_size: int,
    max_bitset_nodes: int,
) -> dict[str, Any]: ...
