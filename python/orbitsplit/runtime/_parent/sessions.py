"""Sessions of a pipeline: a plan runs until a node or a link is lost, then the next plan resumes the work.

Besides the callers, two threads of the parent run here: a listener for each session, which reads the events of the
first stage, and one supervisor, which checks the processes and starts the next session after a loss.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit._plans.migration import Context
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import CodecFiles
from orbitsplit.runtime._messages.control import Heartbeat, Ready
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.groups import Group

from . import log, worker_process
from .generation import Generation, GroupState
from .hand_over import NO_HAND_OVER, HandOver
from .in_flight import InFlight
from .lifetime import Lifetime
from .listener import Listener
from .migration import Migration, overtaken
from .migration_target import check_target
from .migrations import Migrations
from .recoveries import Recoveries
from .session import Callbacks, Session, Settings, models_here
from .session_start import SessionStart
from .status import PipelineStatus, status_of
from .supervisor import Workers

_CHECK_S = 0.05
# How long the exit of the interpreter waits for the end of a pipeline that was not closed.
_JOIN_S = 5.0


class Sessions:
    """The running plan, its processes, and the batches in flight.

    Its threads keep it alive, but it holds no reference to the pipeline, and only a weak one to the pipeline's
    `callbacks`: so a pipeline that is dropped is collected, and its finalizer calls `lifetime.drop`.
    """

    def __init__(self, plan: Plan, settings: Settings, callbacks: Callbacks) -> None:
        self.current = Session(-1, plan)
        self.lifetime = Lifetime()
        self.group_numbers = itertools.count()
        self._settings = settings
        self._callbacks = weakref.ref(callbacks)
        self._origin_s: float | None = None
        # Guards the attributes below, which callers, listener and supervisor change.
        self._lock = threading.RLock()
        self._session = 0
        self._is_ready = False
        self._requests = 0
        self._wake = threading.Event()  # the supervisor need not wait
        self._codecs = CodecFiles(plan, settings.codebook)
        deployment = settings.deployment
        for model in models_here(plan, settings):
            worker_process.prepare(model)
        self._replicas = deployment.replicas
        self._store = ControlStore.host(deployment.address, deployment.port)
        store = ControlStore.join(self._store.address)
        self._in_flight = InFlight(
            self._store.address,
            lambda session: session == self._session,
            lambda: self.lifetime.is_over,
            self._replicas,
        )
        self._launcher = deployment.launcher(self._store.address, settings.secret)
        self._workers = Workers(store, settings.timeouts, self._launcher, remote_nodes=deployment.remote_nodes)
        self._session_start = SessionStart(settings, self._store.address, self._workers, self._report_start)
        self.recoveries = Recoveries(callbacks, deployment, self._launcher, self._in_flight)
        self.migrations = Migrations(self._settings, self._workers, self._in_flight)
        self._listener: Listener | None = None
        try:
            self._start(plan)
        except BaseException as error:
            self.fail(error)
            raise
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()
        # At the exit of the interpreter finalizers run in reverse order: this one after that of the pipeline.
        weakref.finalize(self, _join, self._supervisor)

    def _start(self, plan: Plan) -> None:
        """Begin the first session. Raises TransportError where a loss meanwhile cannot be recovered from."""
        try:
            self._begin(plan)
        except TransportError as error:
            final = self.recoveries.recover(self, error, plan)
            if final is not None:
                raise final from None

    @property
    def plan(self) -> Plan:
        """The plan of the current session, or of the last one."""
        return self.current.plan

    @property
    def origin_s(self) -> float:
        """The instant of the monotonic clock from which the times of conditions count."""
        assert self._origin_s is not None  # it is set before the constructor returns
        return self._origin_s

    @property
    def ready(self) -> tuple[Ready, ...]:
        """What each stage reported when it was ready."""
        return self.current.ready

    @property
    def pids(self) -> tuple[int, ...]:
        """The process id of each stage."""
        return self._workers.pids(self.plan)

    @property
    def is_ready(self) -> bool:
        """Whether work that is submitted starts at once: False during a recovery, and after the end."""
        return self._is_ready and not self.lifetime.is_over

    def status(self) -> PipelineStatus:
        """Return what nodes and links reported last."""
        plan = self.plan
        return status_of(plan, self._workers.heartbeats(plan))

    def reports(self) -> tuple[Session, list[Heartbeat | None]]:
        """Return the session, and the last heartbeat of each of its stages."""
        current = self.current
        return current, self._workers.heartbeats(current.plan)

    def rest(self) -> tuple[int, list[Context]]:
        """Return the most new tokens of a row that are asked for and have not come, and what is known of each group."""
        return self._in_flight.rest(exact_resume=self._settings.exact_resume)

    def submit(self, generation: Generation) -> None:
        """Start the groups of a batch, immediately or with the next session."""
        self._replicas.resume(generation)
        if generation.is_over:  # a function of the caller has failed
            return
        # Packed before anything is registered: what cannot be sent must not be restarted after a loss.
        packed = {group: self._packed(state) for group, state in generation.states.items() if not state.is_complete}
        with self._lock:
            self.lifetime.check_usable()
            log.submitted(state.group for state in generation.states.values())
            self._replicas.begin(generation)
            for group in generation.states:
                self._in_flight.add(group, generation)
            if self._is_ready:
                for data in packed.values():
                    self._request(data)
        if len(packed) < len(generation.states):
            self._in_flight.end_complete()

    def cancel(self, group: int) -> None:
        """Cancel a group."""
        with self._lock:
            if self.is_ready:
                self._request(control.pack_cancel(group))

    def records(self, groups: Sequence[Group], sessions: set[int | None]) -> tuple[Session, list[list[bytes]]] | None:
        """Return the session of the groups and each stage's records of them, None if they ran in several sessions."""
        with self._lock:
            current = self.current
            if sessions != {self._session} or not self._is_ready:
                return None
        found = self._in_flight.records(current.number, groups, current.workers, self._settings.timeouts.start_s)
        return None if found is None else (current, found)

    def migrate(self, plan: Plan, not_before_s: float = 0.0, *, yields: bool = False) -> Migration:
        """Go over to another plan and return when work has resumed; see `Pipeline.migrate`.

        If it `yields`, a later call comes first.
        """
        migrating = None
        while migrating is None:
            self.lifetime.check_usable()
            before = self.plan
            checked, codecs = check_target(plan, before, self._settings, self.recoveries.losses)
            with self._lock:
                self.lifetime.check_usable()
                if self.plan is before:
                    if not self._is_ready and not self.migrations.is_under_way:
                        raise overtaken(TransportError("the pipeline recovers from a loss"))
                    migrating = self.migrations.start(checked, before, codecs, not_before_s, yields=yields)
                elif yields:
                    raise overtaken(TransportError("the plan has changed meanwhile"))
        self._wake.set()
        return migrating.wait()

    def fail(self, error: BaseException) -> None:
        """End all processes, and every batch in flight with an error."""
        with self._lock:
            if self.lifetime.is_over:
                return
            reason = self.lifetime.reason = (str(error) or type(error).__name__).splitlines()[0]
        log.ended(error)
        self._end(grace_s=0.0)
        if not isinstance(error, TransportError):
            error = TransportError(reason, kind="unusable")
        self._in_flight.fail_all(error)

    def _fail_unexpectedly(self, error: BaseException) -> None:
        # A thread that ended silently would leave its callers waiting.
        failure = TransportError(f"the pipeline cannot recover: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self.fail(failure)

    def close(self) -> None:
        """End all processes and return when they have ended, whichever thread ends them. May be called twice."""
        with self._lock:
            is_ending = self.lifetime.is_over
            if not is_ending:
                self.lifetime.reason, self.lifetime.is_closed = "it is closed", True
                if self._is_ready:
                    self._request(control.STOP)
        if not is_ending:
            log.ended(None)
            self._end(grace_s=5.0)
            self._in_flight.fail_all(TransportError("the pipeline was closed", kind="unusable"))
        elif threading.current_thread() is not self._listener:  # the thread that ends everything waits for the listener
            self.lifetime.ended.wait()

    def _end(self, grace_s: float) -> None:
        try:
            self._workers.end(grace_s)
            self._codecs.remove()
            if self._listener is not None:
                self._listener.end()
        finally:
            self._launcher.close()
            self.lifetime.ended.set()
            self.migrations.drop(TransportError(f"the pipeline has ended: {self.lifetime.reason}", kind="unusable"))

    def _request(self, data: bytes) -> None:
        self._store.put(control.request_key(self._session, self._requests), data)
        self._requests += 1

    def _begin(self, plan: Plan, hand_over: HandOver = NO_HAND_OVER) -> None:
        """Start a session: assign the stages, wait until they are ready, and resume the batches in flight.

        Raises TransportError if the pipeline was ended meanwhile.
        """
        self.lifetime.check_usable()
        started_s = time.monotonic()
        started = self._session_start.run(self._session, plan, hand_over, self._codecs, origin_s=self._origin_s)
        log.ready(self._session, plan, time.monotonic() - started_s)
        log.chunks_unsupported(plan, started.ready)
        self._in_flight.end_complete()
        self._in_flight.times.restart()
        moved = hand_over.arrived(started.ready)
        with self._lock:
            self.lifetime.check_usable()
            self.current = started
            self._requests, self._is_ready = 0, True
            self._request(control.pack_limits(self._settings.limits(plan, started.ready)))
            self._origin_s = self._origin_s or time.monotonic()
            self._listener = Listener(self._store.address, self._session, self._on_events)
            self._listener.start()
            for generation in self._in_flight.batches():
                for state in generation.unfinished():
                    self._request(self._packed(state, is_moved=state.group.id in moved))
                if generation.is_cancelled:
                    generation.cancel()

    def _report_start(self, ready: int, workers: int) -> None:
        self.lifetime.check_usable()
        callbacks = self._callbacks()
        if callbacks is not None:
            callbacks.progress(f"starting {workers} processes", ready / workers)

    def _packed(self, state: GroupState, *, is_moved: bool = False) -> bytes:
        group, x = state.remaining()
        return control.pack_begin(self._settings.resumed(group, is_moved=is_moved), x)

    def _on_events(self, session: int, events: list[list[Any]]) -> None:
        """Process events of the first stage; called by a listener."""
        try:
            for kind, group, value in events:
                if session == self._session:
                    self.migrations.note(kind, value)
                if self.migrations.is_due:
                    self._wake.set()
                if kind == "drained":
                    continue
                if not self._in_flight.take_event(session, self.plan, kind, group, value):
                    return  # the session was lost: its groups are restarted, or fail
        except BaseException as error:
            self._fail_unexpectedly(error)

    def _supervise(self) -> None:
        while not self.lifetime.is_over:
            try:
                try:
                    self.lifetime.check_usable()
                    self._workers.check(self.plan, self._session)
                    self.migrations.advance(self)
                except TransportError as error:
                    self._recover(error, self.migrations.target or self.plan)
            except BaseException as error:
                self._fail_unexpectedly(error)
            self._wake.wait(_CHECK_S)
            self._wake.clear()

    def drain(self) -> None:
        """Let the first stage send nothing more; it reports when nothing is under way."""
        with self._lock:
            self._is_ready = False
            self._request(control.pack_drain())

    def go_over(self, plan: Plan, hand_over: HandOver, codecs: CodecFiles) -> None:
        """End the session, in which nothing is under way, and start the next one with another plan and its codecs."""
        self._store.put(control.hand_over_key(self._session), b"")
        with self._lock:
            self._request(control.STOP)
            self._session += 1
        if self._listener is not None:
            self._listener.end()
        self._swap_codecs(codecs)
        self._workers.hand_over(plan)
        self._begin(plan, hand_over)
        self._workers.have_left()

    def go_back(self, left: Plan, plan: Plan, error: Exception) -> None:
        """Leave a session of a plan, which does not start or does not drain, and start the next one with `plan`."""
        log.not_migrated(plan, error)
        cause = error if isinstance(error, TransportError) else TransportError(str(error))
        self.quiesce(left, self._next_session(), cause)
        try:
            self.resume(plan)
        except TransportError as another:
            self._recover(another, plan)

    def leave(self, error: TransportError) -> int:
        """Let events of the session be ignored from now on, and work wait for the next one; return its number."""
        session = self._next_session()
        self.migrations.drop(overtaken(error))  # none is started any more, before the next session
        return session

    def quiesce(self, plan: Plan, session: int, error: TransportError) -> None:
        """Wait until no worker of a plan is in a session any more, which an error has ended."""
        self._workers.quiesce(plan, session, error)
        self._session_start.remove_codecs()

    def resume(self, plan: Plan) -> None:
        """Start the next session with a plan, and resume the batches in flight."""
        self._swap_codecs(CodecFiles(plan, self._settings.codebook))
        self._begin(plan)

    def _next_session(self) -> int:
        with self._lock:
            left, self._session, self._is_ready = self._session, self._session + 1, False
        if self._listener is not None:
            self._listener.end()
        return left

    def _recover(self, error: TransportError, before: Plan) -> None:
        """Recover from a loss, or end the pipeline where that fails."""
        final = self.recoveries.recover(self, error, before)
        if final is not None:
            self.fail(final)

    def _swap_codecs(self, codecs: CodecFiles) -> None:
        with self._lock:
            if not self.lifetime.is_over:  # else the new file is the one that is not needed
                self._codecs, codecs = codecs, self._codecs
        codecs.remove()


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():
        thread.join(_JOIN_S)
