"""Caches of groups in flight go from the processes of one session to those of the next, layer by layer."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from orbitsplit._codec.codecs import compress, decompress
from orbitsplit._errors import CorruptFrameError, TransportError
from orbitsplit._models.cache_state import LayerState, cache_of, checked_state, layer_state
from orbitsplit._models.kv_cache import rewind, takes_chunks
from orbitsplit._models.stage import StageModel
from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit.runtime._emulation.link_shaper import LinkShaper, PathShaper
from orbitsplit.runtime._messages import control
from orbitsplit.runtime._messages.control import MovedGroup, Setup, WorkerMove
from orbitsplit.runtime._messages.control_store import ControlStore
from orbitsplit.runtime._messages.environment import SECRET_VARIABLE
from orbitsplit.runtime._messages.framing import Header, channel_key
from orbitsplit.runtime._messages.transport import CACHE_TAG, PeerLostError, Receiver, Sender, Transport
from orbitsplit.runtime._schedule.protocol import Kind

# Start and stop on the sender's monotonic clock, and bytes; and those with the ends of their link.
Span = tuple[float, float, int]
Transfer = tuple[str, str, float, float, int]

_BFLOAT16 = "torch.bfloat16"
_POLL_S = 0.01
_WATCH_S = 0.05


def transport_of(address: str, setup: Setup, session: int, number: int) -> Transport:
    """Join the group of all workers of a session: those of its stages in order, then those that leave."""
    members = (*setup.workers, *setup.leaving)
    name = f"{session} {setup.nonce}"
    return Transport(address, name, rank=members.index(number), stages=len(members), timeout_s=setup.start_timeout_s)


def leave(
    address: str, setup: Setup, session: int, number: int, caches: dict[int, Cache], layers: tuple[int, int]
) -> None:
    """Hand over the caches of a worker that has no stage in a session; it ran the transformer layers [start, stop)."""
    transport = transport_of(address, setup, session, number)
    try:
        CacheExchange(transport, setup, number, caches, layers).send()
        # What has left may not have arrived: with the process its connections end, and what they hold is lost.
        store = ControlStore.join(address)
        ready = [control.ready_key(session, worker) for worker in setup.workers]
        while not all(map(store.has, ready)) and not store.has(control.interrupt_key(session)):
            time.sleep(_POLL_S)
    finally:
        transport.close()


class CacheExchange:
    """What one worker does in the exchange: it sends what others need, and receives what its stage needs.

    `caches` are those by group of the stage that it ran before, which had the transformer layers [start, stop); `run`
    takes them out. `transfers` are what the first links of the moves to this worker carried, and when, after `run`.
    """

    def __init__(
        self,
        transport: Transport | None,
        setup: Setup,
        number: int,
        caches: dict[int, Cache],
        layers: tuple[int, int],
    ) -> None:
        self._transport = transport
        self._setup = setup
        self._number = number
        self._caches = caches
        self._layers = range(*layers) if caches else range(0)
        self._groups = [MovedGroup(*values) for values in setup.moved_groups]
        self._moves = [WorkerMove(*values) for values in setup.moves]
        self._members = (*setup.workers, *setup.leaving)
        self.transfers: list[Transfer] = []
        for group in self._groups:
            cache = caches.get(group.id)
            if group.spare_tokens and cache is not None and takes_chunks(cache):
                rewind(cache, group.tokens)  # behind them are wrong guesses

    def run(self, model: StageModel) -> tuple[dict[int, Cache], int, tuple[int, ...]]:
        """Send and receive; return the stage's caches by group, the bytes from other nodes, and the groups lost."""
        # Both ends of two moves may wait for each other to receive.
        sending = self._start_sending()
        received, moved_bytes = self._receive()
        for one in sending:
            one.finish()
        found: dict[int, Cache] = {}
        for group in self._groups:
            cache = self._filled(model, group, {**self._own(group), **received.pop(group.id, {})})
            self._caches.pop(group.id, None)  # of one group at a time there are two copies
            if cache is not None:
                found[group.id] = cache
        return found, moved_bytes, tuple(group.id for group in self._groups if group.id not in found)

    def send(self) -> None:
        """Send what others need; return when it has left."""
        for sending in self._start_sending():
            sending.finish()

    def send_move(self, move: WorkerMove) -> None:
        """Send what one move needs; return when it has left."""
        sender = self._sender(move)
        spans = []
        for group in self._groups:
            states = self._own(group)
            for layer in range(move.start, move.stop):
                if layer in states:
                    spans.append(_send_state(sender, group, layer, states[layer], move.codec))
                else:  # what is missing is told, as the other end waits for it
                    sender.send(Header(Kind.CACHE, group.id, layer), is_answered=False)
        _send_spans(sender, move, spans)
        sender.drain()

    def _start_sending(self) -> list[_Sending]:
        # A thread each: a link that takes nothing holds up no other, whose receiver would call it lost.
        sending = [_Sending(self, move) for move in self._moves if move.source == self._number]
        for one in sending:
            one.start()
        return sending

    def _own(self, group: MovedGroup) -> dict[int, LayerState]:
        """Return the states of a group that this process has, by layer."""
        cache = self._caches.get(group.id)
        if cache is None:
            return {}
        return {k: layer_state(cache.layers[k]) for k in self._layers}

    def _filled(self, model: StageModel, group: MovedGroup, states: Mapping[int, LayerState]) -> Cache | None:
        """Return the cache of a group on this stage with copies of its states, None if some have not come."""
        own = {k: states[k] for k in range(model.first_layer, model.last_layer) if k in states}
        if len(own) < model.last_layer - model.first_layer:
            return None
        cache = model.new_cache(group.most_tokens, spare_tokens=group.spare_tokens)
        return cache_of(cache, own, rows=group.rows, tokens=group.tokens)

    def _receive(self) -> tuple[dict[int, dict[int, LayerState]], int]:
        """Return the states that arrived whole, by group and layer, and the bytes that came from other nodes.

        Raises PeerLostError of kind "link", with the ends of the move, if nothing comes of one for too long.
        """
        moves = [move for move in self._moves if move.destination == self._number]
        receivers = [self._receiver(move) for move in moves]
        watch = _Watch(self._transport, receivers, self._setup.stall_s)
        watch.start()
        cause: PeerLostError | None = None
        try:
            found = self._received(moves, receivers)
        except PeerLostError as error:
            cause = error
        finally:
            stalled = watch.end()
        if stalled is not None:
            move = moves[stalled]
            raise PeerLostError(
                f"{_link_name(move)} do not arrive: nothing has come for {self._setup.stall_s:g} s",
                kind="link",
                link=(move.nodes[0], move.nodes[-1]),
            ) from cause
        if cause is not None:
            raise cause
        return found

    def _received(
        self, moves: Sequence[WorkerMove], receivers: Sequence[Receiver]
    ) -> tuple[dict[int, dict[int, LayerState]], int]:
        found: dict[int, dict[int, LayerState]] = defaultdict(dict)
        moved_bytes = 0
        for move, receiver in zip(moves, receivers, strict=True):
            for _ in range(len(self._groups) * (move.stop - move.start)):
                header, description, payload = receiver.receive()
                if header.kind != Kind.CACHE or not move.start <= header.step < move.stop:
                    raise TransportError(
                        f"{_link_name(move)}: layer {header.step} arrived as kind {header.kind}, expected layers "
                        f"{move.start} to {move.stop - 1} as kind {int(Kind.CACHE)}"
                    )
                state = _read_state(description, payload)
                if state is not None:
                    found[header.group][header.step] = state
                moved_bytes += header.payload_bytes if len(move.nodes) > 1 else 0
            self.transfers += _read_spans(move, receiver)
        return found, moved_bytes

    def _sender(self, move: WorkerMove) -> Sender:
        assert self._transport is not None, "moves have two ends"
        rank = self._members.index(move.destination)
        shaper = self._shaper(move) if self._setup.emulates else None
        key = self._key(move)
        return Sender(self._transport, _link_name(move), rank, shaper=shaper, key=key, tag=CACHE_TAG)

    def _receiver(self, move: WorkerMove) -> Receiver:
        assert self._transport is not None, "moves have two ends"
        rank = self._members.index(move.source)
        return Receiver(self._transport, _link_name(move), rank, key=self._key(move), tag=CACHE_TAG)

    def _shaper(self, move: WorkerMove) -> PathShaper | None:
        """Return what emulates the links on the way."""
        known = None if self._setup.conditions is None else LinkConditions.from_dict(self._setup.conditions)
        links = [
            LinkShaper(rate, latency_s, None if known is None else known.of(*ends), self._setup.origin_s or 0.0)
            for ends, (rate, latency_s) in zip(pairwise(move.nodes), move.links, strict=True)
        ]
        return PathShaper(links) if links else None

    def _key(self, move: WorkerMove) -> bytes | None:
        secret = os.environ.get(SECRET_VARIABLE)
        if not secret:
            return None
        ends = self._members.index(move.source), self._members.index(move.destination)
        return channel_key(secret.encode(), f"{self._setup.nonce} caches", *ends)


