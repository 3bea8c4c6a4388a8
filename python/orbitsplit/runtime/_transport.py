"""Messages between processes; the only module that calls torch.distributed.

Two things another engine would have to offer as well:

    ControlStore   a key-value store held by the parent: work, results, errors, signs of life
    Transport      ordered channels between stages; one message is a 64-byte header and its payload

A message goes out as one Gloo message and is received into a buffer posted ahead, which may be larger than the
message but never smaller: Gloo aborts the receiving process then. So both ends of a channel derive its capacity
from the same job, and the sender refuses what exceeds it.
"""

from __future__ import annotations

import datetime
import math
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, not in its __all__

from orbitsplit._errors import TransportError

from ._emulation import LinkShaper, sleep_until

# A wait ends with a message or with the failure of the peer's connection. A peer that hangs is for the parent to find
# (heartbeats): no time limit here could tell it from a slow link.
_FOREVER = datetime.timedelta(days=30)

HEADER_BYTES = 64
_HEADER = struct.Struct("<4sHHQIIIIQd16x")
_MAGIC = b"OSPM"
_VERSION = 1
_END = 1

# The store's server drops a client that sends a value above 8 MiB.
_STORE_VALUE_BYTES = 4 << 20
_INLINE, _CHUNKED = b"=", b"#"


class PeerLostError(TransportError):
    """The connection to another stage broke: the consequence of a failure elsewhere, rarely the cause."""


class ControlStore:
    """Keys and bytes shared by the parent and its workers; a key is there once `put` has returned."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    @classmethod
    def host(cls) -> ControlStore:
        """Serve a new store on the loopback interface, at a port the system chooses."""
        # An own listener, since the store's would accept connections on all interfaces.
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        descriptor = listener.detach()
        return cls(
            TCPStore(
                "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor, timeout=_FOREVER
            )
        )

    @classmethod
    def join(cls, port: int) -> ControlStore:
        """Connect to a store on this host. A client that waits blocks its other callers: one client per thread."""
        return cls(TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=_FOREVER))

    @property
    def port(self) -> int:
        """Return the port that `join` takes."""
        return int(self._store.port)

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
        """Return the bytes of a key, waiting until somebody puts them."""
        value: bytes = self._store.get(key)
        if value[:1] == _INLINE:
            return value[1:]
        return b"".join(self._store.get(f"{key}#{k}") for k in range(int(value[1:])))

    def has(self, key: str) -> bool:
        """Return whether the key is there."""
        return bool(self._store.check([key]))

    def remove(self, key: str) -> None:
        """Forget a key, if it is there."""
        if not self.has(key):
            return
        value: bytes = self._store.get(key)
        self._store.delete_key(key)
        for k in range(int(value[1:]) if value[:1] == _CHUNKED else 0):
            self._store.delete_key(f"{key}#{k}")


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes every payload: where it belongs, its size and when the emulated link delivers it.

    `rows` and `tokens` are the b and S of an activation [b, S, H]. `is_end` says that the group has ended.
    """

    job: int
    group: int
    step: int
    rows: int = 0
    tokens: int = 0
    is_end: bool = False
    payload_bytes: int = 0
    deliver_s: float = 0.0

    def pack_into(self, buffer: memoryview) -> None:
        """Write the header to the first 64 bytes."""
        flags = _END if self.is_end else 0
        fields = (self.job, self.group, self.step, self.rows, self.tokens, self.payload_bytes, self.deliver_s)
        _HEADER.pack_into(buffer, 0, _MAGIC, _VERSION, flags, *fields)

    @classmethod
    def unpack_from(cls, buffer: memoryview) -> Header:
        """Read a header.

        Raises:
            TransportError: The bytes are not a header of this version, or its payload exceeds the buffer.
        """
        magic, version, flags, job, group, step, rows, tokens, payload_bytes, deliver_s = _HEADER.unpack_from(buffer)
        if magic != _MAGIC or version != _VERSION:
            raise TransportError(f"message starts with {magic!r} version {version}, expected {_MAGIC!r} {_VERSION}")
        if payload_bytes > len(buffer) - HEADER_BYTES:
            raise TransportError(
                f"message announces {payload_bytes} bytes, its buffer holds {len(buffer) - HEADER_BYTES}"
            )
        return cls(job, group, step, rows, tokens, bool(flags & _END), payload_bytes, deliver_s)


