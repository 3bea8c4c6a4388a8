"""A host that has joined, at the coordinator's end, and the processes on it."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO, Any

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.hosts import Silence
from orbitsplit.runtime._messages.replicas import ReplicaTable
from orbitsplit.runtime._messages.tls_channel import TlsChannel

from .launcher import Loss

_POLL_S = 0.05
# The time for a host to end a process that is to be killed; one that does not is itself lost.
_KILL_S = 2.0
_KILLED = -9
# The time for a host to measure what it is asked, the start of a process and the loading of a few layers included.
_MEASURE_S = 150.0


@dataclass(frozen=True, slots=True)
class HostInfo:
    """A host that has joined: its node, its address, its processors, and its memory in bytes (0: unknown)."""

    node: str
    address: str
    cores: int
    memory_bytes: int


class RemoteProcess:
    """A process of a worker on a host, as a `WorkerProcess`. It has ended when its host is lost."""

    stdin = None

    def __init__(self, host: JoinedHost, number: int, log: IO[bytes]) -> None:
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


class JoinedHost:
    """A host that has joined, and the processes on it."""

    def __init__(
        self, channel: TlsChannel, address: str, first: dict[str, Any], on_return: Callable[[], None] = lambda: None
    ) -> None:
        self.info = HostInfo(str(first["join"]), address, int(first["cores"]), int(first["memory_bytes"]))
        self.clock = first["clock"]
        # The newest term that it has known, and the replicas that it returns; both of interest to one of several
        # coordinators alone.
        self.term = int(first.get("term", 0))
        self.returned = ReplicaTable()
        self._on_return = on_return  # called once it has returned them
        self.channel = channel
        self.silence = Silence()
        self.reason = ""
        self._lock = threading.Lock()
        self._processes: dict[int, RemoteProcess] = {}
        self._store_channels: weakref.WeakSet[TlsChannel] = weakref.WeakSet()
        self._loss: Loss | None = None
        self._questions = itertools.count()
        self._answers: dict[int, SimpleQueue[dict[str, Any]]] = {}

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the host measures for a question (see `_node.measurements`); may take minutes.

        Raises TransportError if it fails there, is not answered in time, or the host is lost.
        """
        number, answers = next(self._questions), SimpleQueue[dict[str, Any]]()
        self._answers[number] = answers
        try:
            self.channel.send({**question, "ask": number})
            answer = answers.get(timeout=_MEASURE_S)
        except OSError as error:
            answer = {"failed": str(error)}
        except Empty:
            answer = {"failed": f"it did not answer within {_MEASURE_S:g} s"}
        finally:
            del self._answers[number]
        if "failed" in answer:
            raise TransportError(f'node "{self.info.node}": {answer["failed"]}', kind="host", node=self.info.node)
        measured: dict[str, Any] = answer["measured"]
        return measured

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
            if self.returned.take(message):
                if self.returned.is_complete:
                    self._on_return()
                continue
            if "started" in message:
                self._processes[message["started"]].started(int(message["pid"]))
            elif "answer" in message:
                if (answers := self._answers.get(message["answer"])) is not None:  # else it came too late
                    answers.put(message)
            elif "ended" in message:
                with self._lock:
                    process = self._processes.pop(message["ended"])
                process.ended(
                    int(message["code"]), str(message["output"]), ran_out_of_memory=bool(message["out_of_memory"])
                )

    @property
    def is_lost(self) -> bool:
        """Whether it has been given up."""
        return self._loss is not None

    @property
    def runs_processes(self) -> bool:
        """Whether a process of a worker was started on it and has not ended."""
        return bool(self._processes)

    def drop(self, loss: Loss) -> None:
        """Give the host up: its processes have ended, as it will end them itself. The first reason counts."""
        with self._lock:
            if self._loss is None:
                self._loss, self.reason = loss, loss.reason
            processes, self._processes = list(self._processes.values()), {}
            channels = list(self._store_channels)
        for process in processes:
            process.ended(_KILLED, loss=self._loss)
        for answers in list(self._answers.values()):
            answers.put({"failed": loss.reason})
        # In a partition nothing else would ever end them.
        for channel in (*channels, self.channel):
            channel.close()
