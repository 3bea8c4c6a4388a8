"""Fixtures that tests of several packages share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from orbitsplit._backend import use_backend


@pytest.fixture(params=["native", "numba"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the C++ extension and with Numba; the name of the one that is used."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Undo what a command that runs in this process changes in the log."""
    logger = logging.getLogger("orbitsplit")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
