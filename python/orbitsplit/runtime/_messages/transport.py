"""Transport of messages between stages: membership in the group of all of them, with ordered channels.

Only this module and control_store use torch.distributed for messages. Another engine would have to offer both:

    ControlStore   a key-value store served by the parent: work, results, errors, heartbeats
    Transport      membership of this process in the group of all stages, with ordered channels: Sender, Receiver

A part of a message (see framing) is one Gloo message, received into a buffer that was posted ahead. The buffer may be
longer than the part but never shorter, or Gloo aborts the receiving process. So no part is longer than `PART_BYTES`,
and every buffer has that length; its pages become resident only as far as parts reach.
"""

from __future__ import annotations

import datetime
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orbitsplit._errors import TransportError
from orbitsplit.runtime._emulation.link_shaper import LinkShaper, PathShaper

from .control_store import FOREVER, ControlStore
from .framing import HEADER_BYTES, Header, MessageAuthenticator

PART_BYTES = 4 << 20
# The largest message that a header may announce: a forged header must not allocate all memory.
MESSAGE_BYTES = 1 << 30

# Receives posted ahead, so that messages leave the link while the stage computes.
_DEPTH = 4
# The number of messages whose expected arrival a sender remembers.
ARRIVALS_KEPT = 64
# The number of messages without an answer (ends of groups) whose buffers are kept before the sender waits.
_MOST_UNANSWERED = 16
_TAG = 1
CACHE_TAG = 2


class PeerLostError(TransportError):
    """The connection to another stage broke: mostly the consequence of a failure elsewhere."""


class Sender:
    """The sending end of a channel."""

    def __init__(
        self,
        transport: Transport,
        link: str,
        rank: int,
        *,
        shaper: LinkShaper | PathShaper | None,
        planned: LinkShaper | None = None,
        key: bytes | None = None,
        tag: int = _TAG,
    ) -> None:
        """Open the channel to a rank; another `tag` is a channel of its own.

        `shaper` emulates the link (None: it is real), `planned` is that of the plan.
        """
        self._transport = transport
        self._link = link
        self._rank = rank
        self._tag = tag
        self._authenticator = MessageAuthenticator(link, key)
        self.shaper = shaper
        self._planned = planned
        self.sent = self.sent_bytes = 0
        self.busy_s = 0.0
        self.expected_arrivals_s: deque[float] = deque(maxlen=ARRIVALS_KEPT)
        # Of each group the parts of each message that may have to be sent again, by step.
        self._under_way: dict[int, dict[int, list[_Sent]]] = {}
        self._unanswered: deque[_Sent] = deque()

    def send(
        self, header: Header, payload: bytes | memoryview = b"", *, description: bytes = b"", is_answered: bool = True
    ) -> tuple[float, float]:
        """Send a message; return when it starts and stops to occupy the link, on the monotonic clock.

        The header must have the sizes of description and payload; its time of delivery is filled in. The buffers of a
        message that `is_answered` are kept until its group has a step above 0 after it, which is sent long after the
        arrival of this one. On an emulated link only the payload takes time. Raises PeerLostError if the connection
        broke.
        """
        assert len(payload) == header.payload_bytes, "a header has the size of its payload"
        assert len(description) == header.description_bytes, "a header has the size of its description"
        start_s, stop_s, deliver_s = self._stamp(len(payload))
        if deliver_s == math.inf:  # the emulated link is down for good: nothing arrives
            return start_s, start_s
        if deliver_s:
            header = header._replace(deliver_s=deliver_s)
        if not is_answered:
            self._keep_unanswered(self._post(header, description, payload, _NOTHING))
            return start_s, stop_s
        kept = self._under_way.get(header.group)
        if kept is None:
            kept = self._under_way[header.group] = {}
        before = _NOTHING
        if header.step > 0:
            for before in kept.values():
                self._finish(before)
            kept.clear()
        kept[header.step] = self._post(header, description, payload, before)
        return start_s, stop_s

    def repeat(self, group: int, step: int) -> tuple[Header, float, float] | None:
        """Send an answered message of a group once more; return its header, and what `send` does.

        Returns None for one that never left, since the emulated link is down for good. Raises PeerLostError if the
        connection broke.
        """
        kept = self._under_way.get(group, {})
        if step not in kept:
            return None
        before = kept[step]
        self._finish(before)
        header = before[0].header
        start_s, stop_s, deliver_s = self._stamp(header.payload_bytes)
        if deliver_s == math.inf:
            return header, start_s, start_s
        kept[step] = [
            self._close_and_post(sent.header._replace(deliver_s=deliver_s), sent.message, sent.buffer)
            for sent in before
        ]
        return header, start_s, stop_s

    def forget(self, group: int) -> None:
        """Keep the buffers of a group that has ended no longer than needed."""
        for sent in self._under_way.pop(group, {}).values():
            self._keep_unanswered(sent)

    def _stamp(self, payload_bytes: int) -> tuple[float, float, float]:
        """Count a message; return from when to when it occupies the link, and when it is delivered (0.0: at once)."""
        now_s = time.monotonic()
        stamp = (now_s, now_s, 0.0) if self.shaper is None else self.shaper.stamp(payload_bytes, now_s)
        self.expected_arrivals_s.append(
            stamp[2] if self._planned is None else self._planned.stamp(payload_bytes, now_s)[2]
        )
        self.sent += 1
        self.sent_bytes += payload_bytes
        if stamp[1] < math.inf:
            self.busy_s += stamp[1] - stamp[0]
        return stamp

    def _keep_unanswered(self, sent: Iterable[_Sent]) -> None:
        self._unanswered.extend(sent)
        while len(self._unanswered) > _MOST_UNANSWERED:
            self._finish([self._unanswered.popleft()])

    def drain(self) -> None:
        """Wait until every message has left. Raises PeerLostError if the connection broke."""
        for kept in self._under_way.values():
            for sent in kept.values():
                self._finish(sent)
        self._under_way.clear()
        self._finish(self._unanswered)
        self._unanswered.clear()

    def _post(
        self, header: Header, description: bytes, payload: bytes | memoryview, spare: Sequence[_Sent]
    ) -> list[_Sent]:
        """Pass a message to Gloo, part by part; a spare buffer of the right size is reused."""
        most = PART_BYTES - HEADER_BYTES
        if header.body_bytes <= most:
            return [self._post_part(header, description, payload, spare[0] if spare else None)]
        sent = []
        for offset in range(0, header.body_bytes, most):
            described = description[offset : offset + most]
            start = max(0, offset - len(description))
            part = payload[start : start + most - len(described)]
            sent.append(self._post_part(header._replace(offset=offset), described, part, None))
        return sent

    def _post_part(self, header: Header, described: bytes, part: bytes | memoryview, spare: _Sent | None) -> _Sent:
        size, start = HEADER_BYTES + len(described) + len(part), HEADER_BYTES + len(described)
        if spare is not None and len(spare.buffer) == size:
            message, buffer = spare.message, spare.buffer
        else:
            message, buffer = _buffer(size)
        if described:
            buffer[HEADER_BYTES:start] = described
        buffer[start:] = part
        return self._close_and_post(header, message, buffer)

    def _close_and_post(self, header: Header, message: Tensor, buffer: memoryview) -> _Sent:
        """Write the header of a part whose body is in its buffer, the memory of `message`, and hand it to Gloo."""
        size = len(buffer) - HEADER_BYTES
        self._authenticator.authenticate(header, buffer, size)
        sent = message
        described = max(0, min(header.description_bytes - header.offset, size))
        if self.shaper is not None and header.offset == 0 and described < size and self.shaper.corrupts():
            sent = message.clone()  # what may be sent again stays whole
            self.shaper.flip(sent.numpy().data[HEADER_BYTES + described :])
        try:
            work = self._transport.group.send([sent], self._rank, self._tag)
        except RuntimeError as error:
            raise self._transport.lost(self._link, error) from error
        return _Sent(work, sent, header, message, buffer)

    def _finish(self, sent: Iterable[_Sent]) -> None:
        for one in sent:
            try:
                one.work.wait(FOREVER)
            except RuntimeError as error:
                raise self._transport.lost(self._link, error) from error


