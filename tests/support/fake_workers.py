"""Pipelines without processes: workers that are always ready, and whose first stage reports what a test says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import Ready, StageRecord
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.record import Traffic
from orbitsplit.runtime._parent import sessions
from orbitsplit.runtime._parent.launcher import Launcher

from .tiny_models import EOS, LAYERS, PAD, VOCABULARY, tiny_config

PLAN = osp.Plan.manual(cuts=[2], layers=LAYERS)
WAIT_S = 60.0  # far more than anything here takes


def ready(**changes: Any) -> Ready:
    """Return what a stage reports once it has loaded."""
    usual: dict[str, Any] = {
        "weight_bytes": 1000,
        "baseline_bytes": 10,
        "loading_s": 0.5,
        "generates": True,
        "vocabulary": VOCABULARY,
        "clock_offset_s": 0.0,
        "generation_config": {"eos_token_id": EOS, "pad_token_id": PAD},
    }
    return Ready(**{**usual, **changes})


class FakeWorkers:
    """Takes the place of `Workers`. What is in `losses` is raised by the next look at the workers, in turn.

    What is in `start_losses` is raised while sessions begin. `on_end` and `on_quiesce` are called in their place; both
    do nothing by default. Processes that load ahead have loaded while `loads` is set.
    """

    def __init__(
        self,
        store: ControlStore,
        _timeouts: osp.Timeouts,
        _launcher: Launcher,
        *,
        start_losses: Sequence[osp.TransportError] = (),
        **_options: Any,
    ) -> None:
        self.store = store
        self.start_losses = list(start_losses)
        self.reported = ready()
        self.losses: list[osp.TransportError] = []
        self.numbers: dict[str, int] = {}
        self.calls: list[str] = []
        self.loads = True
        self.on_end: Callable[[], None] = lambda: None
        self.on_quiesce: Callable[[], None] = lambda: None

    def assign(self, plan: osp.Plan, session: int) -> tuple[int, ...]:
        for stage in plan.stages:
            self.numbers.setdefault(stage.node, len(self.numbers))
        numbers = tuple(self.numbers[stage.node] for stage in plan.stages)
        for number in numbers:
            self.store.put(control.ready_key(session, number), self.reported.to_json())
        return numbers

    def wait_for(
        self,
        plan: osp.Plan,
        session: int,
        keys: Sequence[str],
        *,
        limit_s: float | None,
        on_poll: Callable[[], None],
        doing: str,
    ) -> list[bytes]:
        on_poll()
        if self.start_losses:
            raise self.start_losses.pop(0)
        return [self.store.get(key) for key in keys]

    def check(self, plan: osp.Plan, session: int) -> None:
        if self.losses:
            raise self.losses.pop(0)

    def quiesce(self, plan: osp.Plan, session: int, error: osp.TransportError) -> None:
        self.calls.append("quiesce")
        self.on_quiesce()
        if error.node is not None:
            del self.numbers[error.node]

    def starts(self, node: str) -> bool:
        return True

    def load_ahead(self, *_arguments: Any) -> None:
        self.calls.append("load ahead")

    def has_loaded(self, plan: osp.Plan, session: int) -> dict[str, Ready] | None:
        return {} if self.loads else None

    def drop_ahead(self) -> None:
        self.calls.append("drop ahead")

    def hand_over(self, plan: osp.Plan) -> None:
        self.calls.append("hand over")

    def have_left(self) -> None:
        self.calls.append("have left")

    def pids(self, plan: osp.Plan) -> tuple[int, ...]:
        return tuple(range(1, len(plan.stages) + 1))

    def end(self, grace_s: float = 0.0) -> None:
        self.calls.append("end")
        self.on_end()


class FakeStages:
    """What the stages of a session write to the store."""

    def __init__(self, pipe: Pipeline, session: int = 0) -> None:
        self._sessions = pipe._sessions
        self._store = ControlStore.join(self._sessions._store.address)
        self._session = session
        self._number = 0

    def report(self, *events: tuple[str, int, Any]) -> None:
        """Report events of the first stage: ("tokens", group, [token, ...]), ("end", group, None) and so on."""
        self._store.put(control.events_key(self._session, self._number), json.dumps(events).encode())
        self._number += 1

    def record(self, group: int, *, workers: Sequence[int] = (0, 1), steps: int = 1) -> None:
        """Write what each stage did for a group."""
        for worker in workers:
            events = tuple(("compute", group, step, step + 0.25, step + 0.5) for step in range(steps))
            record = StageRecord(events=events, cpu_s=0.25 * steps, traffic=Traffic(steps, 10, 10, 40), peak_bytes=20)
            self._store.put(control.record_key(self._session, group, worker), record.to_json())

    def requests(self, count: int) -> list[Any]:
        """Return the first requests of the session after its limits, waiting until they are there."""
        keys = [control.request_key(self._session, number) for number in range(1, count + 1)]
        return [control.unpack_request(self._store.get(key)) for key in keys]


def open_fake_pipeline(
    folder: Path, plan: osp.Plan = PLAN, *, start_losses: Sequence[osp.TransportError] = (), **options: Any
) -> tuple[Pipeline, FakeWorkers]:
    """Return a pipeline whose workers are fake, with a model of `tiny_config` that has no weights."""
    tiny_config().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "Workers", functools.partial(FakeWorkers, start_losses=start_losses))
        pipe = Pipeline(plan, folder, **options)
    workers: Any = pipe._sessions._workers
    return pipe, workers


@contextmanager
def fake_pipeline(folder: Path, **options: Any) -> Iterator[tuple[Pipeline, FakeWorkers]]:
    """Open such a pipeline, and close it."""
    pipe, workers = open_fake_pipeline(folder, **options)
    with pipe:
        yield pipe, workers
