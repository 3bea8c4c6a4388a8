"""A worker process that runs, its last heartbeat, and its end."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import IO

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import Failure, Heartbeat
from orbitsplit.runtime._messages.control_store import ControlStore

from .launcher import Launcher
from .worker_process import WorkerProcess

_LOG_LINES = 12
# The priority of a cause that is only the consequence of another.
CONSEQUENCE = 3


@dataclass
class RunningWorker:
    """A worker: its number, its process (None: on another machine), and its last heartbeat."""

    number: int
    process: WorkerProcess | None
    log: IO[bytes] | None
    heartbeat: Heartbeat | None = None
    changed_s: float = field(default_factory=time.monotonic)
    is_leaving: bool = False  # it hands its caches over, and ends

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def is_lost(self) -> bool:
        """Whether its process has ended, other than one that is to leave and had nothing to report."""
        return self.process is not None and self.process.poll() not in ((None, 0) if self.is_leaving else (None,))

    def close_log(self) -> None:
        if self.log is not None:
            self.log.close()


def cause_of(
    worker: RunningWorker, name: str, node: str, session: int, store: ControlStore, launcher: Launcher
) -> tuple[int, TransportError]:
    """Return why a worker has failed, with its priority among the causes of a loss: 0 is the most likely one.

    `name` is that of its stage in messages.
    """
    key = control.failure_key(session, worker.number)
    if store.has(key):
        failure = Failure.from_json(store.get(key))
        message = f"{name} failed: {failure.summary}"
        if failure.is_consequence:
            return CONSEQUENCE, TransportError(message, kind="peer")
        if failure.link is not None:
            return 1, TransportError(failure.summary, kind=failure.kind, link=failure.link)
        return 1, TransportError(f"{message}\n\n{failure.traceback.rstrip()}", kind=failure.kind, node=node)
    loss = None if worker.process is None else launcher.loss(worker.process)
    if loss is not None:
        return 0, TransportError(f"{name} is lost: {loss.reason}", kind=loss.kind, node=node)
    code = (0 if worker.process is None else worker.process.poll()) or 0
    if code < 0:
        # Gloo may abort a process that lost its neighbour.
        priority = 2 if -code == signal.SIGABRT else 0
        assert worker.process is not None, "it has an exit code"
        is_memory = -code == signal.SIGKILL and launcher.ran_out_of_memory(worker.process)
        why = ", because the machine ran out of memory" if is_memory else ""
        message = f"{name} was killed by signal {signal_name(-code)}{why}{last_lines(worker.log)}"
        return priority, TransportError(message, kind="memory" if is_memory else "killed", node=node)
    message = f"{name} ended with exit code {code}{last_lines(worker.log)}"
    return 2, TransportError(message, kind="killed", node=node)


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