class _Sent(NamedTuple):
    """A part that Gloo is sending: `sent`, whose memory must live until it has, and `message` as it should arrive.

    `buffer` is the memory of `message`.
    """

    work: dist.Work
    sent: Tensor
    header: Header
    message: Tensor
    buffer: memoryview


class _Posted(NamedTuple):
    """A part that Gloo is to receive, and the memory that it goes into."""

    work: dist.Work
    message: Tensor
    buffer: memoryview


_NOTHING: list[_Sent] = []


def bytes_of(header: Header) -> int:
    """Return the bytes of a message with the headers of its parts."""
    parts = max(1, math.ceil(header.body_bytes / (PART_BYTES - HEADER_BYTES)))
    return parts * HEADER_BYTES + header.body_bytes


def _buffer(size: int) -> tuple[Tensor, memoryview]:
    message = torch.empty(size, dtype=torch.uint8)
    return message, message.numpy().data


class Receiver:
    """The receiving end of a channel: receives are posted before their messages are sent."""

    def __init__(
        self, transport: Transport, link: str, rank: int, *, key: bytes | None = None, tag: int = _TAG
    ) -> None:
        self._transport = transport
        self._link = link
        self._rank = rank
        self._tag = tag
        self._authenticator = MessageAuthenticator(link, key)
        self.received = 0
        self.waiting_since_s: float | None = None
        self.part_awaited_since_s: float | None = None  # without the wait for the delivery of what has come
        self._posted: deque[_Posted] = deque()
        self._in_use: _Posted | None = None
        for _ in range(_DEPTH):
            self._post(*_buffer(PART_BYTES))

    def receive(self) -> tuple[Header, memoryview, memoryview | None]:
        """Wait until the next message is delivered; return its header, description and payload.

        The payload is None if it is corrupted, and valid until the next call. Raises TransportError if the header is
        corrupted, PeerLostError if the connection broke or was interrupted.
        """
        self.waiting_since_s = time.monotonic()
        header, body, is_intact = self._receive_part()
        described = header.description_bytes
        if described + header.payload_bytes > len(body):
            body, is_intact = self._rest(header, body, is_intact)
        if header.deliver_s:
            self._transport.wait_until(header.deliver_s, self._link)
        self.received += 1
        self.waiting_since_s = None
        return header, body[:described], (body[described:] if described else body) if is_intact else None

    def _rest(self, header: Header, body: memoryview, is_intact: bool) -> tuple[memoryview, bool]:
        """Receive the other parts of a message; return its whole body, and whether it is intact."""
        # Not zeroed: its pages become resident as parts arrive, not because a header announces them.
        whole = _buffer(header.body_bytes)[1]
        whole[: len(body)] = body
        reached = len(body)
        while reached < len(whole):
            part, body, is_part_intact = self._receive_part()
            if (part.offset, part.group, part.body_bytes) != (reached, header.group, len(whole)):
                raise TransportError(f"{self._link}: a part at byte {part.offset} arrived, expected {reached}")
            whole[reached : reached + len(body)] = body
            reached += len(body)
            is_intact = is_intact and is_part_intact
        return whole, is_intact

    def _receive_part(self) -> tuple[Header, memoryview, bool]:
        if self._in_use is not None:
            self._post(self._in_use.message, self._in_use.buffer)
            self._in_use = None
        arriving = self._posted.popleft()
        self.part_awaited_since_s = time.monotonic()
        try:
            arriving.work.wait(FOREVER)
        except RuntimeError as error:
            raise self._transport.lost(self._link, error) from error
        self.part_awaited_since_s = None
        self._in_use = arriving
        header, is_intact = self._authenticator.verify(arriving.buffer, MESSAGE_BYTES)
        stop = min(PART_BYTES, HEADER_BYTES + header.description_bytes + header.payload_bytes - header.offset)
        return header, arriving.buffer[HEADER_BYTES:stop], is_intact

    def _post(self, message: Tensor, buffer: memoryview) -> None:
        try:
            work = self._transport.group.recv([message], self._rank, self._tag)
        except RuntimeError as error:
            raise self._transport.lost(self._link, error) from error
        self._posted.append(_Posted(work, message, buffer))


