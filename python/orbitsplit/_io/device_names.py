"""Names of the devices that a stage runs on, as torch writes them."""

from __future__ import annotations

import re

from .validation import check_string, quoted

CPU = "cpu"
_NAMES = re.compile(r"cpu|cuda(:(0|[1-9]\d?))?|mps")


def check_device_name(what: str, name: object) -> None:
    """Raise ValueError unless a device is "cpu", "cuda", "cuda:1" (by its number) or "mps"; `what` has it."""
    check_string(what, name)
    if not _NAMES.fullmatch(str(name)):
        raise ValueError(f'{what} is {quoted(name)}, must be "cpu", "cuda", "cuda:1" and so on, or "mps"')
