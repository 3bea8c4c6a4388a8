"""The worker processes seen from the parent: start them, notice what is wrong with one, end them all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import IO

from orbitsplit import _child
from orbitsplit._errors import TransportError
from orbitsplit._plan import Plan

from . import _control as control
from ._control import Failure, SignOfLife
from ._transport import ControlStore

_POLL_S = 0.02
# Signs of life are read this often; workers write them every second.
_READ_S = 0.5
# When one worker is seen to fail, how long the others have to report, so that the cause is told from what it caused.
_GRACE_S = 0.7
_LOG_LINES = 12
_WORKER = "orbitsplit.runtime._worker"


class Workers:
    """One process per stage. Whatever happens, none of them outlives this object, its interpreter, or `end`."""

    def __init__(self, plan: Plan, store: ControlStore, *, heartbeat_timeout_s: float) -> None:
        self._plan = plan
        self._store = store
        self._timeout_s = heartbeat_timeout_s
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._last_read_s = 0.0
        self._signs: dict[int, SignOfLife] = {}
        self._changed_s: dict[int, float] = {}
        # Also runs when the interpreter exits; if that is killed, the workers see their standard input close.
        self._kill = weakref.finalize(self, _kill_all, self._processes)

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process id of each stage."""
        return tuple(process.pid for process in self._processes)

    def name(self, rank: int) -> str:
        """Return how messages call a stage: by its node, number and layers."""
        stage = self._plan.stages[rank]
        return f'node "{stage.node}" (stage {rank}, layers {stage.start}-{stage.stop - 1})'

    def start(self) -> None:
        """Start all processes."""
        environment = _environment(self._plan.threads)
        for rank in range(len(self._plan.stages)):
            log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
            self._logs.append(log)
            arguments = (str(self._store.port), str(rank))
            self._processes.append(_child.start(_WORKER, *arguments, stdout=log, stderr=log, environment=environment))

    def wait_for(
        self, keys: list[str], *, limit_s: float | None, on_poll: Callable[[], None], doing: str
    ) -> list[bytes]:
        """Wait until all keys (of rank 0, 1, ...) are in the store and return their values.

        Raises:
            TransportError: A worker died, failed or hangs, or `limit_s` seconds passed; the message names it.
        """
        started_s = time.monotonic()
        missing = list(keys)
        while missing:
            missing = [key for key in missing if not self._store.has(key)]
            if not missing:
                break
            self.check()
            on_poll()
            if limit_s is not None and time.monotonic() - started_s > limit_s:
                rank = keys.index(missing[0])
                raise TransportError(
                    f"{self.name(rank)} did not finish {doing} within {limit_s:g} s{self._phase(rank)}"
                )
            time.sleep(_POLL_S)
        return [self._store.get(key) for key in keys]

    def check(self) -> None:
        """Look at every worker once.

        Raises:
            TransportError: One died, reported a failure, or gave no sign of life for too long; names the cause.
        """
        if any(self._has_failed(rank) for rank in range(len(self._processes))):
            raise TransportError(self._find_cause())
        now_s = time.monotonic()
        if now_s - self._last_read_s < _READ_S:
            return
        self._last_read_s = now_s
        for rank in range(len(self._processes)):
            self._read_sign(rank)
        for rank, changed_s in self._changed_s.items():
            silent_s = now_s - changed_s
            if silent_s > self._timeout_s:
                raise TransportError(
                    f"{self.name(rank)} gave no sign of life for {silent_s:.1f} s, the limit is {self._timeout_s:g} s"
                )

    def new_tokens(self) -> int:
        """Return how many tokens per sequence the first stage has seen, as of its last sign of life."""
        return self._signs[0].new_tokens if 0 in self._signs else 0

    def end(self, *, grace_s: float = 0.0) -> None:
        """End all processes: give them `grace_s` seconds to end by themselves, then kill them."""
        deadline_s = time.monotonic() + grace_s
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                break
        self._kill()
        for log in self._logs:
            log.close()

    def _read_sign(self, rank: int) -> None:
        key = control.sign_of_life_key(rank)
        if not self._store.has(key):
            return
        sign = SignOfLife.from_json(self._store.get(key))
        if rank not in self._signs or self._signs[rank].count != sign.count:
            self._changed_s[rank] = time.monotonic()
        self._signs[rank] = sign

    def _has_failed(self, rank: int) -> bool:
        return self._processes[rank].poll() is not None or self._store.has(control.failure_key(rank))

    def _find_cause(self) -> str:
        """Return the message of the most likely cause among all workers that failed.

        A process killed from outside comes first, then one that reported an error of its own, then one that aborted
        or ended without a word; one that merely lost its neighbour comes last.
        """
        deadline_s = time.monotonic() + _GRACE_S
        ranks = range(len(self._processes))
        while time.monotonic() < deadline_s and not all(self._has_failed(rank) for rank in ranks):
            time.sleep(_POLL_S)
        causes = [self._cause(rank) for rank in ranks if self._has_failed(rank)]
        return min(causes, key=lambda cause: cause[0])[1]

    def _cause(self, rank: int) -> tuple[int, str]:
        name = self.name(rank)
        key = control.failure_key(rank)
        if self._store.has(key):
            failure = Failure.from_json(self._store.get(key))
            message = f"{name} failed: {failure.summary}"
            return (3, message) if failure.is_consequence else (1, f"{message}\n\n{failure.traceback.rstrip()}")
        code = self._processes[rank].returncode
        if code < 0:
            # Gloo may abort a process that lost its neighbour.
            priority = 2 if -code == signal.SIGABRT else 0
            return priority, f"{name} was killed by signal {_signal_name(-code)}{self._log(rank)}"
        return 2, f"{name} ended with exit code {code}{self._log(rank)}"

    def _phase(self, rank: int) -> str:
        return f" (it is {self._signs[rank].phase})" if rank in self._signs else " (it gave no sign of life yet)"

    def _log(self, rank: int) -> str:
        log = self._logs[rank]
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n\n" + "\n".join(lines) if lines else ""


def _signal_name(number: int) -> str:
    # Real-time signals have no name of their own.
    names = {int(known): known.name for known in signal.Signals}
    return f"{number} ({names[number]})" if number in names else str(number)


def _kill_all(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _environment(threads: int) -> dict[str, str]:
    environment = {"OMP_NUM_THREADS": str(threads)}
    # All stages are on this host, so Gloo need not (and should not) listen on its other interfaces.
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        environment["GLOO_SOCKET_IFNAME"] = loopback
    return environment
