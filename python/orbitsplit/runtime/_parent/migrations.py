"""The migrations of a pipeline: the one that is under way, and those that are done."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Protocol

from orbitsplit._errors import TransportError
from orbitsplit._plans.migration import forecast, stage_times
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.codec_file import CodecFiles
from orbitsplit.runtime._messages.control import Setup

from . import log
from .hand_over import (
    NO_HAND_OVER,
    HandOver,
    activation_bytes,
    bytes_per_layer,
    contexts_again,
    contexts_of,
    copied_bytes,
    moved_groups,
)
from .in_flight import InFlight
from .migration import Migrating, Migration, overtaken
from .migration_target import nodes_loading
from .recovery import LOSS_KINDS
from .session import Session, Settings, check_stage_memory
from .supervisor import Workers

# What the first switch takes beside the connections of the stages: the parent and its workers exchange messages.
_OVERHEAD_S = 0.1
# The longest of so many switches is the prediction of the next one.
_SWITCHES = 5


class RunningSession(Protocol):
    """What a migration needs of the sessions of a pipeline."""

    current: Session

    def drain(self) -> None:
        """Let the first stage send nothing more; it reports when nothing is under way."""

    def go_over(self, plan: Plan, hand_over: HandOver, codecs: CodecFiles) -> None:
        """End the session, in which nothing is under way, and start the next one with another plan and its codecs."""

    def go_back(self, left: Plan, plan: Plan, error: Exception) -> None:
        """Leave a session of a plan, which does not start or does not drain, and start the next one with `plan`."""


class Migrations:
    """Drives migrations one at a time. `advance` is for the supervisor, `note` for the listener of a session."""

    def __init__(self, settings: Settings, workers: Workers, in_flight: InFlight) -> None:
        self.done: list[Migration] = []
        self._settings = settings
        self._workers = workers
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._current: Migrating | None = None
        self._next: Migrating | None = None  # a caller's, while one that yields is under way
        self._progress_s: float | None = None  # when the last token came
        self._switches_s: deque[float] = deque(maxlen=_SWITCHES)
        self._loading_s = 0.0  # the most that a stage has taken to load

    @property
    def target(self) -> Plan | None:
        """The plan of the migration under way whose session is about to start, or has started."""
        current = self._current
        return current.plan if current is not None and current.phase == "resuming" else None

    @property
    def is_due(self) -> bool:
        """Whether `advance` has work that does not wait."""
        current = self._current
        return current is not None and (current.is_switching or current.resumed_s is not None)

    @property
    def is_under_way(self) -> bool:
        """Whether one has started and is not over."""
        return self._current is not None

    def start(
        self, plan: Plan, before: Plan, codecs: CodecFiles, not_before_s: float, *, yields: bool = False
    ) -> Migrating:
        """Start a migration that switches at `not_before_s` of the monotonic clock at the earliest.

        One that `yields` ends if another one is started before the old session drains; from then on that one waits.
        Raises TransportError of kind "busy" during one that does not yield, and if one waits already.
        """
        with self._lock:
            migrating = Migrating(plan, before, codecs, not_before_s, yields)
            if self._current is None:
                self._current = migrating
            elif self._current.yields and not yields and self._next is None:
                self._next = migrating
            else:
                target = (self._next or self._current).plan
                raise TransportError(f"the pipeline is migrating already, to {target}", kind="busy")
            return migrating

    def advance(self, running: RunningSession) -> None:
        """Take the next step of the migration under way, if it is due.

        Raises TransportError if its session is lost while it starts.
        """
        self._take_next(running.current.plan)
        migrating = self._current
        if migrating is None:
            return
        if migrating.phase == "asked":
            self._load_ahead(migrating, running.current)
        elif migrating.phase == "loading":
            self._drain_once_loaded(migrating, running)
        elif migrating.is_switching and migrating.phase == "draining":
            self._switch(migrating, running)
        elif migrating.phase == "draining":
            self._limit_draining(migrating, running)
        if migrating.resumed_s is not None:
            self._finish(migrating, migrating.resumed_s)

    def note(self, kind: str, value: Any) -> None:
        """Take note of an event of the current session."""
        migrating = self._current
        if kind == "drained":
            if migrating is not None:
                if value and self._progress_s is not None:
                    migrating.paused_since_s = self._progress_s
                migrating.drained = value
            return
        self._progress_s = time.monotonic()
        if migrating is not None and migrating.phase == "resuming" and migrating.resumed_s is None:
            migrating.resumed_s = self._progress_s

    def drop(self, error: BaseException) -> None:
        """End the migration under way with an error, if there is one, and the one that waits."""
        with self._lock:
            waiting, self._next = self._next, None
        self._give_up(error)
        if waiting is not None:
            waiting.fail(error)

    def _give_up(self, error: BaseException) -> None:
        """End the migration under way with an error, if there is one."""
        with self._lock:
            migrating, self._current = self._current, None
        if migrating is not None:
            self._workers.drop_ahead()
            migrating.fail(error)

    def _take_next(self, plan: Plan) -> None:
        """Begin with the migration that waits, if there is one, unless another one holds the session back."""
        with self._lock:
            current, waiting = self._current, self._next
            if waiting is None or (current is not None and current.holds_back):
                return
        self._give_up(overtaken(TransportError(f"another one was asked for, to {waiting.plan}")))
        with self._lock:
            if self._next is waiting:  # else all were dropped
                waiting.before = plan
                self._current, self._next = waiting, None

    def _load_ahead(self, migrating: Migrating, current: Session) -> None:
        plan = migrating.plan
        migrating.started_s = time.monotonic()
        starts = [self._workers.starts(stage.node) for stage in plan.stages]
        ahead, migrating.loaded_in_pause = nodes_loading(migrating.before, plan, starts, copied_bytes(current, plan))
        migrating.loaded_ahead, migrating.phase = ahead, "loading"

        def setup(workers: tuple[int, ...]) -> Setup:
            return self._settings.setup(plan, workers, codecs=None, origin_s=None)

        try:
            self._workers.load_ahead(plan, current.number + 1, ahead, setup)
        except (TransportError, OSError) as error:  # the plan that runs is not affected
            self._give_up(error)

    def _drain_once_loaded(self, migrating: Migrating, running: RunningSession) -> None:
        plan = migrating.plan
        try:
            loaded = self._workers.has_loaded(plan, running.current.number + 1)
            for rank, stage in enumerate(plan.stages if loaded is not None else ()):
                if loaded is not None and stage.node in loaded:
                    check_stage_memory(plan, rank, loaded[stage.node])
        except (TransportError, ValueError) as error:
            self._give_up(error)
            return
        if loaded is None:
            limit_s = self._settings.timeouts.start_s
            if time.monotonic() - migrating.started_s > limit_s:
                self._give_up(TransportError(f"the new stages did not load within {limit_s:g} s", kind="timeout"))
        elif time.monotonic() >= migrating.not_before_s:
            migrating.loading_s = max((ready.loading_s for ready in loaded.values()), default=0.0)
            migrating.phase, migrating.paused_since_s = "draining", time.monotonic()
            running.drain()

    def _switch(self, migrating: Migrating, running: RunningSession) -> None:
        migrating.requests = len(self._in_flight.batches())
        hand_over = self._forecast(migrating, running.current)
        migrating.phase = "resuming"
        try:
            running.go_over(migrating.plan, hand_over, migrating.take_codecs())
        except (TransportError, ValueError) as error:
            self._go_back(migrating.plan, migrating, running, error)
            return
        ready = running.current.ready
        slowest_s = max(one.loading_s + one.exchange_s for one in ready)
        migrating.other_s = slowest_s + _stopping_s(migrating.before) + (self._in_flight.times.step_s or 0.0)
        migrating.bytes_moved = sum(one.moved_bytes for one in ready)
        migrating.transfers = tuple(transfer for one in ready for transfer in one.transfers)
        if not migrating.drained:
            migrating.resumed_s = time.monotonic()

    def _limit_draining(self, migrating: Migrating, running: RunningSession) -> None:
        limit_s = self._settings.timeouts.start_s
        if time.monotonic() - migrating.paused_since_s <= limit_s:
            return
        error = TransportError(f"what was under way did not return within {limit_s:g} s", kind="timeout")
        self._go_back(migrating.before, migrating, running, error)

    def _go_back(self, left: Plan, migrating: Migrating, running: RunningSession, error: Exception) -> None:
        """Leave a session of a plan for one of the plan before, and end the migration with an error.

        Raises the error if the plan before cannot go on.
        """
        if not self._may_go_back(error):
            raise error
        running.go_back(left, migrating.before, error)
        self._give_up(error)

    def _may_go_back(self, error: Exception) -> bool:
        """Return whether the plan before can go on: after no loss, and where lost processes can be started again."""
        if not isinstance(error, TransportError):
            return True
        is_ours = error.node is None or error.node not in self._settings.deployment.remote_nodes
        return is_ours and error.kind not in (*LOSS_KINDS, "unusable")

    def _forecast(self, migrating: Migrating, current: Session) -> HandOver:
        """Decide how groups in flight get their caches, and predict the pause; return what is handed over."""
        plan, before, measured = migrating.plan, migrating.before, self._in_flight.times
        found = (self._in_flight.state(group) for group in migrating.drained or ())
        drained = [state for state in found if state is not None and state.got]
        # Prompts with images run again: what their first forward computes of an image is no part of the caches.
        states = [state for state in drained if state.group.beside is None]
        again = contexts_again([state for state in drained if state.group.beside is not None], self._settings)
        groups = moved_groups(states)
        contexts = contexts_of(groups, states, exact_resume=self._settings.exact_resume)
        times = stage_times(plan, step_s=measured.step_s, prompt_token_s=measured.prompt_token_s)
        sizes, width = bytes_per_layer(current, groups), activation_bytes(self._settings.model, plan.dtype)
        expected = forecast(before, plan, contexts, sizes, times, width, again)
        migrating.how = ("moved" if expected.moves else "prefill") if migrating.drained else "idle"
        migrating.predicted_bytes = expected.moved_bytes if expected.moves else 0
        migrating.predicted_pause_s = self._switch_s(migrating, current) + expected.seconds
        return HandOver(current, groups) if expected.moves else NO_HAND_OVER

    def _switch_s(self, migrating: Migrating, current: Session) -> float:
        """Return the seconds from the end of the old session to the start of the next one, without caches.

        The most of the last switches, or for the first one those in which the last of the stages was connected.
        """
        if self._switches_s:
            switch_s = max(self._switches_s)
        else:
            switch_s = _OVERHEAD_S + min(one.connecting_s for one in current.ready)
        self._loading_s = max(self._loading_s, migrating.loading_s, *(one.loading_s for one in current.ready))
        in_pause_s = self._loading_s if migrating.loaded_in_pause else 0.0
        return switch_s + _stopping_s(current.plan) + in_pause_s

    def _finish(self, migrating: Migrating, resumed_s: float) -> None:
        with self._lock:
            if self._current is not migrating:
                return
            self._current = None
            done = migrating.result(resumed_s)
            self.done.append(done)
        if done.how != "prefill":
            self._switches_s.append(max(0.0, done.pause_s - migrating.other_s))
        log.migrated(done)
        migrating.finish(done)  # last: its caller finds the migration in what is done


def _stopping_s(plan: Plan) -> float:
    """Return the delay with which the last stage is told that the session ends."""
    return sum(link.latency_s for link in plan.links)
