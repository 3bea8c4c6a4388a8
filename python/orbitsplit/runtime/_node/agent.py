"""The agent of a host: it joins the coordinator, starts and ends processes for it, and reports their ends.

It lives as long as the host does. When the coordinator ends, or is not heard of any more, the agent ends the processes
of its stages, so that no two coordinators can command them, and joins again: the same one, or the next of its list.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from orbitsplit._errors import OrbitsplitError, TransportError
from orbitsplit.runtime._memory import oom_kills
from orbitsplit.runtime._messages.environment import INTERFACE_VARIABLE, SECRET_VARIABLE
from orbitsplit.runtime._messages.hosts import PROTOCOL, TICK_S, Silence, clock_id, memory_bytes
from orbitsplit.runtime._messages.interfaces import interface_towards
from orbitsplit.runtime._messages.replicas import ReplicaTable
from orbitsplit.runtime._messages.tls_channel import HANDSHAKE_S, Credentials, RefusedError, TlsChannel, host_and_port
from orbitsplit.runtime._parent import worker_process
from orbitsplit.runtime._parent.launcher import new_log
from orbitsplit.runtime._parent.worker_process import WorkerProcess

from .measurements import measure
from .predecessor import Predecessor
from .tunnel import Tunnel

LOG = logging.getLogger("orbitsplit.runtime")

# Between two attempts to join, once each coordinator has been tried.
_RETRY_S = 1.0
# A coordinator that has not found a majority of the hosts by then is left for the next one. At random, since hosts that
# are divided among several would else change all at once, for ever.
_UNDECIDED_S = (5.0, 10.0)
_POLL_S = 0.05
_OUTPUT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Where this host has its models: the plan's, and those of weights by name. None: where the coordinator has it."""

    model: str | None = None
    weight_models: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Process:
    process: WorkerProcess
    log: IO[bytes]
    has_reported_start: bool = False


