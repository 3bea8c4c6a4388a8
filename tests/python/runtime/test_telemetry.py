"""What a worker's own threads report to the parent."""

from __future__ import annotations

from typing import Any

from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._worker.telemetry import HeartbeatThread


def test_the_counts_of_a_session_never_get_the_number_of_the_next() -> None:
    # The session was looked at after the channels, which are those of the session before until they are replaced.
    class Channel:
        sent, received, sent_bytes, busy_s, expected_arrivals_s = 500, 500, 0, 0.0, list[float]()

        @property
        def waiting_since_s(self) -> None:
            heartbeat.session = 8  # the next one begins during a look at this one

    heartbeat: Any = HeartbeatThread(ControlStore.host().address, 0)
    heartbeat.session, heartbeat.sender, heartbeat.receiver = 7, Channel(), Channel()
    sign = heartbeat._heartbeat(1)
    assert (sign.session, sign.sent, sign.received) == (7, 500, 500)
