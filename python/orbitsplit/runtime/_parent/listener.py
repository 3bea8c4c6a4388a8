"""A thread of the parent that reads the events of the first stage in one session."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control_store import ControlStore


class Listener(threading.Thread):
    """Calls `on_events(session, events)` with each list of events, in order."""

    def __init__(self, address: str, session: int, on_events: Callable[[int, list[list[Any]]], None]) -> None:
        super().__init__(name="listener", daemon=True)
        self._store = ControlStore.join(address)
        self._waker = ControlStore.join(address)
        self._session = session
        self._on_events = on_events
        self._number = 0
        self._is_ended = False

    def run(self) -> None:
        """Read until ended."""
        while not self._is_ended:
            key = control.events_key(self._session, self._number)
            data = self._store.get(key)
            self._store.remove(key)
            if data == control.STOP:
                return
            self._number += 1
            self._on_events(self._session, json.loads(data))

    def end(self) -> None:
        """End the thread: after return it makes no calls, except the one that may have led here."""
        self._is_ended = True
        while self.is_alive() and self is not threading.current_thread():
            self._waker.put(control.events_key(self._session, self._number), control.STOP)
            self.join(0.1)
