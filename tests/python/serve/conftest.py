"""A client of the server that a module runs as its fixture `served`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.fake_engine import Served


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    """Return a client; what was asked before is forgotten, and what the model was to say is after."""
    served.engine.seen.clear()
    with served.client() as connected:
        yield connected
    served.engine.say = list