def _send_spans(sender: Sender, move: WorkerMove, spans: list[Span]) -> None:
    """Tell the other end when the states of a move occupied the first link, which the sender alone knows."""
    description = json.dumps(_joined(spans)).encode()
    sender.send(
        Header(Kind.CACHE, 0, move.stop, description_bytes=len(description)), description=description, is_answered=False
    )


def _read_spans(move: WorkerMove, receiver: Receiver) -> list[Transfer]:
    """Return what the first link of a move carried, which its last message tells; nothing within one node."""
    header, description, _ = receiver.receive()
    if header.kind != Kind.CACHE or header.step != move.stop:
        raise TransportError(
            f"{_link_name(move)}: kind {header.kind} of step {header.step} arrived, expected the end of the caches"
        )
    spans: list[Span] = json.loads(bytes(description))
    return [(move.nodes[0], move.nodes[1], *span) for span in spans] if len(move.nodes) > 1 else []


def _joined(spans: list[Span]) -> list[Span]:
    """Return spans in order, those that follow each other without a pause as one."""
    found: list[Span] = []
    for start_s, stop_s, size in spans:
        if found and start_s <= found[-1][1]:
            found[-1] = found[-1][0], stop_s, found[-1][2] + size
        else:
            found.append((start_s, stop_s, size))
    return found