class NodeAgent:
    """The agent of the host that runs one node's stages, for the coordinator at "host:port".

    Of several coordinators ("host:port,host:port"), in the order in which they are looked for, it serves one at a time.

    Raises OSError or ValueError where the credentials cannot be used, ValueError for an address that is none.
    """

    def __init__(self, coordinator: str, node: str, credentials: str | Path, files: OwnFiles | None = None) -> None:
        self._coordinators = coordinator.split(",")
        for address in self._coordinators:
            host_and_port(address)
        self._at = 0  # the place in this list
        self._node = node
        self._credentials = Credentials(credentials)
        self._files = files or OwnFiles()
        self._tunnel = Tunnel(self._coordinator, node, self._credentials)
        # The newest term that this host has known, and what it keeps for that coordinator.
        self._term = 0
        self._replicas = ReplicaTable()
        self._has_returned = False  # these to the coordinator
        self._predecessor = Predecessor(self._coordinators, node, credentials)
        self._is_stopped = threading.Event()
        self._channel: TlsChannel | None = None
        self._lock = threading.Lock()
        self._processes: dict[int, _Process] = {}
        self._oom_kills = oom_kills()
        self._has_joined = False
        self._is_silent = False

    @property
    def _coordinator(self) -> str:
        return self._coordinators[self._at]

    def run(self, *, once: bool = False, on_join: Callable[[str], None] = lambda coordinator: None) -> None:
        """Serve coordinators until `stop`, or with `once` until the first one that it has joined has ended or is lost.

        Raises RefusedError if the first coordinator has other credentials or another version. Once it has joined one,
        it tries again instead: nothing that somebody on the network does ends it.
        """
        self._predecessor.ask()
        try:
            self._serve(once, on_join)
        finally:
            self._predecessor.end()
            self._tunnel.close()

    def _serve(self, once: bool, on_join: Callable[[str], None]) -> None:
        reasons: dict[str, str] = {}
        failures = 0
        while not self._is_stopped.is_set():
            try:
                is_lost = self._serve_one(on_join)
            except (OSError, TransportError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, RefusedError) and not self._has_joined:
                    raise
                reason = str(error) or type(error).__name__
                if reason != reasons.get(self._coordinator):
                    LOG.warning(
                        "node %s does not reach the coordinator at %s: %s", self._node, self._coordinator, reason
                    )
                reasons[self._coordinator] = reason
                is_lost, failures = True, failures + 1
            else:
                reasons.pop(self._coordinator, None)
                failures = 0
            if once and self._has_joined:
                break
            if is_lost:
                self._at = (self._at + 1) % len(self._coordinators)
            if failures >= len(self._coordinators) or len(self._coordinators) == 1:
                failures = 0
                self._is_stopped.wait(_RETRY_S)

    def stop(self) -> None:
        """End all processes, and make `run` return soon; from any thread, or a signal handler."""
        self._is_stopped.set()
        if (channel := self._channel) is not None:
            channel.close()

    def _serve_one(self, on_join: Callable[[str], None]) -> bool:
        """Join the coordinator and serve it until it is gone; return whether it can be expected to be lost for longer.

        A connection that has ended, and nothing more, may be a fault of the network.
        """
        channel = self._channel = TlsChannel.connect(self._coordinator, self._credentials)
        try:
            if self._is_stopped.is_set():  # by a `stop` that saw no channel yet
                return False
            self._tunnel.coordinator = self._coordinator
            silence_s = self._join(channel)
            self._has_joined = True
            on_join(self._coordinator)
            worker_process.prepare(self._files.model)
            silence, self._is_silent = Silence(), False
            threading.Thread(target=self._watch, args=(channel, silence, silence_s), name="watch", daemon=True).start()
            threading.Thread(target=self._report_alive, args=(channel,), name="alive", daemon=True).start()
            # A thread of its own, since the first process comes to be only when its libraries have been imported.
            threading.Thread(target=self._report_processes, args=(channel,), name="processes", daemon=True).start()
            return self._obey(channel, silence, silence_s)
        finally:
            self._channel = None  # which ends the threads
            channel.close()
            self._end_processes()
            channel.release()

    def _join(self, channel: TlsChannel) -> float:
        """Join; return after how long a silence the coordinator is lost. Raises as `run`, OSError if it has to wait."""
        offer = {"join": self._node, "protocol": PROTOCOL, "clock": clock_id(), "term": self._term}
        channel.send({**offer, "cores": os.cpu_count() or 0, "memory_bytes": memory_bytes()})
        answer = channel.receive(HANDSHAKE_S)
        if answer is None:
            raise ConnectionResetError("it went away")
        if "welcome" in answer:
            self._predecessor.is_not_at(self._coordinator)
            silence_s = float(answer["silence_s"])
            self._has_returned = answer.get("term") is None  # to one that is alone there is nothing to return
            self._return_replicas(channel, silence_s, works=self._follow(answer))
            return silence_s
        if answer["is_final"]:
            raise RefusedError(f"the coordinator refuses node {self._node}: {answer['refused']}", kind="host")
        raise ConnectionRefusedError(str(answer["refused"]))

    def _follow(self, message: Mapping[str, Any]) -> bool:
        """Take note of the term of the coordinator, and return whether it works: one that is alone always does.

        Raises ConnectionRefusedError if another one works since, whose term is newer.
        """
        term = message.get("term")
        if term is None:
            return True
        if 0 < int(term) < self._term:
            raise ConnectionRefusedError(f"it has term {term}, and this host has known term {self._term}")
        self._term = max(self._term, int(term))
        return int(term) > 0

    def _return_replicas(self, channel: TlsChannel, silence_s: float, *, works: bool) -> None:
        """Return what this host keeps of requests, once: from then on it counts for the coordinator.

        For one that does not work yet not before another one has noticed that an earlier agent of this node has ended.
        """
        if self._has_returned or not (works or self._predecessor.is_gone(silence_s)):
            return
        for message in self._replicas.messages():
            channel.send(message)
        self._has_returned = True

    def _obey(self, channel: TlsChannel, silence: Silence, silence_s: float) -> bool:
        """Do what the coordinator says until it ends, or lets this host go; return whether it did not just vanish."""
        undecided_s = random.uniform(*_UNDECIDED_S)
        deadline_s = time.monotonic() + undecided_s
        while (message := channel.receive()) is not None:
            silence.end()
            if "alive" in message:
                works = self._follow(message)
                self._return_replicas(channel, silence_s, works=works)
                if works or len(self._coordinators) == 1:
                    deadline_s = time.monotonic() + undecided_s
                elif time.monotonic() > deadline_s:
                    LOG.info("node %s leaves %s, which has no majority", self._node, self._coordinator)
                    return True
            elif self._replicas.take(message):
                continue
            elif "start" in message:
                self._start(message, channel)
            elif "kill" in message:
                with self._lock:
                    one = self._processes.get(message["kill"])
                if one is not None:
                    one.process.kill()
            elif "ask" in message:
                threading.Thread(target=self._answer, args=(message, channel), name="measure", daemon=True).start()
            elif "leave" in message:
                return True
        return self._is_silent

    def _answer(self, message: Mapping[str, Any], channel: TlsChannel) -> None:
        """Measure what the coordinator asks for; a thread of its own, as the coordinator has more to say meanwhile."""
        answer: dict[str, Any] = {"answer": message["ask"]}
        try:
            answer["measured"] = measure(message, self._credentials, self._files.model)
        except (OSError, OrbitsplitError, ValueError, KeyError, TypeError) as error:
            answer["failed"] = str(error) or type(error).__name__
        with suppress(OSError):  # the channel has ended
            channel.send(answer)

    def _start(self, message: Mapping[str, Any], channel: TlsChannel) -> None:
        """Start the process of a worker."""
        number, log = int(message["start"]), None
        environment = {"OMP_NUM_THREADS": str(int(message["threads"])), SECRET_VARIABLE: str(message["secret"])}
        arguments = (self._tunnel.address, str(number), str(int(message["session"])), json.dumps(asdict(self._files)))
        try:
            log = new_log()
            interface = interface_towards(host_and_port(self._coordinator)[0])
            if INTERFACE_VARIABLE not in os.environ and interface is not None:
                environment[INTERFACE_VARIABLE] = interface
            process = worker_process.start(*arguments, log=log, environment=environment)
        except OSError as error:
            if log is not None:
                log.close()
            channel.send({"ended": number, "code": 1, "output": str(error), "out_of_memory": False})
            return
        with self._lock:
            self._processes[number] = _Process(process, log)

    def _watch(self, channel: TlsChannel, silence: Silence, silence_s: float) -> None:
        """End the channel when the coordinator is silent.

        It sends nothing itself: what is sent while the network is cut may block for minutes, until the channel ends.
        """
        while self._channel is channel:
            time.sleep(TICK_S)
            if silence.tick() > silence_s:
                LOG.warning("node %s has not heard of the coordinator for %g s", self._node, silence_s)
                self._is_silent = True
                channel.close()
                return

    def _report_alive(self, channel: TlsChannel) -> None:
        """Report that this host is alive."""
        while self._channel is channel:
            time.sleep(TICK_S)
            with suppress(OSError):  # the channel has ended
                channel.send({"alive": True})

    def _report_processes(self, channel: TlsChannel) -> None:
        """Report which processes have started and ended."""
        while self._channel is channel:
            time.sleep(_POLL_S)
            with suppress(OSError):  # as above
                self._report_changes(channel)

    def _report_changes(self, channel: TlsChannel) -> None:
        with self._lock:
            processes = dict(self._processes)
        for number, one in processes.items():
            if not one.has_reported_start and one.process.pid:
                one.has_reported_start = True
                channel.send({"started": number, "pid": one.process.pid})
            code = one.process.poll()
            if code is None:
                continue
            with self._lock:
                if self._processes.pop(number, None) is None:
                    continue
            kills = oom_kills()
            out_of_memory, self._oom_kills = kills > self._oom_kills, kills
            with one.log as log:
                report = {"ended": number, "code": code, "output": _tail(log), "out_of_memory": out_of_memory}
            channel.send(report)

    def _end_processes(self) -> None:
        """End all processes of the node and wait for their ends."""
        with self._lock:
            processes, self._processes = list(self._processes.values()), {}
        for one in processes:
            one.process.kill()
        for one in processes:
            one.process.wait()
            if one.process.stdin is not None:
                one.process.stdin.close()
            one.log.close()


def _tail(log: IO[bytes]) -> str:
    """Return the last part of what a process has printed."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - _OUTPUT_BYTES))
    return log.read().decode(errors="replace")
