# Extension module in C++; orbitsplit._fallback has the same functions.
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from ._problem import Problem

__version__: str

# Codecs (bind_codec.cpp). `dtype` and `codec` are the numbers that frames carry.
def frame_bytes(dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> int: ...
def encode(data: Buffer, dtype: int, shape: Sequence[int], codec: int, group: int, keep: float) -> bytes: ...
def decode(frame: Buffer, max_bytes: int) -> tuple[int, tuple[int, ...], npt.NDArray[np.uint8]]: ...
def crc32c(data: Buffer) -> int: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...

# Planner (bind_problem.cpp, bind_planner.cpp). Rows of stages are (node, start, stop, level or -1); the results
# are the fields of orbitsplit._problem.Evaluation and Solution.
def validate_problem(problem: Problem) -> None: ...
def evaluate(problem: Problem, stages: npt.NDArray[np.int32]) -> dict[str, Any]: ...
def solve(
    problem: Problem,
    objective: str,
    max_nodes: int | None,
    gap: float,
    time_limit_s: float,
    max_labels: int,
    max_tracked: int,
    max_bits: int,
) -> dict[str, Any]: ...
