"""Rebalancing: a running pipeline goes over to a better plan when hosts join, or when its own times drift.

One thread per pipeline looks at the heartbeats and at the hosts once a second. What it finds is offered to the planner,
and the plan is taken if its gain over the rest of the work is more than the move costs (docs/cost_model.md).
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

from orbitsplit._errors import InfeasiblePlanError, TransportError
from orbitsplit._plans.migration import Context, prefill_s, stage_times
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanStage
from orbitsplit._plans.rebalance import Gain, Measured, MeasuredLink, as_measured, token_s
from orbitsplit._plans.replanner import Replanner
from orbitsplit.runtime._messages.control import Ready

from . import log
from .drift import Drift
from .host_measurements import below_emulated, measure_links, measure_node
from .joined_host import JoinedHost
from .session import Callbacks, Settings
from .sessions import Sessions

_LOOK_S = 1.0
# As much work as there was in so many seconds is expected to come, if more than is asked for already.
_HORIZON_S = 60.0
# After a drift has led to a move, or to none, the next one may not for so long: six windows, so that what a move itself
# disturbs is not taken for a drift, and a node that wavers does not make the pipeline move for ever.
AGAIN_S = 60.0


class Rebalancer(threading.Thread):
    """Looks for a better plan as long as a pipeline runs; needs a `Replanner` to make one."""

    def __init__(self, sessions: Sessions, settings: Settings, callbacks: Callbacks, replanner: Replanner) -> None:
        super().__init__(name="rebalancer", daemon=True)
        self.notes: dict[str, str] = {}  # why a host is left alone
        self.replanner = replanner
        self.network = replanner.network  # as it was planned on, before anything was measured
        self._sessions = sessions
        self._settings = settings
        self._callbacks = weakref.ref(callbacks)
        self._hosts = settings.deployment.hosts
        # The plan was made with the hosts of the network that are there from the start. If some were missed meanwhile,
        # it was made without them: when they are back they are measured as those that join, before plans use them.
        names = {stage.node for stage in sessions.plan.stages}
        if not sessions.recoveries.done:
            names |= {node.name for node in self.network.nodes}
        there = {} if self._hosts is None else self._hosts.joined()
        self._known = {name: host for name, host in there.items() if name in names}
        self._offered: set[str] = set()  # hosts that were measured, and may be used
        self._drift = Drift()
        self._load_s = self._load_s_per_byte = 0.0
        self._not_before_s = 0.0
        self._busy: deque[float] = deque()
        self._tried: tuple[object, Plan | str] | None = None
        self.links: dict[tuple[str, str], MeasuredLink] = {}  # as exchanges have shown them

    def run(self) -> None:
        """Look once a second, until the pipeline has ended."""
        while not self._sessions.lifetime.wait(_LOOK_S):
            try:
                self._look()
            except TransportError as error:  # a loss, from which the pipeline recovers or ends
                log.not_rebalanced(str(error).splitlines()[0])
            except Exception as error:
                log.not_rebalanced(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        now_s = time.monotonic()
        current, heartbeats = self._sessions.reports()
        self._drift.add(now_s, current.number, heartbeats)
        self._note_loading(current.ready)
        left, contexts = self._sessions.rest()
        if left > 0:
            self._busy.append(now_s)
        while self._busy and self._busy[0] <= now_s - _HORIZON_S:
            self._busy.popleft()
        self._measure_joined()
        if self._sessions.is_ready and self._sessions.plan is current.plan:
            self._consider(current.plan, left, contexts, now_s)

    def _measure_joined(self) -> None:
        """Measure each host that has joined since the last look and is in no stage.

        Not during a recovery: the plan that was lost may have a stage on a node whose host is another one since.
        """
        there = {} if self._hosts is None else self._hosts.joined()
        self._offered &= there.keys()
        for name, host in there.items():
            if self._known.get(name) is host:
                continue
            if not self._sessions.is_ready:
                return
            plan = self._sessions.plan
            if name in [stage.node for stage in plan.stages]:
                if host.runs_processes:
                    self._known[name] = host
                continue
            self._known[name] = host
            self.notes[name] = "it is being measured"
            try:
                self._measure(name, host, there, plan)
            except TransportError as error:
                self.notes[name] = f"it could not be measured: {str(error).splitlines()[0]}"
                log.left_alone(name, self.notes[name])

    def _measure(self, name: str, host: JoinedHost, there: dict[str, JoinedHost], plan: Plan) -> None:
        """Measure a host and its links, and let plans have it from now on."""
        network, profile = self.replanner.network, self.replanner.profile
        emulates = self._settings.deployment.emulates
        planned = next((one for one in self.network.nodes if one.name == name), None)
        slowdown = (planned.slowdown or 1.0) if planned is not None and emulates else 1.0
        node = measure_node(host, plan, profile, str(self._settings.model), slowdown)
        ends = {(link.source, link.destination) for link in network.links}
        is_known = name in [one.name for one in network.nodes]
        others = [
            other
            for peer, other in there.items()
            if peer != name and (not is_known or {(name, peer), (peer, name)} & ends)
        ]
        links = measure_links(host, others)
        measured = Measured(nodes={name: node}, links=below_emulated(links, self.network) if emulates else links)
        log.measured(name, node.slowdown(profile) if profile.is_measured else None, links)
        self.links.update(links)
        self._take(measured)
        self._sessions.recoveries.forgive(name)
        self._offered.add(name)

    def _take(self, measured: Measured) -> None:
        """Plan on the network as it was measured from now on, after a loss too."""
        self.replanner = self.replanner.on(as_measured(self.replanner.network, self.replanner.profile, measured))
        callbacks = self._callbacks()
        if callbacks is not None:
            callbacks.replan = self.replanner

    def _consider(self, plan: Plan, left: int, contexts: Sequence[Context], now_s: float) -> None:
        """Move to another plan if that pays."""
        drift = self._drift.measured(plan) if now_s >= self._not_before_s else Measured()
        spares = self._offered - {stage.node for stage in plan.stages}
        if not drift and not spares:
            return
        before_s = token_s(plan, drift)
        found: Plan | str = "the running plan predicts no seconds of a token"
        if math.isfinite(before_s):
            found = self._planned(plan, drift, spares)
        if isinstance(found, str):
            self._leave(spares, drift, found, now_s)
            return
        gain = Gain(
            tokens=max(left, len(self._busy) * _LOOK_S / before_s) if before_s else left,
            before_s=before_s,
            after_s=token_s(found),
            loading_s=self._loading_s(plan, found),
            pause_s=self._pause_s(found, contexts),
        )
        if not gain.pays:
            self._leave(spares, drift, f"it would not pay: {gain}", now_s)
            return
        self._move(plan, found, drift, gain)

    def _planned(self, plan: Plan, drift: Measured, spares: set[str]) -> Plan | str:
        """Return the best plan with what was measured, or why there is none other than the running one."""
        recoveries = self._sessions.recoveries
        lost_nodes, links = recoveries.lost
        names = [node.name for node in self.replanner.network.nodes]
        gone = {*recoveries.absent(names), *lost_nodes} & set(names)
        asked = plan.stages, frozenset(spares), frozenset(gone)
        if not drift and self._tried is not None and self._tried[0] == asked:
            return self._tried[1]
        network = as_measured(self.replanner.network, self.replanner.profile, drift)
        try:
            found: Plan | str = self.replanner.on(network, explain=False)(plan, sorted(gone), links)
        except (InfeasiblePlanError, ValueError) as error:
            found = f"there is no plan: {error}"
        if isinstance(found, Plan) and _places(found) == _places(plan):
            found = "the plan stays the best one with it"
        if not drift:
            self._tried = asked, found
        return found

    def _pause_s(self, after: Plan, contexts: Sequence[Context]) -> float:
        """Return the seconds of a migration's pause if all keys and values are made again, the slower of two ways."""
        times = stage_times(after, step_s=None, prompt_token_s=None)
        return prefill_s(after, contexts, times, self.replanner.profile.cut_bytes_per_token)

    def _note_loading(self, ready: Sequence[Ready]) -> None:
        """Remember the slowest loading so far: stages that were loaded ahead, or kept, report none to speak of."""
        for stage in ready:
            self._load_s = max(self._load_s, stage.loading_s)
            self._load_s_per_byte = max(self._load_s_per_byte, stage.loading_s / max(1, stage.weight_bytes))

    def _loading_s(self, before: Plan, after: Plan) -> float:
        """Return the seconds in which the slowest changed stage loads, at the rate of the slowest one so far."""
        layers = self.replanner.profile.layers
        sizes = [
            sum(layer.weight_bytes for layer in layers[stage.start : stage.stop])
            for stage in after.stages
            if _place(stage) not in _places(before)
        ]
        return max([self._load_s, *(size * self._load_s_per_byte for size in sizes)]) if sizes else 0.0

    def _move(self, before: Plan, after: Plan, drift: Measured, gain: Gain) -> None:
        joined = {stage.node for stage in after.stages} & self._offered - {stage.node for stage in before.stages}
        log.rebalancing(joined, drift, gain, after)
        self._not_before_s = time.monotonic() + AGAIN_S
        if self._tried is not None:
            self._tried = self._tried[0], "going over to it failed"  # unless it does not
        self._sessions.migrate(after, yields=True)
        self._tried = None
        if drift:
            self._take(drift)
        for stage in after.stages:
            self.notes.pop(stage.node, None)

    def _leave(self, spares: set[str], drift: Measured, reason: str, now_s: float) -> None:
        """Take note of why nothing changes; it is logged when it is another reason than before, figures aside."""
        for name in spares:
            if self.notes.get(name, "").partition(":")[0] != reason.partition(":")[0]:
                log.left_alone(name, reason)
            self.notes[name] = reason
        if drift:
            log.drift_ignored(drift, reason)
            self._not_before_s = now_s + AGAIN_S


def _place(stage: PlanStage) -> tuple[str, int, int, str | None]:
    return stage.node, stage.start, stage.stop, stage.weights


def _places(plan: Plan) -> list[tuple[str, int, int, str | None]]:
    """Return what makes a plan another one for the nodes that run it."""
    return [_place(stage) for stage in plan.stages]
