"""The server's logger, `orbitsplit.serve`. What it logs never includes prompts, generated text or keys."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("orbitsplit.serve")
log.addHandler(logging.NullHandler())


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Send warnings and errors to stderr during the block if the program has configured no handler for them."""
    if _has_handler(log):
        yield
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s:     %(message)s"))  # aligned with uvicorn's lines
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _has_handler(logger: logging.Logger) -> bool:
    current: logging.Logger | None = logger
    while current is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
