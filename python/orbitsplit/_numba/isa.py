"""Instruction sets; the counterpart of isa.cpp. Numba compiles for the processor it runs on: there is only one."""

from __future__ import annotations

_NAME = "numba"


def isa() -> str:
    """Return the name of the selected kernel set."""
    return _NAME


def isas() -> list[str]:
    """Return the names of the available kernel sets."""
    return [_NAME]


def set_isa(name: str) -> None:
    """Select a kernel set by name.

    Raises `ValueError` for a name that `isas` does not list.
    """
    if name != _NAME:
        raise ValueError(f'isa is "{name}"; this processor and build have {_NAME}')
