"""The way of a host's workers to the control store, which they reach as if it were on their own machine."""

from __future__ import annotations

import logging
import socket
import threading

from orbitsplit._errors import TransportError
from orbitsplit.runtime._messages.tls_channel import Credentials, TlsChannel, accepted, shut

LOG = logging.getLogger("orbitsplit.runtime")


class Tunnel:
    """Listens on the loopback interface; each connection to it goes on to the coordinator, in a channel of its own.

    `coordinator` is the address of the one that the host serves.
    """

    def __init__(self, coordinator: str, node: str, credentials: Credentials) -> None:
        self.coordinator = coordinator
        self._node = node
        self._credentials = credentials
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, name="tunnels", daemon=True).start()

    @property
    def address(self) -> str:
        """Where workers find the store, "host:port"."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept no connections any more."""
        self._is_closed = True
        shut(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for connection, _ in accepted(self._listener, lambda: self._is_closed):
            threading.Thread(target=self._pass, args=(connection,), name="tunnel", daemon=True).start()

    def _pass(self, connection: socket.socket) -> None:
        try:
            channel = TlsChannel.connect(self.coordinator, self._credentials)
            channel.send({"store": self._node})
            channel.pass_through(connection)
        except (OSError, TransportError) as error:
            LOG.warning("a process of this host does not reach the coordinator: %s", error)
        finally:
            connection.close()