class Sender:
    """The sending end of a channel; `capacity` is the largest payload in bytes."""

    def __init__(self, name: str, rank: int, *, tag: int, capacity: int, shaper: LinkShaper) -> None:
        self._name = name
        self._rank = rank
        self._tag = tag
        self._capacity = capacity
        self.shaper = shaper
        self._sent: dict[int, tuple[dist.Work, Tensor]] = {}

    def send(
        self, payload: bytes | memoryview, *, job: int, group: int, step: int, rows: int = 0, tokens: int = 0
    ) -> tuple[float, float]:
        """Send a payload; return from when to when it occupies the link, on the monotonic clock.

        Raises:
            TransportError: The payload exceeds the channel's capacity, or the connection broke.
        """
        size = len(payload)
        if size > self._capacity:
            raise TransportError(f"{self._name}: a frame of {size} bytes exceeds the receiver's {self._capacity}")
        start_s, stop_s, deliver_s = self.shaper.stamp(size, time.monotonic())
        header = Header(job, group, step, rows, tokens, payload_bytes=size, deliver_s=deliver_s)
        self._post(header, payload)
        return start_s, stop_s

    def end(self, *, job: int, group: int) -> None:
        """Send the end of a group: no payload, so no time on the link."""
        self._post(Header(job, group, step=0, is_end=True), b"")

    def drain(self) -> None:
        """Wait until every message has left.

        Raises:
            PeerLostError: The connection broke.
        """
        for group in list(self._sent):
            self._finish(group)

    def _post(self, header: Header, payload: bytes | memoryview) -> None:
        message = torch.empty(HEADER_BYTES + header.payload_bytes, dtype=torch.uint8)
        buffer = message.numpy().data
        header.pack_into(buffer)
        buffer[HEADER_BYTES:] = payload
        # A group sends again only after its last message was answered, so this waits for nothing; it keeps the
        # message alive for as long as Gloo reads it.
        self._finish(header.group)
        try:
            work = dist.isend(message, self._rank, tag=self._tag)
        except RuntimeError as error:
            raise PeerLostError(f"{self._name} broke while sending: {error}") from error
        assert work is not None, "None is for ranks outside the group"
        self._sent[header.group] = (work, message)

    def _finish(self, group: int) -> None:
        if group not in self._sent:
            return
        work, _message = self._sent[group]
        try:
            work.wait(_FOREVER)
        except RuntimeError as error:
            raise PeerLostError(f"{self._name} broke while sending: {error}") from error
        del self._sent[group]


class Receiver:
    """The receiving end of a channel: up to `depth` receives are posted before their messages are sent.

    A posted receive cannot be withdrawn and would swallow a message of the next job, so no more are posted than
    messages were announced by `expect`.
    """

    def __init__(self, name: str, rank: int, *, tag: int, capacity: int, depth: int = 2) -> None:
        self._name = name
        self._rank = rank
        self._tag = tag
        self._size = HEADER_BYTES + capacity
        self._depth = depth
        self._expected = 0
        self._posted: deque[tuple[dist.Work, Tensor]] = deque()
        self._free: list[Tensor] = []
        self._in_use: Tensor | None = None

    def expect(self, messages: int) -> None:
        """Announce that at least so many more messages will come."""
        self._expected += messages
        self._post()

    def receive(self) -> tuple[Header, memoryview]:
        """Wait until the next message is delivered; its payload is valid until the next call.

        Raises:
            TransportError: The message is damaged, or the connection broke.
        """
        if self._in_use is not None:
            self._free.append(self._in_use)
            self._in_use = None
            self._post()
        work, message = self._posted.popleft()
        try:
            work.wait(_FOREVER)
        except RuntimeError as error:
            raise PeerLostError(f"{self._name} broke while receiving: {error}") from error
        self._in_use = message
        buffer = message.numpy().data
        header = Header.unpack_from(buffer)
        sleep_until(header.deliver_s)
        return header, buffer[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]

    def _post(self) -> None:
        while self._expected and len(self._posted) < self._depth:
            # Pages of a buffer become resident only as far as messages reach.
            buffer = self._free.pop() if self._free else torch.empty(self._size, dtype=torch.uint8)
            try:
                work = dist.irecv(buffer, self._rank, tag=self._tag)
            except RuntimeError as error:
                raise PeerLostError(f"{self._name} broke while receiving: {error}") from error
            assert work is not None, "None is for ranks outside the group"
            self._posted.append((work, buffer))
            self._expected -= 1


class Transport:
    """This process's membership in the group of all stages; stage k has rank k."""

    def __init__(self, port: int, *, rank: int, stages: int, timeout_s: float) -> None:
        """Join the group, waiting up to `timeout_s` for the other stages.

        Raises:
            TransportError: They did not join in time.
        """
        store = PrefixStore("gloo", ControlStore.join(port)._store)
        timeout = datetime.timedelta(seconds=timeout_s)
        try:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=stages, timeout=timeout)
        except RuntimeError as error:
            raise PeerLostError(f"the {stages} stages did not connect within {timeout_s:g} s: {error}") from error

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def channel_tags(job: int) -> tuple[int, int]:
    """Return the tags of a job's activations and of its tokens: no job can meet another's messages."""
    # Gloo's tags are 31-bit; a tag may come round again after 2^29 jobs, long after its messages are gone.
    base = 2 * (job % (1 << 29))
    return base, base + 1
