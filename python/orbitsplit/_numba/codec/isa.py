"""Instruction sets: Numba compiles for the processor it runs on, so there is one to choose from."""

from __future__ import annotations

_NAME = "numba"


def isa() -> str:
    """Return the name of the kernels that run."""
    return _NAME


def isas() -> list[str]:
    """Return the names of all kernels there are."""
    return [_NAME]


def set_isa(name: str) -> None:
    """Choose kernels by name.

    Raises `ValueError` for a name that `isas` does not list.
    """
    if name != _NAME:
        raise ValueError(f'isa is "{name}"; this processor and build have {_NAME}')
