"""Processes of workers: on Linux forked from a server that has imported their libraries, elsewhere started."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from orbitsplit._models import child_process
from orbitsplit.runtime._messages.fork_channel import MAX_MESSAGE_BYTES

# The modules of processes that are started: a worker, or one that times layers for a short profile.
WORKER, SHORT_PROFILE = "orbitsplit.runtime._worker.process", "orbitsplit.runtime._worker.short_profile"
_ENTRIES = {WORKER: "worker", SHORT_PROFILE: "short_profile"}
_SERVER = "orbitsplit.runtime._worker.fork_server"
_POLL_S = 0.05
# Variables that libraries read when they are imported begin so: where one has changed, another server is needed.
_READ_ON_IMPORT = (
    *("PYTHON", "LD_", "ORBITSPLIT_ISA", "TORCH", "ATEN_", "PYTORCH_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_"),
    *("ONEDNN_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "SAFETENSORS_", "NUMBA_", "MALLOC_", "CUDA_"),
)
# Set by torch itself, when something first imports its compiler: the server started before that is as good as another.
_SET_BY_LIBRARIES = ("TORCHINDUCTOR_CACHE_DIR",)
# The time for a server to end by itself at the exit of the interpreter.
_END_S = 5.0


class WorkerProcess(Protocol):
    """The part of `subprocess.Popen` that the parent of workers uses."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def returncode(self) -> int | None:
        """The exit code that `poll` or `wait` found, negative for a signal."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """The other end of its standard input: the process ends when it is closed."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""

    def kill(self) -> None:
        """End it immediately."""


def prepare(model: str | Path | None = None) -> None:
    """Prepare to start workers, beside what this process does until it starts some.

    Importing torch and transformers takes as long in a worker as here. Of a `model` directory, how it runs its layers
    is found once for all workers. Without an effect where workers are not forked.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # whoever starts a worker gets the error
            _servers.usable().prepare(model)


def start(*arguments: str, log: IO[bytes], environment: Mapping[str, str], module: str = WORKER) -> WorkerProcess:
    """Start a worker with its arguments; `environment` is added to this process's, `log` gets its output."""
    # Elsewhere a fork is not safe after libraries of the system were loaded.
    if sys.platform == "linux":
        try:
            return _fork(arguments, log, environment, _ENTRIES[module])
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # more variables were set since the server started than it is told of
                raise
    return child_process.start(module, *arguments, stdout=log, stderr=log, environment=environment)


def _fork(arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str], entry: str) -> ForkedProcess:
    try:
        return _servers.usable().start(arguments, log, environment, entry)
    except (BrokenPipeError, ConnectionResetError):  # it has just ended, idle for long
        return _servers.usable().start(arguments, log, environment, entry)


def server_pid() -> int | None:
    """Return the process id of the fork server, None if there is none."""
    return _servers.pid()


class ForkedProcess:
    """A worker that a server has forked or will fork, as a `WorkerProcess`."""

    def __init__(self, server: ForkServer, number: int, stdin: IO[bytes], log: IO[bytes]) -> None:
        self.stdin = stdin
        self.returncode: int | None = None
        self.started_pid: int | None = None
        self.log = log
        self._server = server
        self._number = number

    @property
    def pid(self) -> int:
        """The process id; 0 if it never came to be. Waits until the server has forked."""
        while self.started_pid is None and self.returncode is None:
            self._server.wait_for_messages(_POLL_S)
        return self.started_pid or 0

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            self._server.read_messages()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise subprocess.TimeoutExpired(WORKER, timeout or 0.0)
            self._server.wait_for_messages(_POLL_S)
        return code

    def ended(self, code: int) -> None:
        """Take note of the end."""
        self.stdin.close()
        self.returncode = code

    def kill(self) -> None:
        """End it immediately."""
        if self.poll() is None:
            self._server.kill(self._number)


