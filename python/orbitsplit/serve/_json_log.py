"""Logs as lines of JSON, for programs that collect them."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from uvicorn.config import LOGGING_CONFIG

from ._request_id import current_request_id

_ACCESS_ARGUMENTS = ("client", "method", "path", "http_version", "status")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, and the `fields` of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = current_request_id()
        if request_id is not None:
            entry["request_id"] = request_id
        entry.update(getattr(record, "fields", {}))
        arguments = record.args
        if record.name == "uvicorn.access" and isinstance(arguments, tuple):
            entry.update(zip(_ACCESS_ARGUMENTS, arguments, strict=False))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def uvicorn_config(log_format: str) -> dict[str, Any]:
    """Return the configuration of uvicorn's loggers for a format, "text" or "json"."""
    if log_format == "text":
        return LOGGING_CONFIG
    formatter = {"()": "orbitsplit.serve._json_log.JsonFormatter"}
    return {**LOGGING_CONFIG, "formatters": {"default": formatter, "access": formatter}}


@contextmanager
def json_on_stderr() -> Iterator[None]:
    """Write what the package logs, from INFO on, as JSON to stderr during the block, in place of its other handlers."""
    logger = logging.getLogger("orbitsplit")
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagates
