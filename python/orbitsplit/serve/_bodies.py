"""Reads the bodies of requests, within limits of size and time."""

from __future__ import annotations

from dataclasses import dataclass

from anyio import fail_after
from starlette.requests import ClientDisconnect, Request

from ._api_error import ApiError, quoted


@dataclass(frozen=True, slots=True)
class RequestBodies:
    """Reads JSON bodies of at most `limit` bytes."""

    limit: int
    timeout_s: float

    async def read(self, request: Request) -> bytes:
        """Return the body. Raises ApiError 400, 408, 413 or 415."""
        kind = request.headers.get("content-type", "")
        # A page in a browser may post other types to any address without asking for permission first.
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, f"the content-type is {quoted(kind)}, expected application/json")
        encoding = ", ".join(request.headers.getlist("content-encoding"))
        if encoding.strip().lower() not in ("", "identity"):
            message = f"the content-encoding is {quoted(encoding)}; this server takes bodies without an encoding only"
            raise ApiError(415, message, headers={"Accept-Encoding": "identity"})
        declared = request.headers.get("content-length", "")
        self._check(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        try:
            with fail_after(self.timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    self._check(len(body))
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {self.timeout_s:g} s") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client disconnected before its body was complete") from error
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ApiError(413, f"the body has {size} bytes or more, this server takes at most {self.limit}")
