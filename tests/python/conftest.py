"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orbitsplit._backend import use_backend


@pytest.fixture(params=["native", "numba"], scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the C++ extension and with Numba; the name of the one that is used."""
    with use_backend(request.param):
        yield request.param
