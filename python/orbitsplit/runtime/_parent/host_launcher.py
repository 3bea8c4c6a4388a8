"""Starts the processes of nodes on their hosts, for one pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from .hosts import Hosts
from .joined_host import RemoteProcess
from .launcher import Loss
from .worker_process import WorkerProcess


class HostLauncher:
    """Starts the workers of the control store at an address of this machine, on the hosts of their nodes.

    Raises TransportError of kind "host" while another pipeline runs on these hosts.
    """

    def __init__(self, hosts: Hosts, store_address: str, secret: str) -> None:
        hosts.reserve(store_address)
        self._hosts = hosts
        self._secret = secret
        self._is_closed = False

    def check(self) -> None:
        """Raise TransportError where this coordinator must work no more."""
        self._hosts.check()

    def start(self, node: str, number: int, session: int, *, threads: int, log: IO[bytes]) -> WorkerProcess:
        """Start a process on the node's host."""
        return self._hosts.host(node).start(number, session, threads=threads, secret=self._secret, log=log)

    def loss(self, process: WorkerProcess) -> Loss | None:
        """Return how the host of a process was lost, None if it is there."""
        assert isinstance(process, RemoteProcess)
        return process.loss

    def ran_out_of_memory(self, process: WorkerProcess) -> bool:
        """Return whether a process was killed for lack of memory, as its host says."""
        assert isinstance(process, RemoteProcess)
        return process.ran_out_of_memory

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts are not there."""
        return self._hosts.absent(nodes)

    def take_returned(self) -> set[str]:
        """Return the nodes whose hosts have come back since the last call."""
        return self._hosts.take_returned()

    def close(self) -> None:
        """Make the hosts free for another pipeline."""
        if not self._is_closed:
            self._is_closed = True
            self._hosts.release()
