"""The agent that a node had before this one: whether a coordinator may still count it among its hosts.

An agent that ended with the power of its machine, or while its link was cut, could not say so: a coordinator counts it
until it has been silent for too long. If the next agent counted for another coordinator meanwhile, both might work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.hosts import TICK_S, Silence
from orbitsplit.runtime._parent.fleet_status import FleetStatus


class Predecessor:
    """Asks each coordinator at "host:port" whether it has a host of the node; `is_gone` once all have said no.

    Or once it has asked for so long that every coordinator has noticed, not counting the time in which this process was
    suspended, as coordinators count silence.
    """

    def __init__(self, coordinators: Sequence[str], node: str, credentials: str | Path) -> None:
        self._node = node
        self._credentials = credentials
        self._asked_s = 0.0
        self._unknown = set(coordinators)
        self._is_over = threading.Event()

    def ask(self) -> None:
        """Ask in the background until `end`, each coordinator in a thread of its own, as it may not be reached."""
        if len(self._unknown) < 2:  # the only one tells it by taking this host
            return
        threading.Thread(target=self._count, name="predecessor", daemon=True).start()
        for address in tuple(self._unknown):
            threading.Thread(target=self._ask, args=(address,), name="predecessor", daemon=True).start()

    def end(self) -> None:
        """Ask no more."""
        self._is_over.set()

    def is_not_at(self, coordinator: str) -> None:
        """Take note that a coordinator has no host of this node, or has just taken this one."""
        self._unknown.discard(coordinator)

    def is_gone(self, silence_s: float) -> bool:
        """Return whether no coordinator counts an earlier agent, which it does for less than `silence_s` seconds."""
        if self._asked_s > silence_s:
            self.end()
            return True
        return not self._unknown

    def _count(self) -> None:
        silence = Silence()
        while not self._is_over.wait(TICK_S):
            self._asked_s = silence.tick()

    def _ask(self, address: str) -> None:
        while address in self._unknown and not self._is_over.is_set():
            with suppress(OSError, TransportError, ValueError, KeyError, TypeError):  # it is not reached, or ends
                status = FleetStatus.of(address, credentials=self._credentials)
                if self._node not in [host.node for host in status.hosts]:
                    self.is_not_at(address)
                    return
            self._is_over.wait(TICK_S)
