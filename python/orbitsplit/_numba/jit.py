"""Compilation of the fallback's loops, in one place because Numba's decorators carry no types.

Numba notices a changed file by its own time stamp alone: after editing a function that another file's compiled
functions call, delete `__pycache__`, or they keep running the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def jit(function: _Function) -> _Function:
    """Compile a function at its first call and keep the machine code on disk for later processes."""
    compiled: _Function = numba.njit(cache=True)(function)
    return compiled


def inlined(function: _Function) -> _Function:
    """Compile a function into its callers: a boundary costs a second of compilation where arrays cross it."""
    compiled: _Function = numba.njit(inline="always")(function)
    return compiled
