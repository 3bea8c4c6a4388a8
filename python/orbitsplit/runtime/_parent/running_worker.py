"""A worker process that runs, its last heartbeat, and its end."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import IO

from orbitsplit.runtime._messages.control import Heartbeat

from .worker_process import WorkerProcess

_LOG_LINES = 12


@dataclass
class RunningWorker:
    """A worker: its number, its process (None: on another machine), and its last heartbeat."""

    number: int
    process: WorkerProcess | None
    log: IO[bytes] | None
    heartbeat: Heartbeat | None = None
    changed_s: float = field(default_factory=time.monotonic)

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def close_log(self) -> None:
        if self.log is not None:
            self.log.close()


def last_lines(log: IO[bytes] | None) -> str:
    if log is None:
        return ""
    try:
        log.seek(0)
        text = log.read().decode(errors="replace")
    except ValueError:  # closed: another thread has ended all processes
        return ""
    lines = text.splitlines()[-_LOG_LINES:]
    return "\n\n" + "\n".join(lines) if lines else ""


def signal_name(number: int) -> str:
    # Real-time signals have no name.
    names = {int(known): known.name for known in signal.Signals}
    return f"{number} ({names[number]})" if number in names else str(number)


def kill_all(started: list[WorkerProcess]) -> int:
    """Kill and wait for processes; return how many were running."""
    processes = list(started)  # the finalizer's argument may change meanwhile
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
    return len(running)
