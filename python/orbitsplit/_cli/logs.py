"""The log of the command line: the loggers of orbitsplit, on standard error."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("orbitsplit.cli")
log.addHandler(logging.NullHandler())


def configure(*, verbosity: int, is_quiet: bool) -> None:
    """Log errors (quiet), warnings (verbosity 0), information (1) or debugging messages (2 and more)."""
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logger = logging.getLogger("orbitsplit")
    for handler in [one for one in logger.handlers if isinstance(one, _StderrHandler)]:  # of an earlier command
        logger.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if is_quiet else levels[min(verbosity, len(levels) - 1)])


def is_quiet() -> bool:
    """Return whether errors only are logged, and progress is not shown."""
    return not logging.getLogger("orbitsplit").isEnabledFor(logging.WARNING)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not generic at run time in Python 3.10
    """Writes to what standard error is now: a progress bar replaces it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)
