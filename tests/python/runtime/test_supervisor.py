"""The cause of a failure, as opposed to its consequences, with fake processes and a fake store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit.runtime._memory import oom_kills
from orbitsplit.runtime._messages.control import Failure, Heartbeat, failure_key, heartbeat_key
from orbitsplit.runtime._parent import launcher, supervisor, worker_process
from orbitsplit.runtime._parent.launcher import LocalLauncher
from orbitsplit.runtime._parent.options import Timeouts
from orbitsplit.runtime._parent.supervisor import Workers

PLAN = osp.Plan.manual(cuts=[1, 2], layers=3)
LOST = Failure("peer", "PeerLostError: link broke", "traceback of the lost", is_consequence=True)
RAISED = Failure("failed", "ValueError: 7 is too many", "traceback of the error", is_consequence=False)
NO_ROOM = Failure("memory", "MemoryError: 7 bytes", "traceback of the allocation", is_consequence=False)
STALLED = Failure("link", "caches do not arrive", "", is_consequence=False, link=("node 1", "node 2"))
SESSION = 4


@dataclass
class Process:
    returncode: int | None = None
    stdin: None = None
    pid: int = 7

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


@dataclass
class Store:
    values: dict[str, bytes] = field(default_factory=dict)

    address = "nowhere:1"

    def has(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> bytes:
        return self.values[key]

    def put(self, key: str, data: bytes) -> None:
        self.values[key] = data


def make_workers(
    monkeypatch: pytest.MonkeyPatch, codes: list[int | None], failures: dict[int, Failure]
) -> tuple[Workers, Store]:
    started = iter(codes)
    monkeypatch.setattr(worker_process, "start", lambda *_args, **_options: Process(next(started)))
    store = Store({failure_key(SESSION, number): failure.to_json() for number, failure in failures.items()})
    local = LocalLauncher(store.address)
    workers = Workers(store, Timeouts(heartbeat_s=8.0, stall_s=5.0), local)  # type: ignore[arg-type]
    assert workers.assign(PLAN, SESSION) == (0, 1, 2)
    return workers, store


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.0)
    monkeypatch.setattr(supervisor, "_QUIESCE_S", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [100.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now_s[0])
    return now_s


NODE_1 = 'node "node 1" (stage 1, layers 2-2)'


@pytest.mark.parametrize(
    ("codes", "failures", "message", "kind", "node"),
    [
        ([1, -9, 1], {0: LOST, 2: LOST}, f"{NODE_1} was killed by signal 9 (SIGKILL)", "killed", "node 1"),
        ([1, -9, 1], {0: RAISED}, f"{NODE_1} was killed by signal 9 (SIGKILL)", "killed", "node 1"),
        ([1, 1, 1], {0: LOST, 1: LOST, 2: RAISED}, 'node "node 2" (stage 2, layers 3-4) failed: V', "failed", "node 2"),
        ([None, 1, -6], {1: RAISED}, f"{NODE_1} failed: ValueError: 7 is too many", "failed", "node 1"),
        ([None, None, -6], {1: NO_ROOM}, f"{NODE_1} failed: MemoryError: 7 bytes", "memory", "node 1"),
        ([1, 3, None], {0: LOST}, f"{NODE_1} ended with exit code 3", "killed", "node 1"),
        ([None, -40, None], {}, f"{NODE_1} was killed by signal 40", "killed", "node 1"),  # has no name
        ([0, None, None], {}, 'node "node 0" (stage 0, layers 0-1) ended with exit code 0', "killed", "node 0"),
    ],
)
def test_the_cause_comes_before_its_consequences(
    monkeypatch: pytest.MonkeyPatch,
    codes: list[int | None],
    failures: dict[int, Failure],
    message: str,
    kind: str,
    node: str,
) -> None:
    workers, _ = make_workers(monkeypatch, codes, failures)
    with pytest.raises(osp.TransportError) as caught:
        workers.check(PLAN, SESSION)
    assert str(caught.value).startswith(message)
    assert (caught.value.kind, caught.value.node) == (kind, node)
    workers.end()


def test_a_link_that_a_worker_reports_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _ = make_workers(monkeypatch, [None, None, None], {0: LOST, 2: STALLED})
    with pytest.raises(osp.TransportError, match="caches do not arrive") as caught:
        workers.check(PLAN, SESSION)
    assert (caught.value.kind, caught.value.node, caught.value.link) == ("link", None, ("node 1", "node 2"))
    workers.end()


def without_node_1() -> osp.Plan:
    two = osp.Plan.manual(cuts=[2], layers=3)
    stages = tuple(replace(stage, node=node) for stage, node in zip(two.stages, ("node 0", "node 2"), strict=True))
    return replace(two, stages=stages)


LEAVING = 'node "node 1", while it handed its caches over,'


@pytest.mark.parametrize(
    ("code", "failures", "message", "kind"),
    [
        (-9, {0: LOST, 2: LOST}, f"{LEAVING} was killed by signal 9 (SIGKILL)", "killed"),
        (-9, {}, f"{LEAVING} was killed by signal 9 (SIGKILL)", "killed"),
        (0, {0: LOST, 1: RAISED}, f"{LEAVING} failed: ValueError: 7 is too many", "failed"),
    ],
)
def test_a_worker_lost_while_it_hands_caches_over_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, code: int, failures: dict[int, Failure], message: str, kind: str
) -> None:
    # Its receivers reported that they had lost a peer, and only stages were looked at: the pipeline ended.
    workers, _ = make_workers(monkeypatch, [None, code, None], failures)
    workers.hand_over(without_node_1())
    with pytest.raises(osp.TransportError) as caught:
        workers.wait_for(without_node_1(), SESSION, ["absent"], limit_s=1.0, on_poll=lambda: None, doing="starting")
    assert str(caught.value).startswith(message)
    assert (caught.value.kind, caught.value.node) == (kind, "node 1")
    workers.end()


def test_a_worker_without_anything_to_hand_over_may_end(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    workers, store = make_workers(monkeypatch, [None, None, None], {})
    for rank in range(3):
        store.values[heartbeat_key(rank)] = Heartbeat(1, "serving").to_json()
    workers.check(PLAN, SESSION)
    leaving = workers._processes["node 1"]
    workers.hand_over(without_node_1())
    leaving.process = Process(0)
    clock[0] += 60.0
    for rank in (0, 2):
        store.values[heartbeat_key(rank)] = Heartbeat(9, "loading").to_json()
    workers.check(without_node_1(), SESSION)
    workers.end()


def test_an_error_of_a_worker_brings_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _ = make_workers(monkeypatch, [None, None, None], {1: RAISED})
    with pytest.raises(osp.TransportError, match="traceback of the error"):
        workers.check(PLAN, SESSION)
    workers.end()


def test_failures_of_another_session_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _ = make_workers(monkeypatch, [None, None, None], {1: RAISED})
    workers.check(PLAN, SESSION + 1)
    workers.end()


def test_a_node_that_the_kernel_killed_for_memory_is_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _ = make_workers(monkeypatch, [None, -9, None], {})
    before = oom_kills()
    monkeypatch.setattr(launcher, "oom_kills", lambda: before + 1)
    with pytest.raises(osp.TransportError, match="because the machine ran out of memory") as caught:
        workers.check(PLAN, SESSION)
    assert caught.value.kind == "memory"
    workers.end()


def test_silence_is_measured_from_the_last_change(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    workers, store = make_workers(monkeypatch, [None, None, None], {})
    for count in range(3):
        for rank in range(3):
            store.values[heartbeat_key(rank)] = Heartbeat(count, "serving").to_json()
        workers.check(PLAN, SESSION)
        clock[0] += 60.0  # nobody looked for a minute, but the workers went on
    for rank in (0, 2):
        store.values[heartbeat_key(rank)] = Heartbeat(9, "serving").to_json()
    with pytest.raises(osp.TransportError, match=r'node "node 1" .* no heartbeat for 60\.0 s, the limit is 8 s') as e:
        workers.check(PLAN, SESSION)
    assert (e.value.kind, e.value.node) == ("hangs", "node 1")
    workers.end()


def put_heartbeats(store: Store, count: int, *, sent: int, received: int, waiting_s: float, late_s: float) -> None:
    """Let all be in order but for the link from node 0 to node 1."""
    arrivals = (-late_s,) * min(sent, 3)
    heartbeats = (
        Heartbeat(count, "serving", SESSION, received=1, waiting_s=0.0, sent=sent, arrivals_in_s=arrivals),
        Heartbeat(count, "serving", SESSION, received=received, waiting_s=waiting_s, sent=1, arrivals_in_s=(-99.0,)),
        Heartbeat(count, "serving", SESSION, received=1, waiting_s=99.0, sent=1, arrivals_in_s=(-99.0,)),
    )
    for rank, heartbeat in enumerate(heartbeats):
        store.values[heartbeat_key(rank)] = heartbeat.to_json()


@pytest.mark.parametrize(
    ("sent", "received", "waiting_s", "late_s", "is_lost"),
    [
        (7, 6, 6.0, 6.0, True),
        (7, 7, 60.0, 60.0, False),  # all has arrived
        (7, 6, 4.0, 60.0, False),  # the receiver is busy, the message may be there
        (7, 6, 60.0, 4.0, False),  # the message is in flight
        (9, 3, 6.0, 6.0, True),  # more than are remembered, of which the oldest is late
        (9, 3, 60.0, 4.0, False),
    ],
)
def test_a_link_is_lost_when_its_message_is_late_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, sent: int, received: int, waiting_s: float, late_s: float, is_lost: bool
) -> None:
    workers, store = make_workers(monkeypatch, [None, None, None], {})
    put_heartbeats(store, 1, sent=sent, received=received, waiting_s=waiting_s, late_s=late_s)
    if not is_lost:
        workers.check(PLAN, SESSION)
        workers.end()
        return
    with pytest.raises(osp.TransportError, match=r"is 6 s late, the limit is 5 s") as caught:
        workers.check(PLAN, SESSION)
    assert (caught.value.kind, caught.value.link) == ("link", ("node 0", "node 1"))
    workers.end()


def test_what_is_left_keeps_its_processes_and_a_lost_node_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, store = make_workers(monkeypatch, [None, -9, None, None, None], {0: LOST, 2: LOST})
    error = osp.TransportError("lost", kind="killed", node="node 1")
    workers.quiesce(PLAN, SESSION, error)
    assert f"interrupt/{SESSION}" in store.values
    assert workers.assign(without_node_1(), SESSION + 1) == (0, 2)
    assert workers.assign(PLAN, SESSION + 2) == (0, 3, 2)  # a node that comes back gets a new process
    workers.end()


def test_a_worker_that_does_not_leave_its_session_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workers, _ = make_workers(monkeypatch, [None, -9, None, None, None], {0: LOST})
    with caplog.at_level(logging.INFO, logger="orbitsplit.runtime"):
        workers.quiesce(PLAN, SESSION, osp.TransportError("lost", kind="killed", node="node 1"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f'node "node 2" did not leave session {SESSION} within 0 s'),
        ("WARNING", 'node "node 2": process 7 killed'),
    ]
    assert workers.assign(PLAN, SESSION + 1) == (0, 3, 4)
    workers.end()


# Other threads.


class Announced:
    """A lock that signals when a thread of the given name comes for it."""

    def __init__(self, lock: Any, name: str) -> None:
        self._lock, self._name, self.is_wanted = lock, name, threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread().name == self._name:
            self.is_wanted.set()
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


def start_with(monkeypatch: pytest.MonkeyPatch, starting: Callable[[], Process]) -> Workers:
    monkeypatch.setattr(worker_process, "start", lambda *_args, **_options: starting())
    return Workers(Store(), Timeouts(heartbeat_s=8.0, stall_s=5.0), LocalLauncher("nowhere:1"))  # type: ignore[arg-type]


def test_a_process_that_is_being_started_at_the_end_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was entered when the others had been killed, and lived on.
    process = Process()
    ender = threading.Thread(target=lambda: workers.end(), name="ender")

    def starting() -> Process:
        ender.start()
        assert lock.is_wanted.wait(10)
        return process

    workers = start_with(monkeypatch, starting)
    lock = workers._lock = Announced(workers._lock, "ender")  # type: ignore[assignment]
    workers.assign(osp.Plan.manual(cuts=[], layers=3), SESSION)
    ender.join(10)
    assert not ender.is_alive()
    assert process.returncode == -9


def test_no_process_is_started_once_the_end_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    # The end went through processes and nodes while others were added: RuntimeError, or one was passed over.
    refused: list[str] = []

    class Waited(Process):
        def wait(self, timeout: float | None = None) -> int | None:
            if timeout is not None and not refused:
                with pytest.raises(osp.TransportError) as caught:
                    workers.assign(osp.Plan.manual(cuts=[1, 2, 3], layers=3), SESSION + 1)
                refused.append(str(caught.value))
            return super().wait(timeout)

    processes = [Waited() for _ in range(3)]
    left = iter(processes)
    workers = start_with(monkeypatch, lambda: next(left))
    workers.assign(PLAN, SESSION)
    workers.end()
    assert refused == ['no process is started for node "node 3": all were ended']
    assert [process.returncode for process in processes] == [-9, -9, -9]


def test_process_ids_while_a_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # The node was gone between the look whether it is there and the one at its process: KeyError.
    class Vanishing(dict[str, Any]):
        def __contains__(self, node: object) -> bool:
            return super().pop(node, None) is not None

    workers, _ = make_workers(monkeypatch, [None, None, None], {})
    for number, worker in enumerate(workers._processes.values()):
        worker.process.pid = 10 + number  # type: ignore[union-attr]
    kept = workers._processes
    workers._processes = Vanishing(kept)
    assert workers.pids(PLAN) == (10, 11, 12)
    workers._processes = kept
    workers.end()