class _Sending(threading.Thread):
    """Sends what one move needs in the background; `finish` raises what went wrong."""

    def __init__(self, exchange: CacheExchange, move: WorkerMove) -> None:
        super().__init__(name="caches", daemon=True)
        self._exchange = exchange
        self._move = move
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._exchange.send_move(self._move)
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait until everything has left."""
        self.join()
        if self._error is not None:
            raise self._error


class _Watch(threading.Thread):
    """Interrupts the transport if a receiver waits too long for a part: Gloo's own wait has no end.

    What has come and is to be delivered later, on an emulated link, does not count. Waiting is counted in looks, not
    by the clock, so that a process that was suspended gets what has come meanwhile.
    """

    def __init__(self, transport: Transport | None, receivers: Sequence[Receiver], limit_s: float | None) -> None:
        super().__init__(name="stalls", daemon=True)
        self._transport = transport
        self._receivers = receivers
        self._limit_s = math.inf if limit_s is None else limit_s
        self._stalled: int | None = None
        self._over = threading.Event()

    def run(self) -> None:
        """Look until ended, or one stalls."""
        known: list[float | None] = []
        looks = 0
        while not self._over.wait(_WATCH_S):
            since_s = [receiver.part_awaited_since_s for receiver in self._receivers]
            waiting = [number for number, one_s in enumerate(since_s) if one_s is not None]
            looks, known = looks + 1 if waiting and since_s == known else 0, since_s
            if looks * _WATCH_S > self._limit_s and self._transport is not None:
                self._stalled = waiting[0]
                self._transport.interrupt()
                return

    def end(self) -> int | None:
        """End it; return the number of the receiver that stalled, None if none has."""
        self._over.set()
        self.join()
        return self._stalled


def _link_name(move: WorkerMove) -> str:
    return f'caches from node "{move.nodes[0]}" to node "{move.nodes[-1]}"'


def _send_state(sender: Sender, group: MovedGroup, layer: int, state: LayerState, codec: str) -> Span:
    """Send the state of a layer as one message: frames of its tensors, described as JSON; return its time and bytes."""
    frames = {
        name: compress(tensor.contiguous(), codec=codec if str(tensor.dtype) == _BFLOAT16 else "raw")
        for name, tensor in state.tensors.items()
    }
    sizes = {name: len(frame) for name, frame in frames.items()}
    description = json.dumps({"frames": sizes, "values": state.values}).encode()
    payload = b"".join(frames.values())
    header = Header(
        Kind.CACHE, group.id, layer, group.rows, group.tokens, len(description), len(payload), has_own_check=True
    )
    return (*sender.send(header, payload, description=description, is_answered=False), len(payload))


def _read_state(description: memoryview, payload: memoryview | None) -> LayerState | None:
    """Return the state of a message; None for one that is corrupted, or says that there is none."""
    if payload is None or not description:
        return None
    try:
        known: dict[str, Any] = json.loads(bytes(description))
        tensors: dict[str, Tensor] = {}
        start = 0
        for name, size in known["frames"].items():
            tensors[name] = decompress(payload[start : start + size], framework="torch", max_bytes=1 << 30)
            start += size
        return checked_state(tensors, known["values"])
    except (CorruptFrameError, ValueError, LookupError, TypeError, AttributeError):
        return None
