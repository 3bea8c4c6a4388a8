"""Fixtures that tests of several packages share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

# Before torch is imported. Matrices of these models are so small that threads mostly wait for each other, spinning: on
# two busy cores several times the processor time of one thread. Values that are set already stay.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A name that is no directory may be a hub id: without a hub each one would be asked for six times, for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from orbitsplit._backend import backend_name, use_backend
from orbitsplit._io.garbage import no_collections

pytest.register_assert_rewrite("tests.support.solving")  # its checks say what differs, as those of tests do

_DEFAULT_BACKEND = backend_name()
# Modules that take longest, in the order in which they start: processes of pipelines wait for each other, and what only
# computes uses the time. Where modules are shared out whole, one that takes minutes would else end alone.
_FIRST = (
    "runtime/test_recovery.py",
    "planner/test_planner.py",
    "models/test_stage.py",
    "runtime/test_torchrun.py",
    "cases/test_problems.py",
    "cli/test_demo.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what collection imports and makes out of collections of garbage, each of which would visit it all.

    Such a visit takes 0.7 s, and converting a model collects garbage after every layer.
    """
    with no_collections():
        result = yield
    gc.collect()
    gc.freeze()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the modules that take longest before the others."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


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


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """Compute with one torch thread, as stages do by default: for modules that compare bits with those of a stage."""
    from tests.support.tiny_models import one_thread  # imports torch, which most modules do without

    with one_thread():
        yield