class Transport:
    """The membership of this process in the group of all stages of one session; stage k has rank k."""

    def __init__(self, address: str, session: str, *, rank: int, stages: int, timeout_s: float) -> None:
        """Join the group, waiting up to `timeout_s` for the other stages.

        Raises PeerLostError if they did not join in time.
        """
        store = ControlStore.join(address).rendezvous(session)
        timeout = datetime.timedelta(seconds=timeout_s)
        started_s, before = time.monotonic(), set(_connections())
        self._interrupted = threading.Event()
        self._closing = threading.Lock()
        try:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=stages, timeout=timeout)
        except RuntimeError as error:
            took_s = time.monotonic() - started_s
            message = f"the {stages} stages did not connect in {took_s:.0f} s (the limit is {timeout_s:g} s): {error}"
            raise PeerLostError(message) from error
        # Not by dist.send and its like, whose checks take as long as the message of one token.
        world = dist.group.WORLD
        assert world is not None, "it is there once init_process_group has returned"
        self.group = world
        self._connections = set(_connections()) - before

    def interrupt(self) -> None:
        """Break all connections, from any thread: threads that send or wait get PeerLostError.

        Gloo cannot cancel a wait; it ends only with its connection.
        """
        self._interrupted.set()
        with self._closing:
            for descriptor in self._connections:
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.getpeername()  # fails for what only listens, which Gloo does not expect to end
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_until(self, moment_s: float, link: str) -> None:
        """Return at `moment_s` of the monotonic clock. Raises PeerLostError if interrupted."""
        remaining_s = moment_s - time.monotonic()
        if remaining_s > 0 and self._interrupted.wait(remaining_s):
            raise PeerLostError(f"{link}: interrupted")

    def lost(self, link: str, error: RuntimeError) -> PeerLostError:
        """Return the exception for an error of Gloo on a link."""
        return PeerLostError(f"{link} broke: {error}")

    def close(self) -> None:
        """Leave the group."""
        with self._closing:
            self._connections.clear()  # from now on other connections may have these descriptors
        dist.destroy_process_group()


def _connections() -> Iterator[int]:
    """Yield the descriptors of this process's sockets, where the system lists them."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return
    for name in os.listdir(folder):
        with suppress(OSError):
            if os.readlink(folder / name).startswith("socket:"):
                yield int(name)
