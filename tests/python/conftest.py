"""Fixtures that tests of several packages share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

# Before torch is imported. Matrices of these models are so small that threads mostly wait for each other, spinning: on
# two busy cores several times the processor time of one thread. Values that are set already stay.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from orbitsplit._backend import backend_name, use_backend

_DEFAULT_BACKEND = backend_name()


@pytest.fixture(params=["native", "numba"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the C++ extension and with Numba; the name of the one that is used."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def default_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test that asks for no backend with the default one, not with the last that others of its module used."""
    if "backend" in request.fixturenames:
        yield
        return
    with use_backend(_DEFAULT_BACKEND):
        yield


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Undo what a command that runs in this process changes in the log."""
    logger = logging.getLogger("orbitsplit")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
