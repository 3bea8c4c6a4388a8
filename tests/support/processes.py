"""Processes of the test program."""

from __future__ import annotations

import psutil

from orbitsplit.runtime._parent import worker_process


def workers() -> set[psutil.Process]:
    """Return the processes that this one has started, without the fork server, which outlives pipelines."""
    return {one for one in psutil.Process().children(recursive=True) if one.pid != worker_process.server_pid()}
