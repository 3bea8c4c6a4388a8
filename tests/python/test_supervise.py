"""Telling the cause of a failure from what it caused, with processes and a store made up for the purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

import orbitsplit as osp
from orbitsplit.runtime import _supervise
from orbitsplit.runtime._control import Failure, SignOfLife, failure_key, sign_of_life_key
from orbitsplit.runtime._supervise import Workers

PLAN = osp.Plan.manual(cuts=[1, 2], layers=3)
LOST = Failure("PeerLostError: link broke", "traceback of the lost", is_consequence=True)
RAISED = Failure("ValueError: 7 is too many", "traceback of the error", is_consequence=False)


@dataclass
class Process:
    returncode: int | None = None
    stdin: None = None

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


@dataclass
class Store:
    values: dict[str, bytes] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> bytes:
        return self.values[key]


def make_workers(codes: list[int | None], failures: dict[int, Failure]) -> tuple[Workers, Store]:
    store = Store({failure_key(rank): failure.to_json() for rank, failure in failures.items()})
    workers = Workers(PLAN, store, heartbeat_timeout_s=8.0)  # type: ignore[arg-type]
    workers._processes.extend(Process(code) for code in codes)  # type: ignore[misc]
    workers._logs.extend(open("/dev/null", "rb") for _ in codes)  # noqa: SIM115
    return workers, store


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_supervise, "_GRACE_S", 0.0)


@pytest.mark.parametrize(
    ("codes", "failures", "message"),
    [
        ([1, -9, 1], {0: LOST, 2: LOST}, r'node "node 1" (stage 1, layers 2-2) was killed by signal 9 (SIGKILL)'),
        ([1, -9, 1], {0: RAISED}, r'node "node 1" (stage 1, layers 2-2) was killed by signal 9 (SIGKILL)'),
        ([1, 1, 1], {0: LOST, 1: LOST, 2: RAISED}, 'node "node 2" (stage 2, layers 3-4) failed: ValueError: 7 is'),
        ([None, 1, -6], {1: RAISED}, 'node "node 1" (stage 1, layers 2-2) failed: ValueError: 7 is too many'),
        ([1, 3, None], {0: LOST}, 'node "node 1" (stage 1, layers 2-2) ended with exit code 3'),
        ([None, -40, None], {}, 'node "node 1" (stage 1, layers 2-2) was killed by signal 40'),  # has no name
        ([0, None, None], {}, 'node "node 0" (stage 0, layers 0-1) ended with exit code 0'),
        ([None, 1, None], {1: LOST}, 'node "node 1" (stage 1, layers 2-2) failed: PeerLostError: link broke'),
    ],
)
def test_the_cause_comes_before_its_consequences(
    codes: list[int | None], failures: dict[int, Failure], message: str
) -> None:
    workers, _ = make_workers(codes, failures)
    with pytest.raises(osp.TransportError) as caught:
        workers.check()
    assert str(caught.value).startswith(message)
    workers.end()


def test_an_error_of_a_worker_brings_its_traceback() -> None:
    workers, _ = make_workers([None, 1, None], {1: RAISED})
    with pytest.raises(osp.TransportError, match="traceback of the error"):
        workers.check()
    workers.end()


def test_silence_is_measured_from_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(_supervise.time, "monotonic", lambda: now_s)
    workers, store = make_workers([None, None, None], {})
    for count in range(3):
        for rank in range(3):
            store.values[sign_of_life_key(rank)] = SignOfLife(count, "generating", count).to_json()
        workers.check()
        assert workers.new_tokens() == count
        now_s += 60.0  # nobody looked for a minute, but the workers went on
    for rank in (0, 2):
        store.values[sign_of_life_key(rank)] = SignOfLife(9, "generating", 9).to_json()
    with pytest.raises(osp.TransportError, match=r'node "node 1" .* no sign of life for 60\.0 s, the limit is 8 s'):
        workers.check()
    workers.end()
