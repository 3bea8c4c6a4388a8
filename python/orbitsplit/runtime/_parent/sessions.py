"""Sessions of a pipeline: a plan runs until a node or a link is lost, then the next plan resumes the work.

Besides the callers, two threads of the parent run here: a listener for each session, which reads the events of the
first stage, and one supervisor, which checks the processes and starts the next session after a loss.
"""

from __future__ import annotations

import base64
import itertools
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from safetensors.torch import load as load_tensors

from orbitsplit._errors import InfeasiblePlanError, TransportError
from orbitsplit._io.deprecation import RenamedValue
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.codec_file import CodecFiles
from orbitsplit.runtime._messages.control import Ready, stage_name
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.transport import ControlStore

from . import log, worker_process
from .generation import Generation, GroupState
from .host_checks import check_devices, check_host
from .listener import Listener
from .recovery import Losses, Recovery, Replan
from .session import Callbacks, Session, Settings, check_memory
from .status import PipelineStatus, status_of
from .supervisor import Workers

_CHECK_S = 0.05
# How long the exit of the interpreter waits for the end of a pipeline that was not closed.
_JOIN_S = 5.0
_DROPPED = "it was dropped without close()"
# The session of groups that ended without measurements.
_NO_SESSION = -1
# The kinds of errors that are losses, after which the others can resume; any other error would recur.
_LOSSES = ("killed", "hangs", "memory", "link")


