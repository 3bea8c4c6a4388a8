"""Hosts: agents of nodes as processes of their own, each with the processes that it has started. Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# In the folder of a fleet, which has the log of each agent as well.
CREDENTIALS = "fleet.pem"

Command = Callable[[str, Sequence[str]], list[str]]


class Fleet:
    """The hosts of nodes, all on this machine; `command` may put a node's command elsewhere, as into a namespace."""

    def __init__(
        self, folder: Path, coordinator: str, command: Command = lambda _node, arguments: [*arguments]
    ) -> None:
        self.folder = folder
        self.coordinator = coordinator
        self._command = command
        self._agents: dict[str, psutil.Popen] = {}
        self._seen: set[psutil.Process] = set()

    def start(self, node: str, *options: str, environment: dict[str, str] | None = None) -> psutil.Popen:
        """Start the agent of a node."""
        arguments = [sys.executable, "-m", "orbitsplit", "-v", "node", "--coordinator", self.coordinator]
        arguments += ["--credentials", str(self.folder / CREDENTIALS), "--name", node, *options]
        with (self.folder / f"{node}.log").open("ab") as log:
            self._agents[node] = psutil.Popen(
                self._command(node, arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        return self._agents[node]

    def log(self, node: str) -> str:
        """Return what the agent of a node has printed."""
        return (self.folder / f"{node}.log").read_text()

    def processes(self, node: str) -> list[psutil.Process]:
        """Return the processes of a host, its agent first."""
        agent = self._agents.get(node)
        if agent is None:
            return []
        with suppress(psutil.NoSuchProcess):
            found = [agent, *agent.children(recursive=True)]
            self._seen.update(found)
            return found
        return []

    def is_running(self, node: str) -> bool:
        """Return whether the agent of a node is there."""
        return node in self._agents and self._agents[node].poll() is None

    def workers(self, node: str) -> list[psutil.Process]:
        """Return the processes of a host that run stages: those that its fork server has forked."""
        servers = self.processes(node)[1:2]
        return [process for server in servers for process in server.children()]

    def kill(self, node: str) -> None:
        """End a whole host at once, as when its power fails."""
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def suspend(self, node: str) -> None:
        """Stop an agent (SIGSTOP), and with it the way of its processes to the coordinator."""
        self._agents[node].send_signal(signal.SIGSTOP)

    def resume(self, node: str) -> None:
        """Let an agent go on."""
        self._agents[node].send_signal(signal.SIGCONT)

    def end(self) -> list[psutil.Process]:
        """End all hosts in order; return the processes that are left a minute later."""
        for node, agent in self._agents.items():
            self.processes(node)
            with suppress(psutil.NoSuchProcess):
                agent.send_signal(signal.SIGCONT)
                agent.terminate()
        return psutil.wait_procs(self._seen, timeout=60)[1]


@contextmanager
def fleet(folder: Path, coordinator: str, **options: Command) -> Iterator[Fleet]:
    """Yield hosts without any; at the end every process of them has ended, or the test fails."""
    made = Fleet(folder, coordinator, **options)
    try:
        yield made
    finally:
        left = made.end()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert left == [], left
