"""Migrations: a running pipeline goes over to another plan between two tokens.

The supervisor drives a migration through its phases, in each of which a loss ends it, and recovery goes on:

asked      by a caller, who waits
loading    processes of new and changed stages load ahead, while the old session generates
draining   the first stage sends nothing more, and reports when no token is under way
resuming   the next session has the new plan; the pause ends with its first token
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orbitsplit._errors import TransportError
from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._messages.codec_file import CodecFiles

How = Literal["moved", "prefill", "idle"]
Phase = Literal["asked", "loading", "draining", "resuming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One migration of a pipeline to another plan.

    Attributes:
        before: The plan that ran.
        after: The plan that runs since.
        how: How requests in flight got their keys and values on stages that had not computed them: "moved" over the
            links, or made again by "prefill"; "idle" if there were none in flight.
        pause_s: Seconds from the last token before the switch to the first one after it; without requests in flight
            until the pipeline was ready again.
        predicted_pause_s: The same as the cost model predicted it just before.
        bytes_moved: Bytes of keys and values sent between nodes, as encoded.
        predicted_bytes: The same as predicted.
        loading_s: Seconds in which the slowest stage loaded ahead, before the pause.
        loaded_ahead: Nodes whose stages were loaded ahead.
        loaded_in_pause: Nodes that had no room for both stages, or no second process: they loaded in the pause.
        requests: Calls in flight during the switch.
        transfers: Source, destination, start, stop and bytes of what the first link of each route carried; times are of
            the sender's monotonic clock.
    """

    before: Plan
    after: Plan
    how: How
    pause_s: float
    predicted_pause_s: float
    bytes_moved: int = 0
    predicted_bytes: int = 0
    loading_s: float = 0.0
    loaded_ahead: tuple[str, ...] = ()
    loaded_in_pause: tuple[str, ...] = ()
    requests: int = 0
    transfers: tuple[tuple[str, str, float, float, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the migration as JSON-ready data."""
        return {
            "before": str(self.before),
            "after": str(self.after),
            "how": self.how,
            "pause_s": self.pause_s,
            "predicted_pause_s": self.predicted_pause_s,
            "bytes_moved": self.bytes_moved,
            "predicted_bytes": self.predicted_bytes,
            "loading_s": self.loading_s,
            "loaded_ahead": list(self.loaded_ahead),
            "loaded_in_pause": list(self.loaded_in_pause),
            "requests": self.requests,
        }

    def __str__(self) -> str:
        moved = f", {self.bytes_moved:,} bytes moved" if self.how == "moved" else ""
        return f"paused for {self.pause_s:.3g} s ({self.how}{moved}) to go on as {self.after}"


@dataclass(eq=False)
class Migrating:
    """A migration under way; the supervisor and the listener change it, `wait` is for the caller."""

    plan: Plan
    before: Plan
    codecs: CodecFiles | None = None  # of the plan; None once they are those of a session
    not_before_s: float = 0.0
    yields: bool = False  # to another one that is started meanwhile
    phase: Phase = "asked"
    started_s: float = field(default_factory=time.monotonic)
    loaded_ahead: tuple[str, ...] = ()
    loaded_in_pause: tuple[str, ...] = ()
    loading_s: float = 0.0
    requests: int = 0
    how: How = "idle"
    predicted_pause_s: float = 0.0
    predicted_bytes: int = 0
    bytes_moved: int = 0
    transfers: tuple[tuple[str, str, float, float, int], ...] = ()
    drained: Sequence[int] | None = None
    paused_since_s: float = 0.0
    resumed_s: float | None = None
    other_s: float = 0.0  # loading in the pause, the exchange of caches, and a token step
    _result: Migration | None = None
    _error: BaseException | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def holds_back(self) -> bool:
        """Whether the old session takes no more work, or is over."""
        return self.phase in ("draining", "resuming")

    @property
    def is_switching(self) -> bool:
        """Whether the old session is over, as nothing is under way any more."""
        return self.drained is not None

    def wait(self) -> Migration:
        """Wait for the end and return what happened. Raises what `fail` was given."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None, "it is over"
        return self._result

    def result(self, now_s: float) -> Migration:
        """Return what happened, work having resumed."""
        return Migration(
            before=self.before,
            after=self.plan,
            how=self.how,
            pause_s=now_s - self.paused_since_s,
            predicted_pause_s=self.predicted_pause_s,
            bytes_moved=self.bytes_moved,
            predicted_bytes=self.predicted_bytes,
            loading_s=self.loading_s,
            loaded_ahead=self.loaded_ahead,
            loaded_in_pause=self.loaded_in_pause,
            requests=self.requests,
            transfers=self.transfers,
        )

    def finish(self, result: Migration) -> None:
        """End it: `wait` returns the result."""
        self._result = result
        self._over.set()

    def take_codecs(self) -> CodecFiles:
        """Return the plan's codecs, for its session, which removes them."""
        codecs, self.codecs = self.codecs, None
        assert codecs is not None, "it goes over once"
        return codecs

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        if self.codecs is not None:
            self.codecs.remove()
        self._error = error
        self._over.set()


def overtaken(error: TransportError) -> TransportError:
    """Return the error of a migration during which the pipeline had to recover, or has ended."""
    return TransportError(
        f"the migration was overtaken: {str(error).splitlines()[0]}",
        kind="overtaken",
        node=error.node,
        link=error.link,
    )
