"""The exchange of caches without processes: what it does while nothing arrives."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from orbitsplit.runtime._messages.control import MovedGroup, Setup, WorkerMove
from orbitsplit.runtime._messages.framing import Header
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._messages.transport import PeerLostError
from orbitsplit.runtime._schedule.protocol import Kind
from orbitsplit.runtime._worker.cache_exchange import CacheExchange

STALL_S = 0.2
MOVE = WorkerMove(source=0, destination=1, start=0, stop=1, codec="raw", links=(), nodes=("a", "m", "b"))
SETUP = Setup(
    plan={},
    workers=(1,),
    model="",
    codecs=None,
    conditions=None,
    emulates=False,
    origin_s=None,
    limits=Limits(1),
    start_timeout_s=60.0,
    nonce="",
    leaving=(0,),
    moves=(MOVE,),
    moved_groups=(MovedGroup(0, 1, 1, 2, 0),),
    stall_s=STALL_S,
)


class Silent:
    """A transport, and a receiver on it, where nothing arrives until it is interrupted."""

    def __init__(self) -> None:
        self.part_awaited_since_s: float | None = None
        self.interrupted = threading.Event()

    def interrupt(self) -> None:
        self.interrupted.set()

    def receive(self) -> Any:
        self.part_awaited_since_s = time.monotonic()
        assert self.interrupted.wait(30)
        raise PeerLostError("the link broke")


class Delayed(Silent):
    """Where a message has come that is delivered later than the limit, and the end of the caches behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = [(Header(Kind.CACHE, 0, 0), b""), (Header(Kind.CACHE, 0, 1), b"[]")]

    def receive(self) -> Any:
        assert not self.interrupted.wait(3 * STALL_S)
        header, description = self.messages.pop(0)
        return header, memoryview(description), memoryview(b"")


def receive(channel: Silent, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    monkeypatch.setattr(CacheExchange, "_receiver", lambda *_: channel)
    transport: Any = channel
    return CacheExchange(transport, SETUP, 1, {}, (0, 0))._receive()


def test_a_link_over_which_no_cache_comes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was waited for until the limit of starting, of ten minutes, and then the pipeline ended.
    with pytest.raises(PeerLostError, match=r'from node "a" to node "b" do not arrive: .* for 0\.2 s') as caught:
        receive(Silent(), monkeypatch)
    assert (caught.value.kind, caught.value.link) == ("link", ("a", "b"))


def test_what_an_emulated_link_delivers_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert receive(Delayed(), monkeypatch) == ({}, 0)


class TinyStage:
    """A stage of one transformer layer; it notes how many of the old caches are there whenever it makes a new one."""

    first_layer, last_layer = 0, 1

    def __init__(self, old: Sequence[weakref.ref[Any]]) -> None:
        self._old = old
        self.left: list[int] = []

    def new_cache(self, _most_tokens: int, *, spare_tokens: int) -> DynamicCache:
        gc.collect()
        self.left.append(sum(one() is not None for one in self._old))
        cache = DynamicCache()
        cache.layers.append(DynamicLayer())
        return cache


def test_an_old_cache_goes_once_it_is_copied() -> None:
    # All of them stayed until the last one was copied.
    caches: dict[int, Any] = {group: DynamicCache() for group in range(3)}
    for cache in caches.values():
        cache.update(torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), 0)
    stage: Any = TinyStage([weakref.ref(cache) for cache in caches.values()])
    groups = tuple(MovedGroup(group, 1, 4, 8, 0) for group in caches)
    exchange = CacheExchange(None, replace(SETUP, moves=(), moved_groups=groups), 1, caches, (0, 1))
    found, moved_bytes, lost = exchange.run(stage)
    assert (stage.left, moved_bytes, lost, sorted(found)) == ([3, 2, 1], 0, (), [0, 1, 2])
    assert all(torch.equal(cache.layers[0].keys, torch.ones(1, 1, 4, 2)) for cache in found.values())
