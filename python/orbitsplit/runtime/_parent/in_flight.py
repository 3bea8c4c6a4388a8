"""The groups in flight, and what events of the first stage make of them."""

from __future__ import annotations

import base64
import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from safetensors.torch import load as load_tensors

from orbitsplit._errors import TransportError
from orbitsplit._io.deprecation import RenamedValue
from orbitsplit._plans.migration import Context
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.groups import Group

from . import log
from .generation import Generation, GroupState
from .replicas import Replicas
from .token_times import TokenTimes

# The session of groups that ended without measurements.
_NO_SESSION = -1


class InFlight:
    """The groups in flight by number, and the batch of each; callers, listener and supervisor change it.

    `is_current(session)` tells whether the pipeline is still in a session, whose events are taken then, and
    `has_ended()` whether it is in none any more. `replicas` learns of their tokens and ends.
    """

    def __init__(
        self,
        store_address: str,
        is_current: Callable[[int], bool],
        has_ended: Callable[[], bool],
        replicas: Replicas,
    ) -> None:
        self._store_address = store_address
        self._is_current = is_current
        self._has_ended = has_ended
        self._replicas = replicas
        self._lock = threading.RLock()
        self._generations: dict[int, Generation] = {}
        self.times = TokenTimes()

    def add(self, group: int, generation: Generation) -> None:
        """Add a group of a batch."""
        with self._lock:
            self._generations[group] = generation
        one = generation.states[group].group
        self.times.begin(group, one.rows * one.tokens)

    def __len__(self) -> int:
        return len(self._generations)

    def state(self, group: int) -> GroupState | None:
        """Return the state of a group, None if it has ended."""
        with self._lock:
            generation = self._generations.get(group)
        return None if generation is None else generation.states[group]

    def batches(self) -> list[Generation]:
        """Return the batches of all groups, each once."""
        with self._lock:
            return list({id(generation): generation for generation in self._generations.values()}.values())

    def rest(self, *, exact_resume: bool) -> tuple[int, list[Context]]:
        """Return the most new tokens of a row that are asked for and have not come, and what is known of each group."""
        states = [state for batch in self.batches() for state in batch.unfinished()]
        left = max((state.group.max_new_tokens - len(state.got) for state in states), default=0)
        contexts = [
            Context(state.group.rows, state.group.tokens + len(state.got), len(state.got) if exact_resume else 0)
            for state in states
        ]
        return left, contexts

    def fail_all(self, error: TransportError) -> None:
        """End every batch with an error."""
        with self._lock:
            batches, self._generations = self.batches(), {}
        for generation in batches:
            generation.fail(error)

    def records(
        self, session: int, groups: Sequence[Group], workers: Sequence[int], limit_s: float
    ) -> list[list[bytes]] | None:
        """Return each worker's records of some groups, None if the session is lost, or they are not there in time."""
        keys = [control.record_key(session, group.id, worker) for group in groups for worker in workers]
        values = take_all(ControlStore.join(self._store_address), keys, lambda: self._is_lost(session), limit_s)
        return None if values is None else [values[k :: len(workers)] for k in range(len(workers))]

    def end_complete(self) -> None:
        """End the groups that got all their tokens in a session that was lost before it reported their ends."""
        with self._lock:
            found = [
                (group, generation)
                for group, generation in self._generations.items()
                if generation.states[group].is_complete
            ]
            for group, _ in found:
                del self._generations[group]
                self._replicas.end(group)
        for group, generation in found:
            generation.end(group, _NO_SESSION)

    def take_event(self, session: int, plan: Plan, kind: str, group: int, value: Any) -> bool:
        """Process one event of the first stage; return whether its session is still current."""
        with self._lock:
            if not self._is_current(session):
                return False
            generation = self._generations.get(group)
        if generation is None:
            return True
        if kind == "retry":
            log.restarted(group, *value)
            return True
        if kind == "tokens":
            self.times.note(group)
            if isinstance(value, dict):
                generation.take(group, value["tokens"], base64.b64decode(value["details"]))
            else:
                self._replicas.add(group, value)
                generation.take(group, value)
            return True
        self.times.end(group)
        outputs = None
        if kind == "end" and not generation.states[group].group.generates:
            data = self._take_outputs(session, group)
            if data is None:
                return False
            outputs = load_tensors(data)
        with self._lock:
            if not self._is_current(session) or self._generations.pop(group, None) is None:
                return False
        self._replicas.end(group)
        if kind == "end":
            generation.end(group, session, outputs)
        else:
            log.given_up(group, value[0])
            generation.cancel()  # the other groups of the batch; the pipeline's other batches are not affected
            generation.fail(_group_error(plan, *value))
        return True

    def _take_outputs(self, session: int, group: int) -> bytes | None:
        """Wait for the outputs of the last stage; return None if it is lost after the first stage reported the end."""
        found = take_all(
            ControlStore.join(self._store_address),
            [control.outputs_key(session, group)],
            lambda: self._is_lost(session),
        )
        return None if found is None else found[0]

    def _is_lost(self, session: int) -> bool:
        return not self._is_current(session) or self._has_ended()


def take_all(
    store: ControlStore, keys: Sequence[str], is_lost: Callable[[], bool], limit_s: float = math.inf
) -> list[bytes] | None:
    """Wait until all keys are in a store and take them out; None if they are lost, or not there in time."""
    deadline_s = time.monotonic() + limit_s
    while not all(map(store.has, keys)):
        if is_lost() or time.monotonic() > deadline_s:
            return None
        time.sleep(0.002)
    values = [store.get(key) for key in keys]
    for key in keys:
        store.remove(key)
    return values


def _group_error(plan: Plan, kind: str, reason: str) -> TransportError:
    if kind == "request":
        return TransportError(f"the request failed on {reason}", kind=kind)
    links = ", ".join(f"{a.node} to {b.node}" for a, b in pairwise(plan.stages))
    kind = RenamedValue("corruption", old="damage")
    return TransportError(f"a group is given up on the links {links}: {reason}", kind=kind)
