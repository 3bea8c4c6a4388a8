"""How long a pipeline can be used: until it is closed, is dropped, or fails."""

from __future__ import annotations

import threading

from orbitsplit._errors import TransportError

DROPPED = "it was dropped without close()"


class Lifetime:
    """Whether a pipeline can be used, and if not, why.

    `reason` is set once, when its end begins, and `ended` when its processes have ended.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_closed = False
        self.is_dropped = False
        self.ended = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the end has begun."""
        return self.reason is not None

    @property
    def failure(self) -> str | None:
        """Why the pipeline has ended, in one line; None while it runs, and after `close`."""
        return None if self.is_closed else self.reason

    def check_usable(self) -> None:
        """Raise TransportError if the pipeline has ended, or was dropped."""
        reason = self.reason or (DROPPED if self.is_dropped else None)
        if reason is not None:
            raise TransportError(f"the pipeline cannot be used: {reason}", kind="unusable")

    def drop(self) -> bool:
        """Make the supervisor end everything soon; return whether that is needed.

        It is called by a finalizer, which may interrupt any thread anywhere, so it takes no lock and does not wait.
        """
        self.is_dropped = True
        return not self.is_over

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the processes; return whether the pipeline can be used no more."""
        return self.ended.wait(timeout_s) or self.is_over or self.is_dropped
