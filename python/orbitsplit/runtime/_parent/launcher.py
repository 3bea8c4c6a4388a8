"""Where the processes of workers are started: here, or on hosts that have joined. Nothing else knows the difference."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import IO, NamedTuple, Protocol

from orbitsplit.runtime._memory import oom_kills
from orbitsplit.runtime._messages.environment import INTERFACE_VARIABLE, SECRET_VARIABLE
from orbitsplit.runtime._messages.interfaces import interface_names

from . import worker_process
from .worker_process import WorkerProcess


class Loss(NamedTuple):
    """The loss of a whole host: its kind as in `TransportError`, and what happened."""

    kind: str
    reason: str


class Launcher(Protocol):
    """Starts processes of workers, and knows about their ends what no exit code says."""

    def check(self) -> None:
        """Raise TransportError where no process may be started, and none may work on."""

    def start(self, node: str, number: int, session: int, *, threads: int, log: IO[bytes]) -> WorkerProcess:
        """Start the process of worker `number` for a node; `log` gets its output, on another host once it has ended.

        Raises TransportError that names the node if its host is not there, OSError if the process cannot be started.
        """

    def loss(self, process: WorkerProcess) -> Loss | None:
        """Return how the host of a process was lost, None if it is there."""

    def ran_out_of_memory(self, process: WorkerProcess) -> bool:
        """Return whether the system has killed a process for lack of memory, as far as it says."""

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts are not there."""

    def take_returned(self) -> set[str]:
        """Return the nodes whose hosts have come back since the last call."""

    def close(self) -> None:
        """Take note that the pipeline has ended: another one may use what it ran on. May be called twice."""


class LocalLauncher:
    """Starts all processes on this machine, whatever node they are of."""

    def __init__(self, store_address: str, secret: str | None = None) -> None:
        self._store_address = store_address
        self._environment = {} if secret is None else {SECRET_VARIABLE: secret}
        self._oom_kills = oom_kills()

    def check(self) -> None:
        """Do nothing: there is no other parent."""

    def start(self, node: str, number: int, session: int, *, threads: int, log: IO[bytes]) -> WorkerProcess:
        """Start a process."""
        arguments = (self._store_address, str(number), str(session))
        environment = {"OMP_NUM_THREADS": str(threads), **_loopback(), **self._environment}
        return worker_process.start(*arguments, log=log, environment=environment)

    def loss(self, process: WorkerProcess) -> Loss | None:
        """Return None: this machine is there."""
        return None

    def ran_out_of_memory(self, process: WorkerProcess) -> bool:
        """Return whether any process here was killed for lack of memory; the system does not say which."""
        return oom_kills() > self._oom_kills

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return none."""
        return []

    def take_returned(self) -> set[str]:
        """Return none."""
        return set()

    def close(self) -> None:
        """Do nothing: any number of pipelines may run on this machine."""


def new_log() -> IO[bytes]:
    """Return a file for the output of a process, which lives as long as it is open."""
    return tempfile.TemporaryFile()


def _loopback() -> dict[str, str]:
    # All stages are on this host, so Gloo should not listen on its other interfaces.
    loopback = next((name for name in interface_names() if name in ("lo", "lo0")), None)
    return {} if loopback is None or INTERFACE_VARIABLE in os.environ else {INTERFACE_VARIABLE: loopback}
