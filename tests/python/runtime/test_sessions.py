"""The parent's threads among each other, with workers made up: each test forces the order that once went wrong."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import orbitsplit as osp
from orbitsplit._network.link_conditions import LinkShape
from orbitsplit.runtime import Generation, Pipeline
from orbitsplit.runtime._messages.control import StageRecord
from orbitsplit.runtime._parent import calls, migration_target, sessions
from orbitsplit.runtime._parent.session import Deployment
from tests.support.fake_workers import WAIT_S, FakeStages, FakeWorkers, fake_pipeline, open_fake_pipeline, ready
from tests.support.tiny_models import LAYERS

PROMPT = torch.full((1, 3), 5)
LOSS = osp.TransportError('node "node 1" was killed', kind="killed", node="node 1")


def other_plan(*_loss: Any) -> osp.Plan:
    """Return a plan of three stages without node 1."""
    plan, nodes = osp.Plan.manual(cuts=[1, 2], layers=LAYERS), ("node 0", "node 2", "node 3")
    return replace(plan, stages=tuple(replace(stage, node=n) for stage, n in zip(plan.stages, nodes, strict=True)))


def wait_until(claim: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def lose_node_1(pipe: Pipeline, workers: FakeWorkers) -> None:
    """Lose a node, and return when another plan runs."""
    workers.losses.append(LOSS)
    wait_until(lambda: pipe.recoveries)


@contextmanager
def another_thread(work: Callable[[], Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    yield thread
    thread.join(WAIT_S)
    assert not thread.is_alive()


def generated(pipe: Pipeline, stages: FakeStages, **options: Any) -> Generation:
    """Return a batch of one token that has ended."""
    generation = pipe.submit(PROMPT, max_new_tokens=1, **options)
    (group,) = generation.states
    stages.report(("tokens", group, [7]), ("end", group, None))
    generation.wait(WAIT_S)
    return generation


def measured(pipe: Pipeline) -> torch.Tensor:
    """Return what `generate` returns for one token, of a run with measurements."""
    stages = FakeStages(pipe)

    def work() -> None:
        ((group, _),) = stages.requests(1)
        stages.report(("tokens", group.id, [7]), ("end", group.id, None))
        stages.record(group.id)

    with another_thread(work):
        return pipe.generate(PROMPT, max_new_tokens=1)


class HookedLock:
    """A lock that calls `on_release` each time that it was released by the thread that made it."""

    def __init__(self, lock: Any, on_release: Callable[[], None]) -> None:
        self._lock, self._thread, self._on_release = lock, threading.current_thread(), on_release

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        if threading.current_thread() is self._thread:
            self._on_release()


def test_a_loss_while_records_are_looked_up_gives_no_measurements(tmp_path: Path) -> None:
    # The numbers of workers were looked up after the lock was released, when one of them was gone: KeyError.
    with fake_pipeline(tmp_path, replan=other_plan) as (pipe, workers):
        generation = generated(pipe, FakeStages(pipe))
        inner: Any = pipe._sessions
        groups = [state.group for state in generation.states.values()]
        inner._lock = HookedLock(inner._lock, lambda: pipe.recoveries or lose_node_1(pipe, workers))
        assert inner.records(groups, {0}) is None
        assert "node 1" not in workers.numbers


def test_a_loss_while_records_are_read_leaves_the_run_with_the_plan_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What two stages had recorded was measured with the plan of three that ran by then: ValueError.
    with fake_pipeline(tmp_path, replan=other_plan) as (pipe, workers):

        class Hooked(StageRecord):
            @classmethod
            def from_json(cls, data: bytes) -> Any:
                if not pipe.recoveries:
                    lose_node_1(pipe, workers)
                return StageRecord.from_json(data)

        monkeypatch.setattr(calls, "StageRecord", Hooked)
        stages = FakeStages(pipe)

        def work() -> None:
            ((group, _),) = stages.requests(1)
            stages.report(("tokens", group.id, [7]), ("end", group.id, None))
            stages.record(group.id)

        with another_thread(work):
            pipe.generate(PROMPT, max_new_tokens=1)
        assert pipe.last_run is not None
        assert [stage.node for stage in pipe.last_run.stages] == ["node 0", "node 1"]
        assert [stage.node for stage in pipe.plan.stages] == ["node 0", "node 2", "node 3"]


def test_closing_returns_when_all_has_ended_whoever_ends_it(tmp_path: Path) -> None:
    # It returned at once while the supervisor was still killing processes.
    order: list[str] = []
    is_ending, is_waited_for = threading.Event(), threading.Event()
    with fake_pipeline(tmp_path) as (pipe, workers):

        def end() -> None:
            is_ending.set()
            assert is_waited_for.wait(WAIT_S)
            order.append("ended")

        class Announced(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                is_waited_for.set()
                return super().wait(timeout)

        workers.on_end = end
        pipe._sessions.lifetime.ended = Announced()
        workers.losses.append(LOSS)
        assert is_ending.wait(WAIT_S)
        pipe.close()
        order.append("closed")
    assert order == ["ended", "closed"]


def test_closing_from_a_callback_while_another_thread_ends_everything(tmp_path: Path) -> None:
    # Were it to wait as well, that thread and the listener would wait for each other.
    is_called, is_ending = threading.Event(), threading.Event()
    with fake_pipeline(tmp_path) as (pipe, workers):

        def on_tokens(_tokens: torch.Tensor) -> None:
            is_called.set()
            assert is_ending.wait(WAIT_S)
            pipe.close()

        workers.on_end = is_ending.set
        generation = pipe.submit(PROMPT, max_new_tokens=9, on_tokens=on_tokens)
        FakeStages(pipe).report(("tokens", next(iter(generation.states)), [7]))
        assert is_called.wait(WAIT_S)
        pipe.close()
        with pytest.raises(osp.TransportError, match="the pipeline was closed") as caught:
            generation.wait(WAIT_S)
        assert caught.value.tokens.tolist() == [[5, 5, 5, 7]]


class FakeCodecFiles:
    made: list[FakeCodecFiles]

    def __init__(self, _plan: osp.Plan, _codebook: Any) -> None:
        self.path = None
        self.is_removed = False
        self.made.append(self)

    def remove(self) -> None:
        self.is_removed = True


def test_closing_while_a_plan_is_looked_for_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCodecFiles.made = []
    monkeypatch.setattr(sessions, "CodecFiles", FakeCodecFiles)
    is_planning, may_return = threading.Event(), threading.Event()

    def slowly(*_loss: Any) -> osp.Plan:
        is_planning.set()
        assert may_return.wait(WAIT_S)
        return other_plan()

    with fake_pipeline(tmp_path, replan=slowly) as (pipe, workers):
        workers.losses.append(LOSS)
        assert is_planning.wait(WAIT_S)
        pipe.close()
        supervisor = pipe._sessions._supervisor
        may_return.set()
        supervisor.join(WAIT_S)
        assert not supervisor.is_alive()
    assert [file.is_removed for file in FakeCodecFiles.made] == [True, True]


def test_codecs_in_the_store_go_after_the_workers_have_left(tmp_path: Path) -> None:
    with fake_pipeline(tmp_path, replan=other_plan) as (pipe, workers):
        store, found = pipe._sessions._store, []
        store.put("codecs", b"")
        pipe._sessions._session_start._sent.append("codecs")
        workers.on_quiesce = lambda: found.append(store.has("codecs"))
        lose_node_1(pipe, workers)
        assert (found, store.has("codecs")) == ([True], False)


def test_an_error_while_events_are_taken_ends_the_pipeline_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    # It ended the thread that takes them, in silence.
    with fake_pipeline(tmp_path) as (pipe, _):
        generation = pipe.submit(PROMPT, max_new_tokens=2)
        FakeStages(pipe).report(("tokens", next(iter(generation.states)), "not a list"))
        with pytest.raises(osp.TransportError, match="the pipeline cannot recover: "):
            generation.wait(WAIT_S)
        with pytest.raises(osp.TransportError, match="the pipeline cannot be used"):
            pipe.submit(PROMPT, max_new_tokens=2)
        join(threads_of(pipe))


def test_a_callback_may_close_the_pipeline(tmp_path: Path) -> None:
    # The thread that had called it read on, for as long as the interpreter.
    with fake_pipeline(tmp_path) as (pipe, _):
        generation = pipe.submit(PROMPT, max_new_tokens=9, on_tokens=lambda _tokens: pipe.close())
        FakeStages(pipe).report(("tokens", next(iter(generation.states)), [7]))
        with pytest.raises(osp.TransportError, match="the pipeline was closed"):
            generation.wait(WAIT_S)
        join(threads_of(pipe))


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def threads_of(pipe: Pipeline) -> list[threading.Thread]:
    found = [pipe._sessions._supervisor, pipe._sessions._listener]
    return [thread for thread in found if thread is not None]


def test_a_pipeline_in_a_cycle_with_its_callers_functions_is_collected(tmp_path: Path) -> None:
    # Its threads held what the caller gave it, and so itself.
    held: dict[str, Any] = {}

    def refer_back(held: dict[str, Any]) -> Callable[..., Any]:
        return lambda *_arguments: held

    pipe, workers = open_fake_pipeline(tmp_path, progress=refer_back(held), replan=refer_back(held))
    held["pipe"] = pipe
    generated(pipe, FakeStages(pipe))
    threads, dead = threads_of(pipe), weakref.ref(pipe)
    del pipe, held
    with pytest.warns(ResourceWarning, match=r"a pipeline of 2 processes was dropped without close\(\)"):
        gc.collect()
    assert dead() is None
    join(threads)
    assert workers.calls == ["end"]


def test_a_pipeline_that_is_dropped_while_it_recovers_ends(tmp_path: Path) -> None:
    is_planning, may_return = threading.Event(), threading.Event()

    def slowly(*_loss: Any) -> osp.Plan:
        is_planning.set()
        assert may_return.wait(WAIT_S)
        return other_plan()

    pipe, workers = open_fake_pipeline(tmp_path, replan=slowly)
    generation, supervisor = pipe.submit(PROMPT, max_new_tokens=1), pipe._sessions._supervisor
    workers.losses.append(LOSS)
    assert is_planning.wait(WAIT_S)
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del pipe
    may_return.set()
    supervisor.join(WAIT_S)
    assert not supervisor.is_alive()
    assert workers.calls == ["quiesce", "end"]
    with pytest.raises(osp.TransportError, match=r"it was dropped without close\(\)"):
        generation.wait(WAIT_S)


def test_a_pipeline_that_was_closed_or_has_failed_is_dropped_in_silence(tmp_path: Path) -> None:
    closed, _ = open_fake_pipeline(tmp_path)
    closed.close()
    failed, workers = open_fake_pipeline(tmp_path)
    workers.losses.append(LOSS)
    wait_until(lambda: workers.calls)
    threads = threads_of(closed) + threads_of(failed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del closed, failed
        gc.collect()
    join(threads)


def test_a_result_that_is_kept_keeps_neither_pipeline_nor_sessions(tmp_path: Path) -> None:
    # It held the sessions, and so the control store with its port.
    pipe, _ = open_fake_pipeline(tmp_path)
    generation = generated(pipe, FakeStages(pipe))
    threads, dead = threads_of(pipe), weakref.ref(pipe._sessions)
    pipe.close()
    join(threads)
    del pipe, threads
    gc.collect()
    assert dead() is None
    assert generation.result().tolist() == [[5, 5, 5, 7]]


def test_the_old_name_of_deployment_is_accepted_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"Pipeline\(where=\) is now Pipeline\(deployment=\)"):
        pipe, _ = open_fake_pipeline(tmp_path, where=Deployment(emulates=False))
    with pipe:
        assert pipe._sessions._settings.deployment == Deployment(emulates=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'somewhere'"):
        open_fake_pipeline(tmp_path, somewhere=Deployment())


def test_a_request_that_fails_ends_its_batch_alone(tmp_path: Path) -> None:
    # The pipeline ended with it, other callers' requests too, and the error was reported as the node's failure.
    plan = replace(other_plan(), workload=osp.Workload(micro_batches=2))
    with fake_pipeline(tmp_path, plan=plan) as (pipe, workers):
        stages, calls = FakeStages(pipe), []
        failing = pipe.submit(PROMPT.repeat(2, 1), max_new_tokens=9, on_tokens=calls.append, on_end=calls.append)
        other = pipe.submit(PROMPT, max_new_tokens=1)
        first, second = failing.states
        (third,) = other.states
        reason = 'node "node 0" (stage 0, layers 0-1): IndexError: index 7 is out of range'
        stages.report(("tokens", first, [7]), ("tokens", second, [8]), ("fail", first, ["request", reason]))
        with pytest.raises(osp.TransportError, match="the request failed on node") as caught:
            failing.result(WAIT_S)
        assert (caught.value.kind, caught.value.node) == ("request", None)
        assert caught.value.tokens[:, -1].tolist() == [7, 8]
        # The rest of the batch is cancelled, and nobody is called after the end.
        assert stages.requests(5)[3:] == [first, second]
        stages.report(("tokens", second, [9]), ("end", second, None), ("tokens", third, [6]), ("end", third, None))
        assert other.result(WAIT_S).tolist() == [[5, 5, 5, 6]]
        assert [type(call) for call in calls] == [torch.Tensor, osp.TransportError]
        assert workers.calls == []


def test_generate_leaves_a_pipeline_usable_whose_request_failed(tmp_path: Path) -> None:
    with fake_pipeline(tmp_path) as (pipe, workers):
        stages = FakeStages(pipe)

        def fail() -> None:
            ((group, _),) = stages.requests(1)
            stages.report(("fail", group.id, ["request", "it"]))

        with another_thread(fail), pytest.raises(osp.TransportError, match="the request failed on it"):
            pipe.generate(PROMPT, max_new_tokens=1)
        assert generated(pipe, stages).result().tolist() == [[5, 5, 5, 7]]
        assert workers.calls == []


def test_a_request_that_cannot_be_sent_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It stayed among the batches in flight, and was restarted after a loss.
    def refuse(*_arguments: Any) -> bytes:
        raise RuntimeError("cannot be packed")

    with fake_pipeline(tmp_path) as (pipe, _):
        monkeypatch.setattr(sessions.control, "pack_begin", refuse)
        with pytest.raises(RuntimeError, match="cannot be packed"):
            pipe.submit(PROMPT, max_new_tokens=1)
        assert len(pipe._sessions._in_flight) == 0


def loss(node: str, kind: str = "killed") -> osp.TransportError:
    return osp.TransportError(f'node "{node}" was killed by signal 9', kind=kind, node=node)


def test_a_loss_while_the_first_session_begins_is_recovered_from(tmp_path: Path) -> None:
    # It ended the start, though another plan was there.
    with fake_pipeline(tmp_path, start_losses=[loss("node 1")], replan=other_plan) as (pipe, workers):
        assert pipe.plan == other_plan()
        (recovery,) = pipe.recoveries
        assert (recovery.error.node, recovery.before.stages[1].node) == ("node 1", "node 1")
        assert workers.calls == ["quiesce"]
        assert generated(pipe, FakeStages(pipe, session=1)).result().tolist() == [[5, 5, 5, 7]]
        assert pipe.failure is None
    assert pipe.failure is None


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([loss("node 1")], {}, 'node "node 1" was killed by signal 9'),
        ([loss("node 1", "failed")], {"replan": other_plan}, 'node "node 1" was killed by signal 9'),
        ([loss("node 1"), loss("node 2")], {"replan": other_plan}, "the plan that replaces it uses what was lost"),
    ],
)
def test_a_start_that_cannot_be_recovered_raises_why(
    tmp_path: Path, losses: list[osp.TransportError], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(osp.TransportError, match=message):
        open_fake_pipeline(tmp_path, start_losses=losses, **options)


def test_a_pipeline_says_why_it_has_ended(tmp_path: Path) -> None:
    with fake_pipeline(tmp_path) as (pipe, workers):
        assert pipe.failure is None
        workers.losses.append(loss("node 1"))
        wait_until(lambda: pipe.failure is not None)
        assert pipe.failure == 'node "node 1" was killed by signal 9'


@pytest.mark.parametrize(("limit", "strict"), [(10, True), (9, False), (9, True)])
def test_a_stage_above_its_memory_is_logged_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: int, strict: bool
) -> None:
    # The table of a run showed 252 beside 250, without a mark or a warning. A stage uses 20 - 10 bytes here.
    monkeypatch.setattr("tests.support.fake_workers.ready", lambda: ready(weight_bytes=1))
    plan = osp.Plan.manual(cuts=[2], layers=LAYERS)
    plan = replace(plan, stages=tuple(replace(stage, memory_bytes=limit) for stage in plan.stages))
    is_refused = limit == 9 and strict
    with fake_pipeline(tmp_path, plan=plan, strict_memory=strict) as (pipe, _):
        if is_refused:
            with pytest.raises(osp.TransportError, match='"node 0" used 10 bytes, its limit is 9; node "node 1"') as no:
                measured(pipe)
            assert (no.value.kind, no.value.tokens.tolist()) == ("memory", [[5, 5, 5, 7]])
        else:
            assert measured(pipe).tolist() == [[5, 5, 5, 7]]
        assert pipe.last_run is not None
        assert [stage.exceeds_memory for stage in pipe.last_run.stages] == [limit == 9] * 2
        assert ("used 10 bytes" in caplog.text) == (limit == 9 and not strict)
        assert pipe.failure is None


def test_conditions_of_nodes_that_the_plan_leaves_out_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # They were refused, so that no file could describe a whole network.
    links = (LinkShape("node 0", "node 1"), LinkShape("node 1", "spare"))
    with fake_pipeline(tmp_path, conditions=osp.LinkConditions(links)):
        assert "conditions of links name nodes that the plan does not use: spare" in caplog.text
    with pytest.raises(ValueError, match="the conditions name node 'spare'; the nodes are node 0, node 1"):
        open_fake_pipeline(tmp_path, conditions=osp.LinkConditions(links[1:]))


# Migrations.


class Migrate(threading.Thread):
    """Calls `migrate`, and keeps what it returns or raises."""

    def __init__(self, pipe: Pipeline, plan: osp.Plan, *, yields: bool = False) -> None:
        super().__init__()
        self._pipe, self._plan, self._yields = pipe, plan, yields
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._pipe._sessions.migrate(self._plan, yields=self._yields)
        except (osp.TransportError, ValueError) as error:
            self.result = error

    def wait_for(self, phase: str) -> None:
        """Wait until the migration to this plan is in a phase, or over."""

        def is_there() -> bool:
            current = self._pipe._sessions.migrations._current
            return current is not None and current.plan == self._plan and current.phase == phase

        wait_until(lambda: self.result or is_there())

    def ended(self) -> Any:
        """Return what `migrate` returned or raised."""
        self.join(WAIT_S)
        assert not self.is_alive()
        return self.result


TARGET = osp.Plan.manual(cuts=[1], layers=LAYERS)
FAILED = osp.TransportError("the stage failed to load", kind="failed", node="node 0")


@pytest.mark.parametrize("is_too_large", [False, True])
def test_a_stage_that_fails_to_load_in_the_pause_ends_the_migration_alone(tmp_path: Path, is_too_large: bool) -> None:
    # The pipeline ended with it.
    target = TARGET
    if is_too_large:
        target = replace(target, stages=tuple(replace(stage, memory_bytes=10) for stage in target.stages))
    with fake_pipeline(tmp_path) as (pipe, workers):
        before = pipe.plan
        if not is_too_large:
            workers.start_losses.append(FAILED)
        call = Migrate(pipe, target)
        call.wait_for("draining")
        FakeStages(pipe).report(("drained", 0, []))
        error = call.ended()
        assert ("needs 1,000 bytes" in str(error)) if is_too_large else (error is FAILED)
        assert (pipe.plan, pipe.migrations, pipe.recoveries) == (before, (), ())
        assert workers.calls.count("quiesce") == 1
        generated(pipe, FakeStages(pipe, 2))


def test_a_stage_that_fails_to_load_where_torchrun_has_started_it_ends_the_pipeline(tmp_path: Path) -> None:
    # Its process has ended, and nothing here starts another one.
    with fake_pipeline(tmp_path, deployment=Deployment(remote_nodes=("node 0", None))) as (pipe, workers):
        workers.start_losses.append(FAILED)
        call = Migrate(pipe, TARGET)
        call.wait_for("draining")
        FakeStages(pipe).report(("drained", 0, []))
        assert str(call.ended()) == "the pipeline has ended: the stage failed to load"


def test_draining_has_a_limit(tmp_path: Path) -> None:
    # The migration waited for ever, and the pipeline with it.
    with fake_pipeline(tmp_path, timeouts=osp.Timeouts(start_s=0.2)) as (pipe, _):
        before = pipe.plan
        assert str(Migrate(pipe, TARGET).ended()) == "what was under way did not return within 0.2 s"
        assert pipe.plan == before
        generated(pipe, FakeStages(pipe, 1))


@pytest.mark.parametrize("is_lost", [False, True])
def test_codecs_of_a_migration_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool) -> None:
    FakeCodecFiles.made = []
    monkeypatch.setattr(sessions, "CodecFiles", FakeCodecFiles)
    monkeypatch.setattr(migration_target, "CodecFiles", FakeCodecFiles)
    with fake_pipeline(tmp_path, replan=other_plan) as (pipe, workers):
        call = Migrate(pipe, TARGET)
        call.wait_for("draining")
        if is_lost:
            lose_node_1(pipe, workers)
        else:
            FakeStages(pipe).report(("drained", 0, []))
        call.ended()
        # Of the first plan, of the target, and after the loss of the third one.
        assert [one.is_removed for one in FakeCodecFiles.made] == ([True, True, False] if is_lost else [True, False])


def test_a_callers_migration_overtakes_one_of_rebalancing_that_loads(tmp_path: Path) -> None:
    # It failed with "busy", whatever depended on it.
    with fake_pipeline(tmp_path) as (pipe, workers):
        workers.loads = False
        other = Migrate(pipe, other_plan(), yields=True)
        other.wait_for("loading")
        call = Migrate(pipe, TARGET)
        error = other.ended()
        assert (error.kind, str(error)) == (
            "overtaken",
            f"the migration was overtaken: another one was asked for, to {TARGET}",
        )
        assert workers.calls[:2] == ["load ahead", "drop ahead"]
        with pytest.raises(osp.TransportError, match="migrating already") as caught:
            pipe.migrate(other_plan())
        assert caught.value.kind == "busy"
        workers.loads = True
        call.wait_for("draining")
        FakeStages(pipe).report(("drained", 0, []))
        assert (call.ended().after, pipe.plan) == (TARGET, TARGET)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_callers_migration_waits_for_one_of_rebalancing_that_drains(tmp_path: Path, is_lost: bool) -> None:
    with fake_pipeline(tmp_path, replan=other_plan) as (pipe, workers):
        before = pipe.plan
        other = Migrate(pipe, TARGET, yields=True)
        other.wait_for("draining")
        call = Migrate(pipe, before)
        wait_until(lambda: pipe._sessions.migrations._next)
        with pytest.raises(osp.TransportError, match="migrating already") as caught:
            pipe.migrate(TARGET)
        assert caught.value.kind == "busy"
        if is_lost:
            lose_node_1(pipe, workers)
            assert [one.ended().kind for one in (other, call)] == ["overtaken", "overtaken"]
            assert pipe.plan == other_plan()
            return
        FakeStages(pipe).report(("drained", 0, []))
        call.wait_for("draining")
        FakeStages(pipe, 1).report(("drained", 0, []))
        assert [(one.ended().before, one.ended().after) for one in (other, call)] == [
            (before, TARGET),
            (TARGET, before),
        ]
        assert len(pipe.migrations) == 2
