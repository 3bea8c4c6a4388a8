"""The fork server: imports the libraries of a worker once, and forks a process for each worker that is started.

To import torch and transformers takes a core seconds for each process, to fork takes milliseconds; and forked processes
share the memory of the libraries. The server computes nothing but layouts and has one thread, so that a fork is safe.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from orbitsplit._models import child_process
from orbitsplit._models.layouts import find_layout, knows_layout
from orbitsplit._models.source import prepare_loading, read_config
from orbitsplit.runtime._memory import library_bytes
from orbitsplit.runtime._messages.fork_channel import MAX_MESSAGE_BYTES

from . import process as worker
from . import short_profile

# Without workers for so long, the server ends: the memory of the libraries is the machine's again.
IDLE_S = 60.0


def main() -> None:
    """Serve the parent at the other end of standard input, until it closes that or has no worker for IDLE_S seconds."""
    channel = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    prepare_loading()
    gc.collect()
    gc.freeze()  # a collection in a worker would else copy the pages of all objects of the libraries
    ForkServer(channel).serve()


class ForkServer:
    """Answers `{"start": number, ...}` with `{"start": number, "pid": pid}`, and `{"kill": number}` with a kill.

    The `entry` of a request to start is "worker", or "short_profile" for a process that times layers instead.
    `{"prepare": directory of a model}` finds the model's layout, so that workers forked later know it.
    A request to start comes with the descriptors of the worker's standard input and of its log. The end of a worker is
    reported as `{"end": number, "code": exit code}`, negative for a signal as in `subprocess`.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._workers: dict[int, int] = {}  # process ids and numbers
        self._imported_bytes = library_bytes()
        self._wakeup, self._signalled = socket.socketpair()
        self._signalled.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests until the channel is closed, by the parent or here when idle, and no worker is left."""
        sources = [self._channel, self._wakeup]
        while self._channel in sources or self._workers:
            readable, _, _ = select.select(sources, [], [], IDLE_S)
            if not readable and not self._workers:
                # A request that comes now fails at the parent, which asks a new server; one that is here is answered.
                self._channel.shutdown(socket.SHUT_RD)
            if self._wakeup in readable:
                self._wakeup.recv(MAX_MESSAGE_BYTES)
                self._reap()
            if self._channel in readable and not self._answer():
                sources.remove(self._channel)

    def _answer(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, 2)
        if not data:
            return False
        request = json.loads(data)
        if "start" in request:
            self._start(request, descriptors)
        if "prepare" in request:
            self._prepare(request["prepare"])
        for pid, number in self._workers.items():
            if number == request.get("kill"):
                os.kill(pid, signal.SIGKILL)
        return True

    def _prepare(self, model: str) -> None:
        """Find a model's layout. What cannot be split, the workers report."""
        with suppress(Exception):
            config = read_config(model)
            if knows_layout(config):
                return
            find_layout(config)
        gc.collect()
        gc.freeze()
        self._imported_bytes = library_bytes()

    def _start(self, request: dict[str, Any], descriptors: Sequence[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._workers[pid] = request["start"]
        self._tell({"start": request["start"], "pid": pid})

    def _become_worker(self, request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # Ctrl-C at the terminal is for the parent
            stdin, log = descriptors
            for target, source in enumerate((stdin, log, log)):
                os.dup2(source, target)
            for descriptor in descriptors:
                os.close(descriptor)
            for one in (self._channel, self._wakeup, self._signalled):
                one.close()
            for name, value in request["environment"].items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            with suppress(OSError):  # it is gone, or not ours to enter: as with a process that is started there
                os.chdir(request["directory"])
            child_process.exit_with_parent()
            if request["entry"] == "worker":
                worker.main(*request["arguments"], imported_bytes=self._imported_bytes)
            else:
                short_profile.main(*request["arguments"])
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # main ends the process itself

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._tell({"end": self._workers.pop(pid), "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, int]) -> None:
        with suppress(OSError):  # the parent is gone
            self._channel.send(json.dumps(message).encode())
