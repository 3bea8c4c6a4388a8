"""What coordinator and hosts share: the protocol, what is asked of a host, clocks, and how they notice silence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# It grows with every change of the messages between coordinator, hosts and workers.
PROTOCOL = 3
# Each end says so often that it is alive.
TICK_S = 0.5
_MEMINFO = Path("/proc/meminfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ShortProfile:
    """What is timed: the layers [start, stop) of a model, as a profile of it was made.

    With `slowdown` s the node is emulated, as its stages are: what takes c seconds of processor time counts as s * c.
    """

    model: str
    start: int
    stop: int
    prompt_tokens: int
    batch_size: int
    dtype: str
    threads: int
    slowdown: float = 1.0


class Silence:
    """How long the other end has said nothing, in ticks of this process: while it is suspended itself, none pass."""

    def __init__(self) -> None:
        self._ticks = 0

    def tick(self) -> float:
        """Count a tick; return the seconds of silence."""
        self._ticks += 1
        return self._ticks * TICK_S

    def end(self) -> None:
        """Take note of a message."""
        self._ticks = 0


def clock_id() -> str:
    """Return what machines with the same monotonic clock have in common, empty where the system does not say."""
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


def memory_bytes() -> int:
    """Return the memory of this machine, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def available_bytes() -> int:
    """Return the memory that is free for new processes, all memory where the system does not say."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return memory_bytes()
