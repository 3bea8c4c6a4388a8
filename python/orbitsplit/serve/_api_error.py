"""Errors as OpenAI's clients read them: one short line without the text of any exception."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ._log import log
from ._request_id import HEADER, current_request_id

_MAX_MESSAGE, _MAX_QUOTED = 300, 80


def first_line(text: str, limit: int = _MAX_MESSAGE) -> str:
    """Return the first line of a text, cut to `limit` characters."""
    line = text.strip().partition("\n")[0].rstrip()
    return line if len(line) <= limit else line[: limit - 3] + "..."


def quoted(text: str) -> str:
    """Return the beginning of what a client sent, in quotes."""
    return f'"{first_line(text, _MAX_QUOTED)}"'


class ApiError(Exception):
    """A response that is not 200: its status, a message, the parameter at fault and a code if there is one.

    The client receives the first line of `message`, at most 300 characters of it. Do not put an exception's text into
    it: that may name files of this machine. Such text belongs in the log.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = first_line(message)
        self.param = None if param is None else first_line(param, _MAX_QUOTED)
        self.code = code
        self.headers = headers
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def reason(self) -> str:
        """Why the request is refused, for the log: without what the client sent."""
        reason = self.code or HTTPStatus(self.status).phrase
        # An unknown parameter is named by the client; of a path such as messages.0.name the first part is ours.
        is_known = self.param is not None and self.code != "unknown_parameter"
        return f"{reason} ({str(self.param).partition('.')[0]})" if is_known else reason


def internal_error() -> ApiError:
    """Return the error for a fault of the server."""
    return ApiError(500, "internal error; the server's log has the details")


async def api_error_response(request: Request, error: Exception) -> JSONResponse:
    """Refuse a request with an error of ours, and log that."""
    assert isinstance(error, ApiError)
    client = "unknown" if request.client is None else f"{request.client.host}:{request.client.port}"
    if error.status != 500:  # which is a fault, logged where it happened
        log.info("refused: %d %s, client %s", error.status, error.reason, client)
    return JSONResponse(error.to_dict(), error.status, error.headers)


async def http_exception_response(request: Request, error: Exception) -> JSONResponse:
    """Refuse a request with an error of the framework: no such path, or not this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {first_line(request.url.path, _MAX_QUOTED)}: {error.detail}"
    return await api_error_response(request, ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def internal_error_response(request: Request, error: Exception) -> JSONResponse:
    """Answer after a fault of the server, whose traceback uvicorn logs."""
    response = await api_error_response(request, internal_error())
    request_id = current_request_id()
    if request_id is not None:  # this response passes the middleware by
        response.headers[HEADER] = request_id
    return response
