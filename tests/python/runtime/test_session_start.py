"""The start of a session, with workers made up: what it leaves in the control store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import orbitsplit as osp
from orbitsplit.runtime._messages.control import codecs_key
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._parent.hand_over import NO_HAND_OVER
from orbitsplit.runtime._parent.session import Deployment, Settings
from orbitsplit.runtime._parent.session_start import SessionStart
from tests.support.fake_workers import PLAN, FakeWorkers

LOSS = osp.TransportError('node "node 1" was killed', kind="killed", node="node 1")


class FakeCodecs:
    path = "a folder"

    def read(self, link: int) -> bytes:
        return b"codecs of link %d" % link


def test_codecs_in_the_store_go_with_a_start_that_fails() -> None:
    # They stayed there for as long as the pipeline ran.
    store = ControlStore.host("127.0.0.1", 0)
    workers: Any = FakeWorkers(ControlStore.join(store.address), osp.Timeouts(), Any, start_losses=[LOSS])
    hosts: Any = SimpleNamespace(term=None)
    polls: list[tuple[int, int]] = []
    settings = Settings(model="", deployment=Deployment(hosts=hosts))
    start = SessionStart(settings, store.address, workers, lambda *poll: polls.append(poll))
    codecs: Any = FakeCodecs()
    with pytest.raises(osp.TransportError, match="was killed"):
        start.run(3, PLAN, NO_HAND_OVER, codecs, origin_s=None)
    assert store.get(codecs_key(3, 0)) == b"codecs of link 0"  # a worker that has not left yet may read them
    start.remove_codecs()
    assert not store.has(codecs_key(3, 0))
    session = start.run(4, PLAN, NO_HAND_OVER, codecs, origin_s=None)
    assert (session.number, session.workers, polls[-1]) == (4, (0, 1), (2, 2))
    assert not store.has(codecs_key(4, 0))
