"""Compilation of the fallback's loops, in one place because Numba's decorators carry no types.

Numba notices a changed file by its own time stamp alone: after editing a function that another file's compiled
functions call, delete `__pycache__`, or they keep running the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Operations of compiled code between two returns to Python, which handles signals and reads the time only there: 10 ms.
_OPERATIONS = 4_000_000


def jit(function: _Function) -> _Function:
    """Compile a function at its first call and keep the machine code on disk for later processes."""
    compiled: _Function = numba.njit(cache=True)(function)
    return compiled


def inlined(function: _Function) -> _Function:
    """Compile a function into its callers: a boundary costs a second of compilation where arrays cross it."""
    compiled: _Function = numba.njit(inline="always")(function)
    return compiled


def slices(count: int, operations: int) -> Iterator[tuple[int, int]]:
    """Yield ranges that cover `count` steps of so many operations, each short enough for Ctrl-C and time limits."""
    step = max(1, _OPERATIONS // max(1, operations))
    for start in range(0, count, step):
        yield start, min(start + step, count)
