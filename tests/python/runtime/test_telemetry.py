"""What a worker's own threads tell the parent."""

from __future__ import annotations

from typing import Any

from orbitsplit.runtime._messages.transport import ControlStore
from orbitsplit.runtime._worker.telemetry import Heart


def test_the_counts_of_a_session_never_get_the_number_of_the_next() -> None:
    # The session was looked at after the channels, which are those of the session before until they are replaced.
    class Channel:
        sent, received, dues_s = 500, 500, list[float]()

        @property
        def waiting_since_s(self) -> None:
            heart.session = 8  # the next one begins during a look at this one

    heart: Any = Heart(ControlStore.host().address, 0)
    heart.session, heart.sender, heart.receiver = 7, Channel(), Channel()
    sign = heart._sign(1)
    assert (sign.session, sign.sent, sign.received) == (7, 500, 500)
