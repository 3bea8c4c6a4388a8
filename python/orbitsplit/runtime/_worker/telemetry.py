"""Communication of a worker with the parent, in threads of its own, so that no stage waits for the store.

HeartbeatThread   writes a heartbeat every second, or more often during a session
Reporter          writes tokens, ends, outputs and records of a stage
Requests          reads the parent's requests to the first stage into its inbox
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Sequence
from queue import Empty, Queue, SimpleQueue
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._memory import resident_bytes
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import Heartbeat
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.transport import Receiver, Sender

_HEARTBEAT_S = 1.0
# More often while messages are counted on a link, since their counts show what is lost.
_BUSY_HEARTBEAT_S = 0.25


class HeartbeatThread(threading.Thread):
    """Writes heartbeats to the store as long as the process lives."""

    def __init__(self, address: str, worker: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.phase = "starting"
        self.session = 0
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self.pace: Pace | None = None
        self._address = address
        self._worker = worker

    def run(self) -> None:
        """Write heartbeats."""
        store = ControlStore.join(self._address)
        for count in itertools.count():
            store.put(control.heartbeat_key(self._worker), self._heartbeat(count).to_json())
            time.sleep(_HEARTBEAT_S if self.sender is None else _BUSY_HEARTBEAT_S)

    def _heartbeat(self, count: int) -> Heartbeat:
        # The session is read first: it changes after the channels of the previous session are gone, so that no counts
        # get the number of the next session.
        session, sender, receiver, now_s = self.session, self.sender, self.receiver, time.monotonic()
        pace = self.pace
        worked: dict[str, Any] = {} if pace is None else {"step_times": pace.step_times.totals(), "busy_s": pace.busy_s}
        if sender is None or receiver is None:
            return Heartbeat(count, self.phase, session, resident_bytes=resident_bytes(), **worked)
        waiting_since_s = receiver.waiting_since_s
        return Heartbeat(
            count,
            self.phase,
            session,
            received=receiver.received,
            waiting_s=0.0 if waiting_since_s is None else now_s - waiting_since_s,
            sent=sender.sent,
            arrivals_in_s=tuple(due_s - now_s for due_s in sender.expected_arrivals_s.copy()),
            sent_bytes=sender.sent_bytes,
            resident_bytes=resident_bytes(),
            link_s=sender.busy_s,
            **worked,
        )


class Reporter(threading.Thread):
    """Writes what a worker reports in one session to the store, in order."""

    def __init__(self, address: str, session: int) -> None:
        super().__init__(name="reporter", daemon=True)
        self._store = ControlStore.join(address)
        self._session = session
        self._queue: Queue[tuple[str, bytes] | list[Any]] = Queue()

    def put(self, key: str, data: bytes) -> None:
        """Set a key."""
        self._queue.put((key, data))

    def outputs(self, group: int, outputs: dict[str, Tensor]) -> None:
        """Report the outputs of a group."""
        tensors = {name: value.contiguous() for name, value in outputs.items()}
        self.put(control.outputs_key(self._session, group), save_tensors(tensors))

    def tokens(self, group: int, tokens: Tensor, details: Tensor | None = None) -> None:
        """Report one more token [b] for each row of a group, with the words [b, w] of its details."""
        value: Any = tokens.tolist()
        if details is not None:
            value = {"tokens": value, "details": base64.b64encode(details.contiguous().numpy().tobytes()).decode()}
        self._queue.put(["tokens", group, value])

    def end(self, group: int) -> None:
        """Report that a group has ended."""
        self._queue.put(["end", group, None])

    def retry(self, group: int, tokens: int, failures: int) -> None:
        """Report that a group restarts with `tokens` new tokens after `failures` corrupted messages in a row."""
        self._queue.put(["retry", group, [tokens, failures]])

    def drained(self, groups: Sequence[int]) -> None:
        """Report that nothing is under way any more, with the groups whose next step is held back."""
        self._queue.put(["drained", -1, list(groups)])

    def fail(self, group: int, kind: str, reason: str) -> None:
        """Report that a group has failed: of kind "corruption" or "request", as of `TransportError`."""
        self._queue.put(["fail", group, [kind, reason]])

    def flush(self) -> None:
        """Wait until everything is written."""
        self._queue.join()

    def run(self) -> None:
        """Write as long as the process lives."""
        number = 0
        while True:
            taken = [self._queue.get()]
            while True:
                try:
                    taken.append(self._queue.get_nowait())
                except Empty:
                    break
            events = [item for item in taken if isinstance(item, list)]
            for key, data in (item for item in taken if isinstance(item, tuple)):
                self._store.put(key, data)
            if events:
                self._store.put(control.events_key(self._session, number), json.dumps(events).encode())
                number += 1
            for _ in taken:
                self._queue.task_done()


class Requests(threading.Thread):
    """Reads the parent's requests of one session into an inbox: what `unpack_request` returns, then None."""

    def __init__(self, address: str, session: int, inbox: SimpleQueue[Any]) -> None:
        super().__init__(name="requests", daemon=True)
        self._store = ControlStore.join(address)
        self._session = session
        self._inbox = inbox

    def run(self) -> None:
        """Read until the request to stop."""
        for number in itertools.count():
            key = control.request_key(self._session, number)
            data = self._store.get(key)
            self._store.remove(key)
            if data == control.STOP:
                self._inbox.put(None)
                return
            self._inbox.put(control.unpack_request(data))
