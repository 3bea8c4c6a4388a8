"""Recoveries of the engine in the server's log."""

from __future__ import annotations

from typing import Any

from ._log import log


class RecoveryLog:
    """Logs each recovery of an engine that has `recoveries`, as `orbitsplit.Pipeline` does, once."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._logged = 0

    def update(self) -> None:
        """Log the recoveries since the last call."""
        recoveries = getattr(self._engine, "recoveries", ())
        for recovery in recoveries[self._logged :]:
            log.warning("the pipeline recovered: %s", recovery)
        self._logged = len(recoveries)
