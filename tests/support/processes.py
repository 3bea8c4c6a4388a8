"""Processes of the test program."""

from __future__ import annotations

import time

import psutil

from orbitsplit.runtime import Pipeline
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import Heartbeat
from orbitsplit.runtime._parent import worker_process


def workers() -> set[psutil.Process]:
    """Return the processes that this one has started and that run, without the fork server, which outlives pipelines.

    A server that an earlier test has ended may still be a zombie: the next one takes its place before it is waited for.
    """
    found = psutil.Process().children(recursive=True)
    return {one for one in found if one.pid != worker_process.server_pid() and _is_running(one)}


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def messages_sent(pipe: Pipeline, rank: int = 0) -> int:
    """Return how many messages a stage has sent, once three heartbeats in turn that it has sent since say the same."""
    store = pipe._sessions._store
    key = control.heartbeat_key(pipe._sessions.current.workers[rank])
    seen = [Heartbeat.from_json(store.get(key))]
    while len(seen) < 4 or len({heartbeat.sent for heartbeat in seen[-3:]}) > 1:
        time.sleep(0.05)
        heartbeat = Heartbeat.from_json(store.get(key))
        if heartbeat.count != seen[-1].count:
            seen.append(heartbeat)
    return seen[-1].sent
