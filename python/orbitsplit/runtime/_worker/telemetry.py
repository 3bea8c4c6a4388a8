"""Between a worker and the parent, beside the work: threads of their own, so that no stage waits for the store.

Heart      writes a sign of life every second
Reporter   writes what the stage has to tell: tokens, ends, outputs, records
Requests   reads what the parent asks of the first stage, into its inbox
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from queue import Empty, Queue, SimpleQueue
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import SignOfLife
from orbitsplit.runtime._messages.transport import ControlStore, Receiver, Sender

_SIGN_OF_LIFE_S = 1.0
# Signs of life come more often while messages are counted on a link: what is lost shows by that.
_BUSY_SIGN_OF_LIFE_S = 0.25


class Heart(threading.Thread):
    """Writes a sign of life to the store as long as the process lives."""

    def __init__(self, address: str, worker: int) -> None:
        super().__init__(name="heart", daemon=True)
        self.phase = "starting"
        self.session = 0
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self._address = address
        self._worker = worker

    def run(self) -> None:
        """Beat."""
        store = ControlStore.join(self._address)
        for count in itertools.count():
            store.put(control.sign_of_life_key(self._worker), self._sign(count).to_json())
            time.sleep(_SIGN_OF_LIFE_S if self.sender is None else _BUSY_SIGN_OF_LIFE_S)

    def _sign(self, count: int) -> SignOfLife:
        # The session first: it changes when the channels of the one before are gone, so no counts of that one get the
        # number of the next.
        session, sender, receiver, now_s = self.session, self.sender, self.receiver, time.monotonic()
        if sender is None or receiver is None:
            return SignOfLife(count, self.phase, session)
        waiting_since_s = receiver.waiting_since_s
        return SignOfLife(
            count,
            self.phase,
            session,
            received=receiver.received,
            waiting_s=0.0 if waiting_since_s is None else now_s - waiting_since_s,
            sent=sender.sent,
            dues_in_s=tuple(due_s - now_s for due_s in sender.dues_s.copy()),
        )


class Reporter(threading.Thread):
    """Writes to the store what a worker has to tell in one session, in the order it was told."""

    def __init__(self, address: str, session: int) -> None:
        super().__init__(name="reporter", daemon=True)
        self._store = ControlStore.join(address)
        self._session = session
        self._queue: Queue[tuple[str, bytes] | list[Any]] = Queue()

    def put(self, key: str, data: bytes) -> None:
        """Set a key."""
        self._queue.put((key, data))

    def put_out(self, group: int, outputs: dict[str, Tensor]) -> None:
        """Tell what a group puts out."""
        tensors = {name: value.contiguous() for name, value in outputs.items()}
        self.put(control.outputs_key(self._session, group), save_tensors(tensors))

    def tokens(self, group: int, tokens: Tensor) -> None:
        """Tell that a group got one more token [b] in each row."""
        self._queue.put(["tokens", group, tokens.tolist()])

    def end(self, group: int) -> None:
        """Tell that a group has ended."""
        self._queue.put(["end", group, None])

    def retry(self, group: int, tokens: int, failures: int) -> None:
        """Tell that a group is restarted with the tokens that it got, after so many corrupted messages in a row."""
        self._queue.put(["retry", group, [tokens, failures]])

    def fail(self, group: int, reason: str) -> None:
        """Tell that a group is given up."""
        self._queue.put(["fail", group, reason])

    def flush(self) -> None:
        """Wait until all is written."""
        self._queue.join()

    def run(self) -> None:
        """Write, as long as the process lives."""
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
        """Read until told to stop."""
        for number in itertools.count():
            key = control.request_key(self._session, number)
            data = self._store.get(key)
            self._store.remove(key)
            if data == control.STOP:
                self._inbox.put(None)
                return
            self._inbox.put(control.unpack_request(data))
