"""The worker processes of a parent: start them, detect failures, end them."""

from __future__ import annotations

import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from orbitsplit._errors import TransportError
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import Failure, Heartbeat, Ready, Setup, stage_name
from orbitsplit.runtime._messages.control_store import ControlStore

from .launcher import Launcher, new_log
from .log import LOG
from .options import Timeouts
from .running_worker import CONSEQUENCE, RunningWorker, cause_of, kill_all
from .worker_process import WorkerProcess

_POLL_S = 0.02
# The interval of reading heartbeats; workers write them every second, or four times a second at work.
_READ_S = 0.25
# The limit for the first heartbeat of a worker that torchrun started, which imports its libraries first.
_FIRST_HEARTBEAT_S = 120.0
# After one failure, the time for the others to report, so that the cause can be told from its consequences.
_GRACE_S = 0.7
# The time for a worker to leave a lost session before it is killed: it may be in the middle of a forward.
_QUIESCE_S = 5.0


class Workers:
    """One process for each node of a plan, started by a launcher. None outlives this object, its interpreter, or `end`.

    `remote_nodes` are nodes whose processes are started elsewhere (by torchrun, on other machines): worker k is that of
    `remote_nodes[k]`, None if it is started here.
    """

    def __init__(
        self,
        store: ControlStore,
        timeouts: Timeouts,
        launcher: Launcher,
        *,
        remote_nodes: Sequence[str | None] = (),
    ) -> None:
        self._store = store
        self._timeouts = timeouts
        self._launcher = launcher
        # One thread starts and ends the processes of nodes; others read their ids, or end all of them.
        self._lock = threading.Lock()
        self._has_ended = False
        self._processes = {
            node: RunningWorker(k, None, None) for k, node in enumerate(remote_nodes) if node is not None
        }
        self._next_number = len(remote_nodes)
        self._ahead: dict[str, RunningWorker] = {}  # they load stages of the next session
        self._leaving: dict[str, RunningWorker] = {}  # they hand caches over to those of the next session
        self._started: list[WorkerProcess] = []
        self._last_read_s = 0.0
        # It also runs at the exit of the interpreter; if that is killed, the workers' standard input is closed.
        weakref.finalize(self, kill_all, self._started)

    def pids(self, plan: Plan) -> tuple[int, ...]:
        """Return the process id of each stage (0: on another machine)."""
        with self._lock:
            workers = [self._processes.get(stage.node) for stage in plan.stages]
        processes = (worker.process for worker in workers if worker is not None)
        return tuple(0 if process is None else process.pid for process in processes)

    def heartbeats(self, plan: Plan) -> list[Heartbeat | None]:
        """Return the last heartbeat of each stage, None for one that has sent none."""
        with self._lock:
            workers = [self._processes.get(stage.node) for stage in plan.stages]
        return [None if worker is None else worker.heartbeat for worker in workers]

    def starts(self, node: str) -> bool:
        """Return whether processes of a node are started here, so that it may have two for a while."""
        return node not in self._processes or self._processes[node].process is not None

    def load_ahead(
        self, plan: Plan, session: int, nodes: Sequence[str], setup: Callable[[tuple[int, ...]], Setup]
    ) -> None:
        """Start a further process for each of some nodes, which loads its stage of a plan for a later session.

        `setup(workers)` is that of the session. Raises TransportError for a node without a host.
        """
        for node in self._launcher.absent(nodes):
            raise TransportError(
                f'node "{node}" has no host: none has joined, or it has left', kind="killed", node=node
            )
        numbers = dict(zip(nodes, range(self._next_number, self._next_number + len(nodes)), strict=True))
        self._next_number += len(nodes)
        known = {node: worker.number for node, worker in self._processes.items()} | numbers
        data = setup(tuple(known.get(stage.node, -1) for stage in plan.stages)).to_json()
        for node, number in numbers.items():
            self._store.put(control.ahead_key(number), data)
            self._ahead[node] = self._launched(node, number, session, plan.threads)

    def has_loaded(self, plan: Plan, session: int) -> dict[str, Ready] | None:
        """Return what the processes that load ahead have reported, by node; None until all have.

        Raises TransportError for one that has failed; the message names it.
        """
        for rank, stage in enumerate(plan.stages):
            worker = self._ahead.get(stage.node)
            if worker is not None and self._has_failed(worker, session):
                raise self._cause(stage_name(plan, rank), stage.node, session, worker)[1]
        keys = {node: control.loaded_key(worker.number) for node, worker in self._ahead.items()}
        if not all(map(self._store.has, keys.values())):
            return None
        return {node: Ready.from_json(self._store.get(key)) for node, key in keys.items()}

    def drop_ahead(self) -> None:
        """End the processes that load ahead."""
        while self._ahead:
            _, worker = self._ahead.popitem()
            self._kill(worker)

    def hand_over(self, plan: Plan) -> None:
        """Put the processes that have loaded ahead in their places. Those that have none in a plan leave."""
        needed = {stage.node for stage in plan.stages}
        with self._lock:
            leaving = {node for node in self._processes if node in self._ahead or node not in needed}
            self._leaving = {node: self._processes.pop(node) for node in leaving}
            for worker in self._leaving.values():
                worker.is_leaving = True
            self._processes |= self._ahead
            self._ahead = {}

    def have_left(self) -> None:
        """Forget the processes that leave: they have handed over what they had, and end themselves."""
        for worker in self._leaving.values():
            worker.close_log()
        self._leaving = {}

    def assign(self, plan: Plan, session: int) -> tuple[int, ...]:
        """Return the number of each stage's worker; start the processes of nodes that have none for the session.

        Workers of nodes that are not in the plan end by themselves. Raises TransportError after `end`.
        """
        needed = {stage.node for stage in plan.stages}
        for node in self._launcher.absent(needed - self._processes.keys()):
            raise TransportError(f'node "{node}" has no host: it has left', kind="killed", node=node)
        with self._lock:
            obsolete = [self._processes.pop(node) for node in set(self._processes) - needed]
        for worker in obsolete:
            worker.close_log()
        for stage in plan.stages:
            if stage.node not in self._processes:
                self._start(stage.node, session, plan.threads)
        return tuple(self._processes[stage.node].number for stage in plan.stages)

    def wait_for(
        self,
        plan: Plan,
        session: int,
        keys: Sequence[str],
        *,
        limit_s: float | None,
        on_poll: Callable[[], None],
        doing: str,
    ) -> list[bytes]:
        """Wait until all keys (of stage 0, 1, ...) are in the store and return their values.

        Raises:
            TransportError: A worker died, failed or hangs, or `limit_s` seconds passed; the message names the worker.
        """
        started_s = time.monotonic()
        missing = list(keys)
        while missing := [key for key in missing if not self._store.has(key)]:
            self.check(plan, session)
            on_poll()
            if limit_s is not None and time.monotonic() - started_s > limit_s:
                name, node, worker = self._watched(plan)[keys.index(missing[0]) % len(plan.stages)]
                raise TransportError(
                    f"{name} did not finish {doing} within {limit_s:g} s{_phase(worker)}", kind="timeout", node=node
                )
            time.sleep(_POLL_S)
        return [self._store.get(key) for key in keys]

    def check(self, plan: Plan, session: int) -> None:
        """Check every worker once, those that hand caches over too.

        Raises:
            TransportError: A worker died, reported a failure or sent no heartbeat for too long, or a link does not
                deliver; the message names the cause.
        """
        self._launcher.check()
        watched = self._watched(plan)
        if any(self._has_failed(worker, session) for _, _, worker in watched):
            raise self._find_cause(watched, session)
        now_s = time.monotonic()
        if now_s - self._last_read_s < _READ_S:
            return
        self._last_read_s = now_s
        for name, node, worker in watched:
            self._check_heartbeat(name, node, worker)
        self._check_links(plan, session)

    def quiesce(self, plan: Plan, session: int, error: TransportError) -> None:
        """Quiesce a session after a loss: kill the lost node's process, and let the others leave the session.

        A process that does not leave it in time is killed as well; its node gets a new process.
        """
        if error.node in self._processes:
            self._end(error.node)
        while self._leaving:
            self._kill(self._leaving.popitem()[1])
        self._store.put(control.interrupt_key(session), b"")
        deadline_s = time.monotonic() + _QUIESCE_S
        remaining = {stage.node for stage in plan.stages if stage.node in self._processes}
        while remaining := {node for node in remaining if not self._has_failed(self._processes[node], session)}:
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_POLL_S)
        for stage in plan.stages:
            worker_or_none = self._processes.get(stage.node)
            if worker_or_none is not None and (stage.node in remaining or self._is_over(worker_or_none, session)):
                if stage.node in remaining:
                    LOG.warning('node "%s" did not leave session %d within %g s', stage.node, session, _QUIESCE_S)
                self._end(stage.node)

    def end(self, grace_s: float = 0.0) -> None:
        """End all processes, kill those that are left after `grace_s` seconds, and start none any more."""
        with self._lock:
            self._has_ended = True
            started, workers = list(self._started), [*self._processes.values(), *self._leaving.values()]
            ahead = [worker.process for worker in self._ahead.values() if worker.process is not None]
        kill_all(ahead)  # nothing tells them to end
        deadline_s = time.monotonic() + grace_s
        for process in started:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                break
        killed = kill_all(started)
        if killed and grace_s:
            LOG.warning("%d of %d processes did not end within %g s and were killed", killed, len(started), grace_s)
        for worker in workers:
            worker.close_log()

    def _start(self, node: str, session: int, threads: int) -> None:
        number, self._next_number = self._next_number, self._next_number + 1
        self._processes[node] = self._launched(node, number, session, threads)

    def _launched(self, node: str, number: int, session: int, threads: int) -> RunningWorker:
        # Under the lock, so that `end` knows of every process that was started.
        with self._lock:
            if self._has_ended:
                raise TransportError(f'no process is started for node "{node}": all were ended', kind="unusable")
            log = new_log()
            try:
                process = self._launcher.start(node, number, session, threads=threads, log=log)
            except BaseException:
                log.close()
                raise
            self._started.append(process)
        LOG.debug('node "%s": a process is started for session %d', node, session)
        return RunningWorker(number, process, log)

    def _end(self, node: str) -> None:
        with self._lock:
            worker = self._processes.pop(node)
        pid = self._kill(worker)
        if pid is not None:
            LOG.warning('node "%s": process %d killed', node, pid)

    def _kill(self, worker: RunningWorker) -> int | None:
        """End a process; return its id if it was running."""
        killed = None
        if worker.process is not None:
            killed = worker.process.pid if kill_all([worker.process]) else None
            with self._lock:
                self._started.remove(worker.process)
        worker.close_log()
        return killed

    def _is_over(self, worker: RunningWorker, session: int) -> bool:
        """Return whether a worker has ended, or is about to because of an error of its own."""
        key = control.failure_key(session, worker.number)
        if worker.has_ended or not self._store.has(key):
            return worker.has_ended
        return not Failure.from_json(self._store.get(key)).is_consequence

    def _watched(self, plan: Plan) -> list[tuple[str, str, RunningWorker]]:
        """Return the name in messages, the node and the worker of each stage, and of each that hands caches over."""
        stages = [
            (stage_name(plan, rank), stage.node, self._processes[stage.node]) for rank, stage in enumerate(plan.stages)
        ]
        leaving = [
            (f'node "{node}", while it handed its caches over,', node, worker) for node, worker in self._leaving.items()
        ]
        return stages + leaving

    def _check_heartbeat(self, name: str, node: str, worker: RunningWorker) -> None:
        """Raise TransportError if a worker sent no heartbeat for too long."""
        if worker.has_ended:  # one that had nothing to hand over
            return
        self._read_heartbeat(worker)
        silent_s = time.monotonic() - worker.changed_s
        if worker.heartbeat is None and worker.process is None and silent_s > _FIRST_HEARTBEAT_S:
            raise TransportError(
                f"{name} sent no heartbeat within {_FIRST_HEARTBEAT_S:g} s of the start: see the output of its machine",
                kind="hangs",
                node=node,
            )
        if worker.heartbeat is not None and silent_s > self._timeouts.heartbeat_s:
            raise TransportError(
                f"{name} sent no heartbeat for {silent_s:.1f} s, the limit is "
                f"{self._timeouts.heartbeat_s:g} s{_phase(worker)}",
                kind="hangs",
                node=node,
            )

    def _read_heartbeat(self, worker: RunningWorker) -> None:
        key = control.heartbeat_key(worker.number)
        if not self._store.has(key):
            return
        heartbeat = Heartbeat.from_json(self._store.get(key))
        if worker.heartbeat is None or worker.heartbeat.count != heartbeat.count:
            worker.changed_s = time.monotonic()
        worker.heartbeat = heartbeat

    def _check_links(self, plan: Plan, session: int) -> None:
        """Raise TransportError if a message is long overdue and its receiver is waiting."""
        stages = plan.stages
        for rank, stage in enumerate(stages[: len(stages) if len(stages) > 1 else 0]):
            after = stages[(rank + 1) % len(stages)]
            sent, received = self._processes[stage.node].heartbeat, self._processes[after.node].heartbeat
            if sent is None or received is None or not sent.session == received.session == session:
                continue
            if sent.sent <= received.received or received.waiting_s <= self._timeouts.stall_s:
                continue
            # If more messages are missing than are remembered, the oldest that is remembered, which is expected later.
            first = max(0, len(sent.arrivals_in_s) - (sent.sent - received.received))
            late_s = -sent.arrivals_in_s[first]
            if late_s > self._timeouts.stall_s:
                raise TransportError(
                    f'link from node "{stage.node}" to node "{after.node}" does not deliver: '
                    f"a message is {late_s:.0f} s late, the limit is {self._timeouts.stall_s:g} s",
                    kind="link",
                    link=(stage.node, after.node),
                )

    def _has_failed(self, worker: RunningWorker, session: int) -> bool:
        return worker.is_lost or self._store.has(control.failure_key(session, worker.number))

    def _find_cause(self, watched: Sequence[tuple[str, str, RunningWorker]], session: int) -> TransportError:
        """Return the error of the most likely cause among all workers that failed.

        In this order: a process killed from outside, one that reported an error of its own, one that aborted or exited
        without a report, one that lost its connection to a neighbour.
        """
        deadline_s = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline_s and not all(self._has_failed(one[2], session) for one in watched):
            time.sleep(_POLL_S)
        causes = [
            self._cause(name, node, session, worker)
            for name, node, worker in watched
            if self._has_failed(worker, session)
        ]
        priority, error = min(causes, key=lambda cause: cause[0])
        if priority < CONSEQUENCE:
            return error
        # A worker on another machine was lost: the one whose heartbeats stop.
        deadline_s = time.monotonic() + self._timeouts.heartbeat_s + _GRACE_S
        while time.monotonic() < deadline_s:
            others = [one for one in watched if not self._has_failed(one[2], session)]
            if not others:
                break
            for name, node, worker in others:
                self._check_heartbeat(name, node, worker)
            time.sleep(_POLL_S)
        return error

    def _cause(self, name: str, node: str, session: int, worker: RunningWorker) -> tuple[int, TransportError]:
        return cause_of(worker, name, node, session, self._store, self._launcher)


def _phase(worker: RunningWorker) -> str:
    return " (it sent no heartbeat yet)" if worker.heartbeat is None else f" (it is {worker.heartbeat.phase})"
