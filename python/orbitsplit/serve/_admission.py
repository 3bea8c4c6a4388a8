"""How many generations there may be, and which there are."""

from __future__ import annotations

from collections.abc import Callable

from orbitsplit._errors import OrbitsplitError

from ._api_error import ApiError
from ._generation import Generation

_RETRY_AFTER_S = 1


class Admission:
    """The generations of a server, running or queued, until engine and client are both done with them.

    `failure` is why the engine could not work when it was last used, None if it could.
    """

    def __init__(self, limit: int) -> None:
        self.failure: str | None = None
        self._limit = limit
        self._live: set[Generation] = set()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._live)

    def admit(self, count: int, on_change: Callable[[], None]) -> list[Generation]:
        """Return so many new generations.

        Raises ApiError: 400 if there can never be so many, 429 if not now, 503 if the server is shutting down.
        """
        if self._is_closing:
            raise _closing_error()
        if count > self._limit:
            raise ApiError(400, f"the request asks for {count} choices, this server takes at most {self._limit}")
        if len(self._live) + count > self._limit:
            message = f"{len(self._live)} choices are running or queued, {count} more would exceed {self._limit}"
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            raise ApiError(429, message, code="rate_limit_exceeded", headers=headers)
        admitted = [Generation(on_change, self._live.discard) for _ in range(count)]
        self._live.update(admitted)
        return admitted

    def close(self) -> None:
        """Admit no more, and end all there are with an error that says why."""
        self._is_closing = True
        for generation in list(self._live):
            generation.fail(_closing_error())

    def explain(self, error: BaseException) -> ApiError:
        """Return the answer for an error of the engine, and remember one that says it cannot work."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, OrbitsplitError):
            self.failure = str(error)
            return ApiError(503, f"the pipeline failed: {error}", code="pipeline_failed")
        return ApiError(500, "internal error; the server's log says more")


def _closing_error() -> ApiError:
    return ApiError(503, "the server is shutting down")
