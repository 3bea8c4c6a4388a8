"""Errors as OpenAI's clients understand them."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse


class ApiError(Exception):
    """An answer that is not 200: its status, a message, the parameter at fault and a code if there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


async def api_error_response(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error of ours."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.to_dict(), error.status, error.headers)


async def http_exception_response(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error of the framework: no such path, or not this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await api_error_response(request, ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def internal_error_response(request: Request, error: Exception) -> JSONResponse:
    """Answer for a fault of the server; the traceback goes to its log alone."""
    return await api_error_response(request, ApiError(500, "internal error; the server's log says more"))
