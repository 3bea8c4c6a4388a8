"""Accepts connections, and serves those that prove to have the credentials."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.tls_channel import (
    HANDSHAKE_S,
    Credentials,
    TlsChannel,
    accepted,
    host_and_port,
    shut,
)

# Not that of `log`, which imports torch: this is imported by the command line.
LOG = logging.getLogger("orbitsplit.runtime")

# Connections that have not proved their credentials yet; more are closed at once.
_MOST_UNPROVED = 64

# Serves a channel, given the address of its other end, and the first message from there.
Serve = Callable[[TlsChannel, str, dict[str, Any]], None]


class AuthenticatedListener:
    """Listens at "host:port" (port 0: the system chooses one) until it is closed, and accepts once it is started.

    `serve` is called for each connection with the credentials, in a thread of its own, and the channel is closed when
    it returns. What it raises for a broken connection, or for messages that make no sense, is logged.

    Raises OSError if the address cannot be listened on.
    """

    def __init__(self, address: str, credentials: Credentials, serve: Serve) -> None:
        self._credentials = credentials
        self._serve = serve
        self._is_closed = False
        self._unproved = threading.BoundedSemaphore(_MOST_UNPROVED)
        self._socket = socket.create_server(host_and_port(address))

    @property
    def address(self) -> str:
        """Where connections are accepted, "host:port"."""
        host, port = self._socket.getsockname()[:2]
        return f"{host}:{port}"

    def start(self) -> None:
        """Accept connections from now on."""
        threading.Thread(target=self._accept, name="hosts", daemon=True).start()

    def close(self) -> None:
        """Accept no connection any more; those that are there go on. May be called twice."""
        self._is_closed = True
        shut(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for connection, peer in accepted(self._socket, lambda: self._is_closed):
            if not self._unproved.acquire(blocking=False):
                LOG.warning(
                    "a connection from %s is refused: %d others have not proved themselves", peer, _MOST_UNPROVED
                )
                connection.close()
                continue
            threading.Thread(target=self._authenticate, args=(connection, peer), name="host", daemon=True).start()

    def _authenticate(self, connection: socket.socket, peer: str) -> None:
        """Serve a connection that proves to have the credentials."""
        channel: TlsChannel | None = None
        try:
            try:
                channel = TlsChannel(connection, self._credentials.server, is_server=True)
                first = channel.receive(HANDSHAKE_S)
                if first is None:
                    raise ConnectionResetError("it went away before it said what it is for")
            finally:
                self._unproved.release()
        except (OSError, TransportError, ValueError) as error:
            LOG.warning("a connection from %s is refused: %s", peer, error)
            if channel is not None:
                channel.release()
            return
        try:
            self._serve(channel, peer, first)
        except (OSError, TransportError, ValueError, KeyError, TypeError) as error:
            LOG.warning("the connection from %s ends: %s: %s", peer, type(error).__name__, error)
        finally:
            channel.release()
