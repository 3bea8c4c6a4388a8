"""The key that requests must send."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from ._api_error import ApiError

Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The key that requests must send; None: none is needed."""

    key: str | None

    def required(self, handler: Handler) -> Handler:
        """Return the handler, for requests with the key only."""

        async def guarded(request: Request) -> Any:
            if not self.is_in(request):
                message = "this server requires its API key: Authorization: Bearer KEY"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return guarded

    def is_in(self, request: Request) -> bool:
        """Return whether a request has the key, True if none is needed."""
        if self.key is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # The bytes received: compare_digest takes no text beyond ASCII.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        return is_right and scheme.lower() == "bearer"
