"""The coordinator's end of hosts: they join with the credentials, start and end processes, and reach the control store.

A host has one channel for commands and reports, and one for each connection of its workers to the control store, which
itself listens on the loopback interface of the coordinator alone.

    from the host   join, store; then alive, started, ended
    to the host     welcome or refused; then alive, start, kill, leave
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from orbitsplit._errors import TransportError
from orbitsplit._io.validation import listed, quoted
from orbitsplit.runtime._messages.hosts import PROTOCOL, TICK_S, Silence, clock_id
from orbitsplit.runtime._messages.tls_channel import (
    HANDSHAKE_S,
    Credentials,
    TlsChannel,
    accepted,
    host_and_port,
    shut,
)

from .arguments import number as checked_number
from .launcher import Loss
from .worker_process import WorkerProcess

# Not that of `log`, which imports torch: this is imported by the command line.
LOG = logging.getLogger("orbitsplit.runtime")

_POLL_S = 0.05
# The time for a host to end a process that is to be killed; one that does not is itself lost.
_KILL_S = 2.0
# Connections that have not proved their credentials yet; more are closed at once.
_MOST_UNPROVED = 64
_KILLED = -9


@dataclass(frozen=True, slots=True)
class HostInfo:
    """A host that has joined: its node, its address, its processors, and its memory in bytes (0: unknown)."""

    node: str
    address: str
    cores: int
    memory_bytes: int


class Hosts:
    """The hosts of a coordinator: each has joined by `orbitsplit node` and runs the stages of the node it is named for.

    They are accepted at `address`, "host:port" (port 0: the system chooses one), from the moment this object is made
    until `close` or the end of a `with` block. `credentials` is the file that every host has as well, made by
    `orbitsplit credentials`. A host that has not been heard of for `silence_s` seconds, at least 1, is lost. One
    pipeline at a time runs on them.

    Example:
        >>> with Hosts("10.0.0.1:29400", credentials="fleet.pem") as hosts:           # doctest: +SKIP
        ...     with Pipeline(plan, "path-or-hub-id", hosts=hosts) as pipe:
        ...         tokens = pipe.generate(input_ids, max_new_tokens=64)

    Raises TypeError or ValueError for a wrong argument, OSError if the address cannot be listened on.
    """

    def __init__(self, address: str = "127.0.0.1:0", *, credentials: str | Path, silence_s: float = 8.0) -> None:
        # Below, a host is lost between two times at which it says that it is there.
        self._silence_s = checked_number("silence_s", silence_s, least=2 * TICK_S)
        self._credentials = Credentials(credentials)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._known: set[str] = set()
        self._returned: set[str] = set()
        self._store_address: str | None = None
        self._is_closed = False
        self._unproved = threading.BoundedSemaphore(_MOST_UNPROVED)
        self._listener = socket.create_server(host_and_port(address))
        for work in (self._accept, self._watch):
            threading.Thread(target=work, name="hosts", daemon=True).start()

    @property
    def address(self) -> str:
        """Where hosts are accepted, "host:port"."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    @property
    def nodes(self) -> tuple[HostInfo, ...]:
        """The hosts that are there, in the order of their names."""
        with self._lock:
            return tuple(self._hosts[name].info for name in sorted(self._hosts))

    def wait_for(
        self, nodes: Iterable[str], timeout_s: float | None = None, *, on_poll: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until the hosts of these nodes have joined. Raises TransportError that names those that have not."""
        wanted, deadline_s = list(nodes), None if timeout_s is None else time.monotonic() + timeout_s
        while absent := self.absent(wanted):
            on_poll()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TransportError(
                    f"no host has joined as {listed(absent)} within {timeout_s:g} s, at {self.address}",
                    kind="host",
                    node=absent[0],
                )
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Tell all hosts that the work is over, and accept none any more. May be called twice."""
        with self._lock:
            self._is_closed = True
            hosts = list(self._hosts.values())
        shut(self._listener)
        self._listener.close()
        for host in hosts:
            with suppress(OSError):
                host.channel.send({"leave": True})
            host.drop(Loss("killed", "the coordinator has ended"))

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The methods below are for the pipeline.

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts are not there."""
        with self._lock:
            return [node for node in nodes if node not in self._hosts]

    def without_our_clock(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes whose hosts have not this machine's clock, which emulated links need."""
        with self._lock:
            return [node for node in nodes if node in self._hosts and self._hosts[node].clock != clock_id()]

    def launcher(self, store_address: str, secret: str) -> HostLauncher:
        """Return what starts the workers of the control store at an address of this machine, for one pipeline.

        Raises TransportError of kind "host" while another pipeline runs on these hosts.
        """
        with self._lock:
            if self._store_address is not None:
                raise TransportError(
                    f"another pipeline runs on the hosts of {self.address}: close it first, one at a time runs on them",
                    kind="host",
                )
            self._store_address = store_address
            self._returned.clear()  # before this pipeline
        return HostLauncher(self, secret)

    def release(self) -> None:
        """Take note that the pipeline of the last launcher has ended."""
        self._store_address = None

    def host(self, node: str) -> _Host:
        """Return the host of a node. Raises TransportError if it is not there."""
        with self._lock:
            found = self._hosts.get(node)
        if found is None:
            raise TransportError(f'node "{node}" has no host: none has joined, or it is lost', kind="killed", node=node)
        return found

    def take_returned(self) -> set[str]:
        """Return the nodes whose hosts have come back since the last call."""
        with self._lock:
            returned, self._returned = self._returned, set()
        return returned

    def _accept(self) -> None:
        for connection, peer in accepted(self._listener, lambda: self._is_closed):
            if not self._unproved.acquire(blocking=False):
                LOG.warning(
                    "a connection from %s is refused: %d others have not proved themselves", peer, _MOST_UNPROVED
                )
                connection.close()
                continue
            threading.Thread(target=self._welcome, args=(connection, peer), name="host", daemon=True).start()

    def _welcome(self, connection: socket.socket, peer: str) -> None:
        """Serve a connection that proves to have the credentials."""
        channel: TlsChannel | None = None
        try:
            try:
                channel = TlsChannel(connection, self._credentials.server, is_server=True)
                first = channel.receive(HANDSHAKE_S)
                if first is None:
                    raise ConnectionResetError("it went away before it said what it is for")
            finally:
                self._unproved.release()
        except (OSError, TransportError, ValueError) as error:
            LOG.warning("a connection from %s is refused: %s", peer, error)
            if channel is not None:
                channel.release()
            return
        try:
            if "store" in first:
                self._pass_to_store(channel, str(first["store"]))
            else:
                self._join(channel, peer, first)
        except (OSError, TransportError, ValueError, KeyError, TypeError) as error:
            LOG.warning("the connection from %s ends: %s: %s", peer, type(error).__name__, error)
        finally:
            channel.release()

    def _pass_to_store(self, channel: TlsChannel, node: str) -> None:
        """Pass on what a process of a node and the store say, until an end closes or the node's host is lost."""
        address = self._store_address
        if address is not None and self.host(node).adopt(channel):
            channel.pass_through(socket.create_connection(host_and_port(address)))

    def _join(self, channel: TlsChannel, peer: str, first: dict[str, Any]) -> None:
        """Accept a host, and read its reports until it is lost."""
        spoken = first.get("protocol")
        if spoken != PROTOCOL:  # first of all, as the rest may be another in another version
            reason = f"it speaks protocol {spoken!r}, this coordinator {PROTOCOL}: use one version"
            _refuse(channel, peer, first.get("join"), reason, is_final=True)
            return
        host = _Host(channel, peer, first)
        if (refusal := self._admit(host)) is not None:
            _refuse(channel, peer, host.info.node, refusal, is_final=False)
            return
        LOG.info("host %s joins as node %s", peer, quoted(host.info.node))
        try:
            host.read_reports()
            host.drop(Loss("killed", "the connection to its host has ended"))
        finally:
            host.drop(Loss("killed", "its host broke the protocol"))
            with self._lock:
                if self._hosts.get(host.info.node) is host:
                    del self._hosts[host.info.node]
            level = logging.INFO if self._is_closed else logging.WARNING
            LOG.log(level, "host %s, node %s, has left: %s", peer, quoted(host.info.node), host.reason)

    def _admit(self, host: _Host) -> str | None:
        """Welcome a host; or return why it is refused for now."""
        node = host.info.node
        with self._lock:
            if self._is_closed:
                return "the coordinator is ending"
            if node in self._hosts:
                return f"node {quoted(node)} has a host, {self._hosts[node].info.address}"
            # First of all that it is sent: other threads see it when it is in the table.
            host.channel.send({"welcome": PROTOCOL, "silence_s": self._silence_s})
            self._hosts[node] = host
            if node in self._known:
                self._returned.add(node)
            self._known.add(node)
        return None

    def _watch(self) -> None:
        """Tell hosts that this end is alive, and drop those that say nothing."""
        while not self._is_closed:
            time.sleep(TICK_S)
            with self._lock:
                hosts = list(self._hosts.values())
            for host in hosts:
                if host.silence.tick() > self._silence_s:
                    host.drop(Loss("hangs", f"nothing was heard of its host for {self._silence_s:g} s"))
                with suppress(OSError):
                    host.channel.send({"alive": True})


def _refuse(channel: TlsChannel, peer: str, node: Any, reason: str, *, is_final: bool) -> None:
    LOG.warning("host %s is refused as node %s: %s", peer, quoted(str(node)), reason)
    channel.send({"refused": reason, "is_final": is_final})


class HostLauncher:
    """Starts the processes of nodes on their hosts."""

    def __init__(self, hosts: Hosts, secret: str) -> None:
        self._hosts = hosts
        self._secret = secret
        self._is_closed = False

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


class RemoteProcess:
    """A process of a worker on a host, as a `WorkerProcess`. It has ended when its host is lost."""

    stdin = None

    def __init__(self, host: _Host, number: int, log: IO[bytes]) -> None:
        self.returncode: int | None = None
        self.loss: Loss | None = None
        self.ran_out_of_memory = False
        self._host = host
        self._number = number
        self._log = log
        self._pid = 0
        self._is_started, self._has_ended = threading.Event(), threading.Event()
        self._started_s = 0.0
        self._killed_s: float | None = None

    @property
    def pid(self) -> int:
        """The process id on its host; 0 if it never came to be. Waits until it has started."""
        while not self._is_started.wait(_POLL_S) and self.returncode is None:
            pass
        return self._pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while not self._has_ended.wait(_POLL_S if timeout is None else min(_POLL_S, timeout)):
            now_s = time.monotonic()
            if self._is_overdue(now_s):
                self._host.drop(Loss("hangs", f"its host did not end a process within {_KILL_S:g} s"))
            if deadline_s is not None and now_s >= deadline_s:
                raise subprocess.TimeoutExpired(f"worker {self._number}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """End it immediately; a host that does not is lost."""
        if self.returncode is None:
            self._killed_s = self._killed_s or time.monotonic()
            with suppress(OSError):
                self._host.channel.send({"kill": self._number})

    def _is_overdue(self, now_s: float) -> bool:
        # What has not started cannot be killed yet: its host may still import libraries.
        if self._killed_s is None or not self._is_started.is_set():
            return False
        return now_s - max(self._killed_s, self._started_s) > _KILL_S

    def started(self, pid: int) -> None:
        """Take note of the start."""
        self._started_s = time.monotonic()
        self._pid = pid
        self._is_started.set()

    def ended(self, code: int, output: str = "", *, ran_out_of_memory: bool = False, loss: Loss | None = None) -> None:
        """Take note of the end, of the process or of its host."""
        with suppress(ValueError):  # the log is closed
            self._log.write(output.encode())
            self._log.flush()
        self.loss, self.ran_out_of_memory = loss, ran_out_of_memory
        self.returncode = code
        self._has_ended.set()


class _Host:
    """A host that has joined, and the processes on it."""

    def __init__(self, channel: TlsChannel, address: str, first: dict[str, Any]) -> None:
        self.info = HostInfo(str(first["join"]), address, int(first["cores"]), int(first["memory_bytes"]))
        self.clock = first["clock"]
        self.channel = channel
        self.silence = Silence()
        self.reason = ""
        self._lock = threading.Lock()
        self._processes: dict[int, RemoteProcess] = {}
        self._store_channels: weakref.WeakSet[TlsChannel] = weakref.WeakSet()
        self._loss: Loss | None = None

    def start(self, number: int, session: int, *, threads: int, secret: str, log: IO[bytes]) -> RemoteProcess:
        """Ask for a process; return before it is started. Raises TransportError if the host is lost."""
        process = RemoteProcess(self, number, log)
        with self._lock:
            loss = self._loss
            self._processes[number] = process
        try:
            if loss is None:
                self.channel.send({"start": number, "session": session, "threads": threads, "secret": secret})
                return process
        except OSError as error:
            loss = Loss("killed", str(error))
        raise TransportError(f'node "{self.info.node}" is lost: {loss.reason}', kind=loss.kind, node=self.info.node)

    def adopt(self, channel: TlsChannel) -> bool:
        """Close a channel of this host to the store when the host is lost; return False if it is lost already."""
        with self._lock:
            if self._loss is not None:
                return False
            self._store_channels.add(channel)
        return True

    def read_reports(self) -> None:
        """Read what the host reports until its channel ends. Raises KeyError, ValueError and the like for nonsense."""
        while (message := self.channel.receive()) is not None:
            self.silence.end()
            if "started" in message:
                self._processes[message["started"]].started(int(message["pid"]))
            elif "ended" in message:
                with self._lock:
                    process = self._processes.pop(message["ended"])
                process.ended(
                    int(message["code"]), str(message["output"]), ran_out_of_memory=bool(message["out_of_memory"])
                )

    def drop(self, loss: Loss) -> None:
        """Give the host up: its processes have ended, as it will end them itself. The first reason counts."""
        with self._lock:
            if self._loss is None:
                self._loss, self.reason = loss, loss.reason
            processes, self._processes = list(self._processes.values()), {}
            channels = list(self._store_channels)
        for process in processes:
            process.ended(_KILLED, loss=self._loss)
        # In a partition nothing else would ever end them.
        for channel in (*channels, self.channel):
            channel.close()
