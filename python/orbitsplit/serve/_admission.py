"""Admission control: how many generations may run or wait, which ones do, and whether the pipeline works."""

from __future__ import annotations

from collections.abc import Callable

from orbitsplit._errors import OrbitsplitError, TransportError

from ._api_error import ApiError, internal_error
from ._generation import Generation
from ._log import log

# Where this server has failed, another one may answer by then: one that takes over, or this one when it runs again.
_RETRY = {"Retry-After": "1"}
# What clients learn of a failure, by `TransportError.kind`. Its message, which is logged, may hold a stage's traceback.
_FAILURES = {
    "killed": "the process of a node ended",
    "hangs": "a node does not respond",
    "memory": "a node ran out of memory",
    "link": "a link does not deliver",
    "corruption": "a link delivers damaged messages",
    "timeout": "a time limit was exceeded",
    "host": "this coordinator has lost its hosts",
    "unusable": "it ended after an earlier failure",
}


class Admission:
    """The generations of a server, running or queued, until both the engine and the response have finished with them.

    `failure` says in one line why the pipeline failed when it was last used, None if it did not.
    """

    def __init__(self, limit: int) -> None:
        self.failure: str | None = None
        self._limit = limit
        self._live: set[Generation] = set()
        self._is_closing = False
        self._logged_failure: str | None = None

    def __len__(self) -> int:
        return len(self._live)

    def open_generations(self) -> list[Generation]:
        """Return the generations whose responses still run."""
        return [generation for generation in self._live if not generation.is_closed]

    @property
    def refusal(self) -> str | None:
        """Why a request for one choice would be refused now, None if it would not."""
        if self._is_closing:
            return "the server is shutting down"
        if len(self._live) >= self._limit:
            return f"{len(self._live)} choices are running or queued, as many as may be"
        return None

    def admit(self, count: int, on_change: Callable[[], None]) -> list[Generation]:
        """Return `count` new generations.

        Raises ApiError: 400 if the limit is lower, 429 if too many are live, 503 if the server is shutting down.
        """
        if self._is_closing:
            raise _closing_error()
        if count > self._limit:
            raise ApiError(400, f"the request asks for {count} choices, this server takes at most {self._limit}")
        if len(self._live) + count > self._limit:
            message = f"{len(self._live)} choices are running or queued, {count} more would exceed {self._limit}"
            raise ApiError(429, message, code="rate_limit_exceeded", headers=_RETRY)
        admitted = [Generation(on_change, self._live.discard) for _ in range(count)]
        self._live.update(admitted)
        return admitted

    def close(self) -> None:
        """Admit no more, and end all live generations with an error that gives the reason."""
        self._is_closing = True
        for generation in list(self._live):
            generation.fail(_closing_error())

    def note_success(self) -> None:
        """Record that the pipeline served a request."""
        self.failure = self._logged_failure = None

    def explain(self, error: BaseException) -> ApiError:
        """Return what the client receives for an error; log the error, and remember a failure of the pipeline."""
        if isinstance(error, ApiError):
            return error
        if not isinstance(error, OrbitsplitError):
            log.error("a request failed", exc_info=error)
            return internal_error()
        if str(error) != self._logged_failure:  # one failure ends many requests
            log.error("the pipeline failed: %s", error)
            self._logged_failure = str(error)
        kind = error.kind if isinstance(error, TransportError) else ""
        if kind == "request":  # the pipeline works, and serves others
            message = "a stage failed at this request; the server's log has the details"
            return ApiError(500, message, code="request_failed")
        self.failure = _FAILURES.get(kind, "a stage failed")
        return ApiError(503, f"the pipeline failed: {self.failure}", code="pipeline_failed", headers=_RETRY)


def _closing_error() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=_RETRY)
