"""Resident memory of this process, as the kernel counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_SMAPS = Path("/proc/self/smaps")
_VMSTAT = Path("/proc/vmstat")


def resident_bytes() -> int:
    """Return the bytes resident now (their peak where the system does not report that)."""
    return _from_status("VmRSS") or peak_bytes()


def library_bytes() -> int:
    """Return the bytes of shared libraries that are resident, 0 where the system does not say."""
    if not _SMAPS.exists():
        return 0
    total, is_library = 0, False
    for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, rest = line.partition(":")
        if " " in key:  # the first line of a mapping: addresses, flags, file
            is_library = ".so" in line.rpartition("/")[2]
        elif key == "Rss" and is_library:
            total += int(rest.split()[0]) * 1024
    return total


def peak_bytes() -> int:
    """Return the peak of resident bytes since the process started its program."""
    # Not ru_maxrss where there is a choice: Linux carries it over exec, so it counts the parent that started us.
    return _from_status("VmHWM") or _max_rss()


def _from_status(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation, for which torch has no exception of its own."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory, 0 where it does not report that."""
    if not _VMSTAT.exists():
        return 0
    lines = (line.split() for line in _VMSTAT.read_text(encoding="ascii").splitlines())
    return next((int(count) for name, count in lines if name == "oom_kill"), 0)
