"""A client of the server that a module runs as its fixture `served`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from openai import OpenAI

from tests.support.fake_engine import WAIT_S, Served


@pytest.fixture(scope="package", autouse=True)
def patient_clients() -> Iterator[None]:
    """Let httpx wait as long as other clients here: a busy machine may hold a server up for its own five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(DEFAULT_TIMEOUT_CONFIG, name, WAIT_S)
        yield


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """Return a client; what was asked before is forgotten, and what the model was to say is after."""
    served.engine.seen.clear()
    with served.client() as connected:
        yield connected
    served.engine.say = list
