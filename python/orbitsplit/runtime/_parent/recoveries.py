"""The recoveries of a pipeline: after a loss, work is resumed with a plan that does without what was lost."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

from orbitsplit._errors import InfeasiblePlanError, TransportError
from orbitsplit._plans.plan import Plan

from . import log
from .in_flight import InFlight
from .launcher import Launcher
from .lifetime import DROPPED, Lifetime
from .recovery import LOSS_KINDS, Losses, Recovery, Replan
from .session import Callbacks, Deployment, Session


class LostSession(Protocol):
    """What a recovery needs of the sessions of a pipeline."""

    current: Session
    lifetime: Lifetime

    def leave(self, error: TransportError) -> int:
        """Let events of the session be ignored from now on, and work wait for the next one; return its number."""

    def quiesce(self, plan: Plan, session: int, error: TransportError) -> None:
        """Wait until no worker of a plan is in a session any more, which an error has ended."""

    def resume(self, plan: Plan) -> None:
        """Start the next session with a plan, and resume the batches in flight."""


class Recoveries:
    """Recovers from losses, one after the other; `done` are those after which work was resumed.

    It holds only a weak reference to the `callbacks`, as `Sessions` does.
    """

    def __init__(self, callbacks: Callbacks, deployment: Deployment, launcher: Launcher, in_flight: InFlight) -> None:
        self.done: list[Recovery] = []
        self.losses = Losses()
        self._callbacks = weakref.ref(callbacks)
        self._deployment = deployment
        self._launcher = launcher
        self._in_flight = in_flight

    @property
    def lost(self) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        """The nodes and the links lost so far."""
        return tuple(self.losses.nodes), tuple(self.losses.links)

    def forgive(self, node: str) -> None:
        """Take note that a lost node is back, and was measured: plans may use it."""
        self.losses.forget({node}, ())

    def absent(self, nodes: Iterable[str]) -> list[str]:
        """Return the nodes that no plan may use now: those without a host, and with one that cannot emulate links."""
        asked = list(nodes)
        return [*self._launcher.absent(asked), *self._deployment.without_our_clock(asked)]

    def recover(self, running: LostSession, error: TransportError, before: Plan) -> TransportError | None:
        """Recover from a loss, and from further losses meanwhile; return the error of the pipeline if that fails."""
        started_s = time.monotonic()
        plan, errors = before, [error]
        while not running.lifetime.is_over:
            if self._replan is None or error.kind not in LOSS_KINDS:
                return error
            lost_session = running.leave(error)
            log.lost(lost_session, error)
            self.losses.add(error)
            try:
                running.lifetime.check_usable()
                # The plan that was lost last: its workers may differ from those of the plan before the first loss.
                running.quiesce(plan, lost_session, error)
                plan = self._next_plan(before, errors)
                running.resume(plan)
            except TransportError as another:
                error = another
                errors.append(error)
                continue
            except InfeasiblePlanError as reason:
                message = f"{str(error).splitlines()[0]}; without it the pipeline cannot recover: {reason}"
                return TransportError(message, kind=error.kind, node=error.node, link=error.link)
            loading_s = max(ready.loading_s for ready in running.current.ready)
            seconds, (first, *further) = time.monotonic() - started_s, errors
            self.done.append(Recovery(first, before, plan, seconds, loading_s, tuple(further)))
            log.recovered(self.done[-1], running.current.number, len(self._in_flight.batches()))
            return None
        return None

    @property
    def _replan(self) -> Replan | None:
        callbacks = self._callbacks()
        return None if callbacks is None else callbacks.replan

    def _next_plan(self, before: Plan, errors: Sequence[TransportError]) -> Plan:
        replan = self._replan
        if replan is None:
            raise TransportError(DROPPED, kind="unusable")
        self.losses.forget(self._launcher.take_returned(), errors)
        return self.losses.plan_without(replan, before, errors[-1], self.absent)