class Sessions:
    """The running plan, its processes, and the batches in flight.

    Its threads keep it alive, but it holds no reference to the pipeline, and only a weak one to the pipeline's
    `callbacks`: so a pipeline that is dropped is collected, and its finalizer calls `abandon`.
    """

    def __init__(self, plan: Plan, settings: Settings, callbacks: Callbacks) -> None:
        self.current = Session(-1, plan)
        self.recoveries: list[Recovery] = []
        self.group_numbers = itertools.count()
        self._settings = settings
        self._callbacks = weakref.ref(callbacks)
        self._origin_s: float | None = None
        self._losses = Losses()
        self._unusable: str | None = None
        self._is_closed = False
        self._is_abandoned = False
        self._has_ended = threading.Event()
        # Guards the attributes below, which callers, listener and supervisor change.
        self._lock = threading.RLock()
        self._session = 0
        self._is_ready = False
        self._requests = 0
        self._generations: dict[int, Generation] = {}
        self._codecs = CodecFiles(plan, settings.codebook)
        deployment = settings.deployment
        check_host(len(plan.stages), deployment.address, has_hosts=deployment.hosts is not None)
        is_here = deployment.stages_here(len(plan.stages))
        check_devices(stage for stage, here in zip(plan.stages, is_here, strict=False) if here)
        if any(is_here):
            models = {plan.weight_models.get(stage.weights or "", settings.model) for stage in plan.stages}
            for model in models | ({settings.assistant} - {None}):
                worker_process.prepare(model)
        self._store = ControlStore.host(deployment.address, deployment.port)
        store = ControlStore.join(self._store.address)
        self._launcher = deployment.launcher(self._store.address, settings.secret)
        self._workers = Workers(
            store,
            settings.timeouts,
            self._launcher,
            remote_nodes=deployment.remote_nodes,
        )
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
            final = self._recover(error)
            if final is not None:
                raise final from None

    @property
    def failure(self) -> str | None:
        """Why the pipeline has ended, in one line; None while it runs, and after `close`."""
        return None if self._is_closed else self._unusable

    @property
    def plan(self) -> Plan:
        """The plan of the current session, or of the last one."""
        return self.current.plan

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
        return self._is_ready and self._unusable is None

    def status(self) -> PipelineStatus:
        """Return what nodes and links reported last."""
        plan = self.plan
        return status_of(plan, self._workers.heartbeats(plan))

    def check_usable(self) -> None:
        """Raise TransportError if the pipeline has ended."""
        reason = self._unusable or (_DROPPED if self._is_abandoned else None)
        if reason is not None:
            raise TransportError(f"the pipeline cannot be used: {reason}", kind="unusable")

    def submit(self, generation: Generation) -> None:
        """Start the groups of a batch, immediately or with the next session."""
        # Packed before anything is registered: what cannot be sent must not be restarted after a loss.
        packed = [control.pack_begin(*state.remaining()) for state in generation.states.values()]
        with self._lock:
            self.check_usable()
            log.submitted(state.group for state in generation.states.values())
            for group, data in zip(generation.states, packed, strict=True):
                self._generations[group] = generation
                if self._is_ready:
                    self._request(data)

    def cancel(self, group: int) -> None:
        """Cancel a group."""
        with self._lock:
            if self._unusable is None and self._is_ready:
                self._request(control.pack_cancel(group))

    def records(self, groups: Sequence[Group], sessions: set[int | None]) -> tuple[Session, list[list[bytes]]] | None:
        """Return the session of the groups and each stage's records of them, None if they ran in several sessions."""
        with self._lock:
            current = self.current
            if sessions != {self._session} or not self._is_ready:
                return None
        keys = [control.record_key(current.number, group.id, worker) for group in groups for worker in current.workers]
        store = ControlStore.join(self._store.address)
        deadline_s = time.monotonic() + self._settings.timeouts.start_s
        while not all(map(store.has, keys)):
            if self._session != current.number or self._unusable is not None or time.monotonic() > deadline_s:
                return None
            time.sleep(0.002)
        values = [store.get(key) for key in keys]
        for key in keys:
            store.remove(key)
        return current, [values[k :: len(current.workers)] for k in range(len(current.workers))]

    def timed_out(self, error: TransportError) -> TransportError:
        """Return the error of a batch that took too long, with the name of the first stage."""
        plan = self.plan
        return TransportError(
            f"{stage_name(plan, 0)} {error}", kind="timeout", node=plan.stages[0].node, tokens=error.tokens
        )

    def fail(self, error: BaseException) -> None:
        """End all processes, and every batch in flight with an error."""
        with self._lock:
            if self._unusable is not None:
                return
            self._unusable = (str(error) or type(error).__name__).splitlines()[0]
        log.ended(error)
        self._end(grace_s=0.0)
        if not isinstance(error, TransportError):
            error = TransportError(self._unusable, kind="unusable")
        self._fail_generations(error)

    def _fail_unexpectedly(self, error: BaseException) -> None:
        # A thread that ended silently would leave its callers waiting.
        failure = TransportError(f"the pipeline cannot recover: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self.fail(failure)

    def close(self) -> None:
        """End all processes and return when they have ended, whichever thread ends them. May be called twice."""
        with self._lock:
            is_ending = self._unusable is not None
            if not is_ending:
                self._unusable, self._is_closed = "it is closed", True
                if self._is_ready:
                    self._request(control.STOP)
        if not is_ending:
            log.ended(None)
            self._end(grace_s=5.0)
            self._fail_generations(TransportError("the pipeline was closed", kind="unusable"))
        elif threading.current_thread() is not self._listener:  # the thread that ends everything waits for the listener
            self._has_ended.wait()

    def abandon(self) -> bool:
        """Make the supervisor end everything soon; return whether that is needed.

        It is called by a finalizer, which may interrupt any thread anywhere, so it takes no lock and does not wait.
        """
        self._is_abandoned = True
        return self._unusable is None

    def _end(self, grace_s: float) -> None:
        try:
            self._workers.end(grace_s)
            self._codecs.remove()
            if self._listener is not None:
                self._listener.end()
        finally:
            self._launcher.close()
            self._has_ended.set()

    def _fail_generations(self, error: TransportError) -> None:
        with self._lock:
            generations, self._generations = {id(g): g for g in self._generations.values()}, {}
        for generation in generations.values():
            generation.fail(error)

    def _request(self, data: bytes) -> None:
        self._store.put(control.request_key(self._session, self._requests), data)
        self._requests += 1

    def _begin(self, plan: Plan) -> None:
        """Start a session: assign the stages, wait until they are ready, and resume the batches in flight.

        Raises TransportError if the pipeline was ended meanwhile.
        """
        self.check_usable()
        started_s = time.monotonic()
        workers = self._workers.assign(plan, self._session)
        setup = self._settings.setup(plan, workers, codecs=self._codecs.path, origin_s=self._origin_s)
        sent = range(len(plan.links)) if setup.sends_codecs and self._codecs.path is not None else ()
        for link in sent:
            self._store.put(control.codecs_key(self._session, link), self._codecs.read(link))
        self._store.put(control.setup_key(self._session), setup.to_json())
        keys = [control.ready_key(self._session, worker) for worker in workers]
        store = ControlStore.join(self._store.address)

        def report() -> None:
            self.check_usable()
            callbacks = self._callbacks()
            if callbacks is not None:
                callbacks.progress(f"starting {len(keys)} processes", sum(map(store.has, keys)) / len(keys))

        values = self._workers.wait_for(
            plan, self._session, keys, limit_s=self._settings.timeouts.start_s, on_poll=report, doing="starting"
        )
        report()
        ready = tuple(Ready.from_json(value) for value in values)
        for link in sent:
            store.remove(control.codecs_key(self._session, link))  # both of its ends have it
        check_memory(plan, ready)
        log.ready(self._session, plan, time.monotonic() - started_s)
        log.chunks_unsupported(plan, ready)
        self._end_complete()
        with self._lock:
            self.check_usable()
            self.current = Session(self._session, plan, workers, ready)
            self._requests, self._is_ready = 0, True
            self._request(control.pack_limits(self._settings.limits(plan, ready)))
            self._origin_s = self._origin_s or time.monotonic()
            self._listener = Listener(self._store.address, self._session, self._on_events)
            self._listener.start()
            for generation in {id(g): g for g in self._generations.values()}.values():
                for state in generation.unfinished():
                    self._request_begin(state)
                if generation.is_cancelled:
                    generation.cancel()

    def _request_begin(self, state: GroupState) -> None:
        group, x = state.remaining()
        self._request(control.pack_begin(group if self._settings.exact_resume else replace(group, replayed=0), x))

    def _end_complete(self) -> None:
        """End the groups that got all their tokens in a session that was lost before it reported their ends."""
        with self._lock:
            found = [
                (group, generation)
                for group, generation in self._generations.items()
                if generation.states[group].is_complete
            ]
            for group, _ in found:
                del self._generations[group]
        for group, generation in found:
            generation.end(group, _NO_SESSION)

    def _on_events(self, session: int, events: list[list[Any]]) -> None:
        """Process events of the first stage; called by a listener."""
        try:
            for kind, group, value in events:
                if not self._take_event(session, kind, group, value):
                    return  # the session was lost: its groups are restarted, or fail
        except BaseException as error:
            self._fail_unexpectedly(error)

    def _take_event(self, session: int, kind: str, group: int, value: Any) -> bool:
        """Process one event; return whether its session is still current."""
        with self._lock:
            if session != self._session:
                return False
            generation, plan = self._generations.get(group), self.plan
        if generation is None:
            return True
        if kind == "retry":
            log.restarted(group, *value)
            return True
        if kind == "tokens":
            if isinstance(value, dict):
                generation.take(group, value["tokens"], base64.b64decode(value["details"]))
            else:
                generation.take(group, value)
            return True
        outputs = None
        if kind == "end" and not generation.states[group].group.generates:
            data = self._take_outputs(session, group)
            if data is None:
                return False
            outputs = load_tensors(data)
        with self._lock:
            if session != self._session or self._generations.pop(group, None) is None:
                return False
        if kind == "end":
            generation.end(group, session, outputs)
        else:
            log.given_up(group, value[0])
            generation.cancel()  # the other groups of the batch; the pipeline's other batches are not affected
            generation.fail(_group_error(plan, *value))
        return True

    def _take_outputs(self, session: int, group: int) -> bytes | None:
        """Wait for the outputs of the last stage; return None if it is lost after the first stage reported the end."""
        key, store = control.outputs_key(session, group), ControlStore.join(self._store.address)
        while not store.has(key):
            if session != self._session or self._unusable is not None:
                return None
            time.sleep(0.002)
        data = store.get(key)
        store.remove(key)
        return data

    def _supervise(self) -> None:
        while self._unusable is None:
            try:
                try:
                    self.check_usable()
                    self._workers.check(self.plan, self._session)
                except TransportError as error:
                    final = self._recover(error)
                    if final is not None:
                        self.fail(final)
            except BaseException as error:
                self._fail_unexpectedly(error)
            time.sleep(_CHECK_S)

    def _recover(self, error: TransportError) -> TransportError | None:
        """Recover from a loss, and from further losses meanwhile; return the error of the pipeline if that fails."""
        started_s = time.monotonic()
        before, plan, errors = self.plan, self.plan, [error]
        while self._unusable is None:
            lost_session = self._session
            if self._replan is None or error.kind not in _LOSSES:
                return error
            with self._lock:
                self._session, self._is_ready = self._session + 1, False
            log.lost(lost_session, error)
            self._losses.add(error)
            if self._listener is not None:
                self._listener.end()
            try:
                self.check_usable()
                # The plan that was lost last: its workers may differ from those of the plan before the first loss.
                self._workers.quiesce(plan, lost_session, error)
                plan = self._next_plan(before, errors)
                self._begin(plan)
            except TransportError as another:
                error = another
                errors.append(error)
                continue
            except InfeasiblePlanError as reason:
                message = f"{str(error).splitlines()[0]}; without it the pipeline cannot recover: {reason}"
                return TransportError(message, kind=error.kind, node=error.node, link=error.link)
            loading_s = max(ready.loading_s for ready in self.ready)
            seconds, (first, *further) = time.monotonic() - started_s, errors
            self.recoveries.append(Recovery(first, before, plan, seconds, loading_s, tuple(further)))
            with self._lock:
                requests = len({id(generation) for generation in self._generations.values()})
            log.recovered(self.recoveries[-1], self._session, requests)
            return None
        return None

    @property
    def _replan(self) -> Replan | None:
        callbacks = self._callbacks()
        return None if callbacks is None else callbacks.replan

    def _absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes that no plan may use now: those without a host, and with one that cannot emulate links."""
        asked = list(nodes)
        return [*self._launcher.absent(asked), *self._settings.deployment.without_our_clock(asked)]

    def _next_plan(self, before: Plan, errors: Sequence[TransportError]) -> Plan:
        replan = self._replan
        if replan is None:
            raise TransportError(_DROPPED, kind="unusable")
        self._losses.forget(self._launcher.take_returned(), errors)
        plan = self._losses.plan_without(replan, before, errors[-1], self._absent)
        codecs = CodecFiles(plan, self._settings.codebook)
        with self._lock:
            if self._unusable is None:  # else the new file is the one that is not needed
                self._codecs, codecs = codecs, self._codecs
        codecs.remove()
        return plan


def _group_error(plan: Plan, kind: str, reason: str) -> TransportError:
    if kind == "request":
        return TransportError(f"the request failed on {reason}", kind=kind)
    links = ", ".join(f"{a.node} to {b.node}" for a, b in pairwise(plan.stages))
    kind = RenamedValue("corruption", old="damage")
    return TransportError(f"a group is given up on the links {links}: {reason}", kind=kind)


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():
        thread.join(_JOIN_S)
