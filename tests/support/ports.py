"""Ports that another process is to listen at later."""

from __future__ import annotations

import random
import socket

# Below those that systems give to connections (from 32768 on Linux, from 49152 elsewhere) and to listeners that leave
# the choice to the system: one of these could be taken before it is listened at. And a connection to a port among them
# where nobody listens yet can get the same port itself, and so be connected to itself.
_FIRST, _LAST = 20_000, 32_000


def unused_port() -> int:
    """Return a port of the loopback interface at which nobody listens, and that the system gives to nobody."""
    while True:
        port = random.SystemRandom().randint(_FIRST, _LAST)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
