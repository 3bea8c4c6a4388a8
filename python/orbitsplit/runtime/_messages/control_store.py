"""The control store: keys and bytes that the parent serves to its workers, over a TCPStore of torch.distributed."""

from __future__ import annotations

import datetime
import math
import socket

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, not in its __all__

# A store that does not answer for so long is not there.
_CONNECT = datetime.timedelta(seconds=60)
# A wait ends with a message, or with the failure of the connection. Peers that hang are detected by the parent
# (heartbeats): no time limit here could tell them from a slow link.
FOREVER = datetime.timedelta(days=30)

# The store's server drops a client that sends a value above 8 MiB.
_STORE_VALUE_BYTES = 4 << 20
_INLINE, _CHUNKED = b"=", b"#"


class ControlStore:
    """Keys and bytes shared by the parent and its workers; a key is visible once `put` has returned."""

    def __init__(self, store: TCPStore) -> None:
        store.set_timeout(FOREVER)
        self._store = store

    @classmethod
    def host(cls, address: str = "127.0.0.1", port: int = 0) -> ControlStore:
        """Serve a new store at one address of this host (port 0: the system chooses one)."""
        # A socket of our own, since the store's would accept connections on all interfaces.
        listener = socket.create_server((address, port))
        port = listener.getsockname()[1]
        descriptor = listener.detach()
        return cls(
            TCPStore(
                address, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor, timeout=_CONNECT
            )
        )

    @classmethod
    def join(cls, address: str) -> ControlStore:
        """Connect to a store. A client that waits blocks its other callers, so use one per thread."""
        host, _, port = address.rpartition(":")
        return cls(TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=_CONNECT))

    @property
    def address(self) -> str:
        """Return what `join` takes: "host:port"."""
        return f"{self._store.host}:{self._store.port}"

    def put(self, key: str, data: bytes) -> None:
        """Set a key, of any size."""
        if len(data) < _STORE_VALUE_BYTES:
            self._set(key, _INLINE + data)
            return
        chunks = math.ceil(len(data) / _STORE_VALUE_BYTES)
        for k in range(chunks):
            self._set(f"{key}#{k}", data[k * _STORE_VALUE_BYTES : (k + 1) * _STORE_VALUE_BYTES])
        self._set(key, _CHUNKED + str(chunks).encode())

    def _set(self, key: str, value: bytes) -> None:
        self._store.set(key, value)  # type: ignore[arg-type]  # the stub says str; bytes go through as they are

    def get(self, key: str) -> bytes:
        """Return the bytes of a key; wait until it is set."""
        value: bytes = self._store.get(key)
        if value[:1] == _INLINE:
            return value[1:]
        return b"".join(self._store.get(f"{key}#{k}") for k in range(int(value[1:])))

    def has(self, key: str) -> bool:
        """Return whether a key is set."""
        return bool(self._store.check([key]))

    def remove(self, key: str) -> None:
        """Delete a key; one that is not set is ignored."""
        if not self.has(key):
            return
        value: bytes = self._store.get(key)
        self._store.delete_key(key)
        for k in range(int(value[1:]) if value[:1] == _CHUNKED else 0):
            self._store.delete_key(f"{key}#{k}")

    def rendezvous(self, session: str) -> PrefixStore:
        """Return the part of the store by which the processes of a session find each other to form a group."""
        return PrefixStore(f"gloo/{session}", self._store)