class ForkServer:
    """The parent's end of a fork server; the server ends with this object."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._environment = dict(os.environ)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            # One thread, so that nothing else runs at a fork; each worker sets its own number.
            self._server = child_process.start(
                _SERVER, stdin=other, stdout=self._log, stderr=self._log, environment={"OMP_NUM_THREADS": "1"}
            )
        self._lock = threading.RLock()
        self._processes: dict[int, ForkedProcess] = {}
        self._numbers = 0
        self._has_ended = False
        weakref.finalize(self, _end, self._channel, self._server, self._log, self._owner, self._processes)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    def is_usable(self) -> bool:
        """Return whether the server runs, with libraries imported as they would be now."""
        self.read_messages()
        is_ours = self._owner == os.getpid()  # not that of the process that this one was forked from
        return is_ours and not self._has_ended and not any(map(_is_read_on_import, self._changed_variables()))

    def start(
        self, arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str], entry: str = _ENTRIES[WORKER]
    ) -> ForkedProcess:
        """Ask for a worker; return before it is forked. Raises OSError if the server takes no more requests."""
        stdin, kept = os.pipe()
        with open(stdin, "rb", buffering=0) as end, self._lock:
            self._numbers += 1
            request = {
                "start": self._numbers,
                "entry": entry,
                "arguments": arguments,
                "environment": {**self._changed_variables(), **environment},
                "directory": os.getcwd(),
            }
            packet = json.dumps(request).encode()
            if len(packet) > MAX_MESSAGE_BYTES:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            process = ForkedProcess(self, self._numbers, os.fdopen(kept, "wb", buffering=0), log)
            try:
                socket.send_fds(self._channel, [packet], [end.fileno(), log.fileno()])
            except BaseException:
                process.stdin.close()
                raise
            self._processes[self._numbers] = process
        return process

    def prepare(self, model: str | Path | None) -> None:
        """Ask to prepare for a model directory; of a hub id nothing is looked up in advance. Raises as `start`."""
        if model is not None and Path(model).is_dir():
            self._channel.send(json.dumps({"prepare": str(Path(model).resolve())}).encode())

    def _changed_variables(self) -> dict[str, str | None]:
        """Return the environment variables that have changed since the server was started, None for a removed one."""
        before, now = self._environment, dict(os.environ)
        return {name: now.get(name) for name in before | now if before.get(name) != now.get(name)}

    def kill(self, number: int) -> None:
        """Kill a worker: by the server, since only it knows that the process id is still that of the worker."""
        with suppress(OSError):  # the server has ended, and the worker with it
            self._channel.send(json.dumps({"kill": number}).encode())

    def wait_for_messages(self, timeout_s: float) -> None:
        """Wait until the server has reported something, or ended."""
        with suppress(OSError, ValueError):  # closed by another thread
            select.select([self._channel], [], [], timeout_s)
        self.read_messages()

    def read_messages(self) -> None:
        """Take in what the server has reported so far."""
        with self._lock:
            while not self._has_ended:
                try:
                    data = self._channel.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if data:
                    self._take(json.loads(data))
                else:
                    self._end_all()

    def _take(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._processes[message["start"]].started_pid = message["pid"]
        else:
            self._processes.pop(message["end"]).ended(message["code"])

    def _end_all(self) -> None:
        """The server has ended: so do its workers, as their standard input closes."""
        self._has_ended = True
        code = self._server.wait()
        self._log.seek(0)
        output = self._log.read()
        for process in self._processes.values():
            with suppress(ValueError):  # the log is closed
                process.log.write(output)
                process.log.flush()
            process.ended(code or 1)
        self._processes.clear()


def _is_read_on_import(variable: str) -> bool:
    return variable.startswith(_READ_ON_IMPORT) and variable not in _SET_BY_LIBRARIES


class _Servers:
    """The fork server of this process: started when one is needed, and anew in another environment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: ForkServer | None = None

    def usable(self) -> ForkServer:
        with self._lock:
            if self._current is None or not self._current.is_usable():
                self._current = ForkServer()
            return self._current

    def pid(self) -> int | None:
        with self._lock:
            return None if self._current is None else self._current.pid


_servers = _Servers()


def _end(
    channel: socket.socket,
    server: subprocess.Popen[bytes],
    log: IO[bytes],
    owner: int,
    processes: Mapping[int, ForkedProcess],
) -> None:
    channel.close()
    log.close()
    if os.getpid() != owner:  # a fork of this process: the server is not its child
        return
    if not processes:  # it may be importing, and would not see the end of the channel for seconds
        server.kill()
    try:
        server.wait(_END_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
