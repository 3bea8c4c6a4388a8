"""A stage's inlet and outlet: activations and tokens as messages of the transport.

activations   compressed frames, from each stage to the next, on a link of the plan
tokens        plain int64, from the last stage back to the first; only their latency is emulated
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import compress, decompress
from orbitsplit._codec.stateful import Decoder, Encoder
from orbitsplit._errors import CorruptFrameError, TransportError
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.framing import Header
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.packs import FIRST_PACK, Part, pack_parts
from orbitsplit.runtime._messages.record import Traffic
from orbitsplit.runtime._messages.transport import MESSAGE_BYTES, Receiver, Sender, bytes_of
from orbitsplit.runtime._schedule.protocol import Kind, Message

from .arrivals import kind_of, parts_of, record_arrival

_TOKEN_BYTES = 8
# The bytes of an activation for each byte of its frame that no frame of a codec in use exceeds; `decompress` allows as
# many by default.
_MOST_EXPANSION = 8192


def codebook_of(codec: CalibratedCodec | str) -> CalibratedCodec | None:
    """Return the codec that decodes the frames of a calibrated codec, None for another."""
    return codec if isinstance(codec, CalibratedCodec) else None


class ActivationOutlet:
    """Encodes activations and sends them."""

    def __init__(self, sender: Sender, pace: Pace, *, codec: CalibratedCodec | str, half_duplex: bool) -> None:
        self._sender = sender
        self._pace = pace
        self._codec = codec
        self._half_duplex = half_duplex
        # Of each recorded group what a Traffic says, in its order (the last but one: bytes of an activation per token).
        self._counts: dict[int, list[int]] = {}
        # Steps have few shapes: [rows of a group, 1, H]. Those with guesses are encoded as prompts are.
        self._encoders: dict[torch.Size, Encoder] = {}
        self._packs: dict[int, tuple[Part, ...]] = {}  # those that may be sent again

    def begin(self, group: Group, x: Tensor) -> None:
        """Encode the first activation [b, S, H] of a group and send it with the group's description."""
        if group.is_recorded:
            self._counts.setdefault(group.id, [0, 0, 0, 0, 0, 0])
        self._send(Kind.BEGIN, group.id, group.first_step, x, group.to_json())

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Encode a further activation [b, S, H] and send it; tokens [b, 1] are sent as they are."""
        if x.dtype is torch.int64:
            self._send_tokens(group, step, x)
            return
        self._send(Kind.STEP, group, step, x, b"")

    def _send_tokens(self, group: int, step: int, x: Tensor) -> None:
        """Send tokens [b, 1] on, which stages of an encoder pass to those of its decoder."""
        tokens = x.contiguous().numpy().tobytes()
        header = Header(Kind.STEP, group, step, len(x), x.shape[1], payload_bytes=len(tokens))
        start_s, stop_s = self._sender.send(header, tokens)
        self._record(header, start_s, stop_s, len(tokens))

    def send_pack(self, number: int, parts: Sequence[Part], x: Tensor) -> None:
        """Encode activations [1, S, H] of several groups as one frame and send it."""
        for part in parts:
            self._sender.forget(part.group)  # its earlier messages have been answered
        frame = self._pace.run_shared("encode", parts, lambda: self._compressed(x.contiguous()), is_brief=True)
        description = pack_parts(parts)
        header = Header(Kind.PACK, number, 0, 1, x.shape[1], len(description), len(frame), True)
        start_s, stop_s = self._sender.send(header, frame, description=description)
        self._packs[number] = tuple(parts)
        self._record_pack(header, start_s, stop_s, x.nbytes)

    def forget(self, number: int) -> None:
        """Keep a pack no longer."""
        if self._packs.pop(number, None) is not None:
            self._sender.forget(number)

    def repeat(self, group: int, step: int) -> None:
        """Send a frame once more."""
        sent = self._sender.repeat(group, step)
        if sent is None:
            return
        header, start_s, stop_s = sent
        if group >= FIRST_PACK:
            self._record_pack(header, start_s, stop_s, 0)
            return
        counts = self._counts.get(group)
        self._record(header, start_s, stop_s, 0 if counts is None else counts[4] * header.tokens)

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        """Send a message without an activation on."""
        if kind in (Kind.END, Kind.KEEP):
            self._sender.forget(group)
        _notify(self._sender, kind, group, reason, step)

    def take_traffic(self, group: int) -> Traffic:
        """Return what was sent of a group, and forget it."""
        counts = self._counts.pop(group, [])
        return Traffic(*counts[:4], *counts[5:])

    def _send(self, kind: Kind, group: int, step: int, x: Tensor, description: bytes) -> None:
        rows, tokens, _ = shape = x.shape
        is_brief = step > 0
        frame = self._pace.run(
            "encode", group, step, lambda: self._encode(x.contiguous(), shape, step), is_brief=is_brief
        )
        header = Header(kind, group, step, rows, tokens, len(description), len(frame), True)
        start_s, stop_s = self._sender.send(header, frame, description=description)
        self._record(header, start_s, stop_s, x.nbytes)

    def _record(self, header: Header, start_s: float, stop_s: float, activation_bytes: int) -> None:
        """Record that a frame occupied the link."""
        self._pace.recorder.add("send", header.group, header.step, start_s, stop_s)
        counts = self._counts.get(header.group)
        if counts is not None:
            counts[0] += 1
            counts[2 if header.step > 0 else 1] += header.payload_bytes
            counts[3] += activation_bytes
            counts[4] = activation_bytes // max(1, header.tokens)
            counts[5] += bytes_of(header)
        if self._half_duplex:
            self._pace.hold_until(stop_s)

    def _record_pack(self, header: Header, start_s: float, stop_s: float, activation_bytes: int) -> None:
        """Record that a frame of several groups occupied the link: each has its share of the bytes."""
        for part in self._packs[header.group]:
            self._pace.recorder.add("send", part.group, part.step, start_s, stop_s)
            counts = self._counts.get(part.group)
            if counts is not None:
                counts[0] += 1
                for place, size in ((2, header.payload_bytes), (3, activation_bytes), (5, bytes_of(header))):
                    counts[place] += size * part.tokens // header.tokens
        if self._half_duplex:
            self._pace.hold_until(stop_s)

    def _compressed(self, x: Tensor) -> bytes:
        _check_size(x.shape, x.dtype, MESSAGE_BYTES)
        frame: bytes = compress(x, codec=self._codec)
        return frame

    def _encode(self, x: Tensor, shape: torch.Size, step: int) -> bytes | memoryview:
        if step <= 0 or shape[1] > 1:
            return self._compressed(x)
        encoder = self._encoders.get(shape)
        if encoder is None:
            _check_size(shape, x.dtype, MESSAGE_BYTES)
            encoder = self._encoders[shape] = Encoder(self._codec, shape, x.dtype)
        return encoder.encode(x)


class ActivationInlet:
    """Receives activations and decodes them.

    A message cannot make it allocate more than the activation of `planned_tokens` tokens, with which the plan was made,
    or what the bytes of its frame can hold if that is more. If it `takes_tokens`, steps above 0 have tokens [b, 1] in
    the place of activations: those before are stages of an encoder.
    """

    def __init__(
        self,
        receiver: Receiver,
        pace: Pace,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        link: str,
        planned_tokens: int,
        codebook: CalibratedCodec | None = None,
        takes_tokens: bool = False,
    ) -> None:
        self._takes_tokens = takes_tokens
        self._codebook = codebook
        self._receiver = receiver
        self._pace = pace
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._link = link
        self._planned_bytes = planned_tokens * hidden_size * dtype.itemsize
        # The rows of each group that has begun and not ended.
        self._rows: dict[int, int] = {}
        # The array that a step is decoded into is read before the next step arrives.
        self._decoders: dict[int, Decoder] = {}

    def receive(self) -> Message:
        """Wait for the next message; one whose frame is corrupted has no activation.

        Raises TransportError if a message is invalid, or its frame holds another activation than announced.
        """
        asked_s = time.monotonic()
        header, description, payload = self._receiver.receive()
        kind, group, step = kind_of(header, self._link), header.group, header.step
        if kind is Kind.PACK:
            return self._pack(header, description, payload, asked_s)
        begun = None
        if kind is Kind.BEGIN:
            begun = self._begun(header, description)
            self._rows[group] = header.rows
            if begun.is_recorded:
                self._pace.recorder.begin(begun.id)
        elif kind is not Kind.STEP:
            if kind in (Kind.END, Kind.KEEP):
                self._rows.pop(group, None)
            return Message(kind, group, step, reason=_reason(description))
        record_arrival(self._pace, header, asked_s, time.monotonic(), (Part(group, step, header.tokens),))
        if payload is None:
            return Message(kind, group, step, None, begun)
        if step > 0 and self._takes_tokens:
            return Message(kind, group, step, self._tokens(header, payload))
        try:
            x = self._pace.run("decode", group, step, lambda: self._decode(payload, header), is_brief=step > 0)
        except CorruptFrameError:
            return Message(kind, group, step, None, begun)
        except ValueError as error:
            raise TransportError(f"{self._link}, group {group}, step {step}: {error}") from error
        return Message(kind, group, step, x, begun)

    def _tokens(self, header: Header, payload: memoryview) -> Tensor:
        """Return the tokens [b, 1] of a step. Raises TransportError for others."""
        rows = self._rows.get(header.group)
        if (header.rows, header.tokens, len(payload)) != (rows, 1, _TOKEN_BYTES * header.rows):
            raise TransportError(
                f"{self._link}, group {header.group}: {len(payload)} bytes of {header.rows} rows and {header.tokens} "
                f"tokens arrived, expected one token of each of {rows} rows"
            )
        return torch.frombuffer(bytearray(payload), dtype=torch.int64)[:, None]

    def _pack(self, header: Header, description: memoryview, payload: memoryview | None, asked_s: float) -> Message:
        """Return a message of several groups. Raises TransportError for one that is not as announced."""
        parts = parts_of(header, description, self._link)
        # In a pack that is repeated there may be groups that have ended.
        wrong = [part.group for part in parts if self._rows.get(part.group, 1) != 1]
        if wrong:
            raise TransportError(
                f"{self._link}, a pack: group {wrong[0]} has {self._rows[wrong[0]]} rows, must have one"
            )
        record_arrival(self._pace, header, asked_s, time.monotonic(), parts)
        message = Message(Kind.PACK, header.group, parts=parts)
        if payload is None:
            return message
        try:
            x = self._pace.run_shared("decode", parts, lambda: self._decode(payload, header), is_brief=True)
        except CorruptFrameError:
            return message
        except ValueError as error:
            raise TransportError(f"{self._link}, a pack of {len(parts)} groups: {error}") from error
        return message._replace(x=x)

    def _begun(self, header: Header, description: memoryview) -> Group:
        """Return the group that a message begins. Raises TransportError for one that its header does not announce."""
        try:
            group = Group.from_json(bytes(description))
            limit = self._limit(header.payload_bytes)
            for name, shape, dtype in (("attention_mask", (group.rows, group.tokens), "int64"), *group.inputs):
                _check_size(shape, getattr(torch, dtype), limit, name)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise TransportError(f"{self._link}, group {header.group}: its description is invalid: {error}") from error
        found = (group.id, group.rows, group.first_step, len(group.positions(group.first_step)))
        announced = (header.group, header.rows, header.step, header.tokens)
        # What a forward without a cache hands on need not have the shape of its inputs: an image is one token. What an
        # encoder makes is sent with the decoder's tokens, or before there are any.
        counts = group.generates and not group.has_encoder
        if found[:3] != announced[:3] or (counts and found != announced):
            raise TransportError(
                f"{self._link}: a header announces group, rows, step and tokens {announced}, its description says "
                f"{found}"
            )
        return group

    def _limit(self, frame_bytes: int) -> int:
        """Return the bytes that an array may take which a message with a frame of this size asks for."""
        return min(MESSAGE_BYTES, max(self._planned_bytes, _MOST_EXPANSION * frame_bytes))

    def _decode(self, payload: memoryview, header: Header) -> Tensor:
        """Decode a frame. Raises ValueError if it holds another activation than announced, or too large a one."""
        limit = self._limit(len(payload))
        # A decoder keeps its array: headers must not make more of them than there are sizes of groups.
        if header.step > 0 and header.tokens == 1 and header.rows in self._rows.values():
            decoder = self._decoders.get(header.rows)
            if decoder is None:
                shape = (header.rows, 1, self._hidden_size)
                _check_size(shape, self._dtype, limit)
                decoder = Decoder(shape, self._dtype, codebook=self._codebook, framework="torch")
                self._decoders[header.rows] = decoder
            arrived: Tensor = decoder.decode(payload)
            return arrived
        expected = (header.rows, header.tokens, self._hidden_size)
        size = _check_size(expected, self._dtype, limit)
        x: Tensor = decompress(payload, self._codebook, framework="torch", max_bytes=max(1, size))
        if x.shape != expected or x.dtype != self._dtype:
            raise ValueError(f"the frame holds {x.dtype} {tuple(x.shape)}, not {self._dtype} {expected}")
        # Where torch puts it, as a stage needs it: copied here, what was decoded is gone before the forward.
        return x.clone()


class TokenOutlet:
    """Sends new tokens back to the first stage: [n], or [n, 1 + w] with the words of their details."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def begin(self, group: Group, x: Tensor) -> None:
        """Send the first tokens [b] of a group."""
        self.send(group.id, 0, x)

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Send new tokens [b]."""
        tokens = x.contiguous().numpy().tobytes()
        self._sender.send(Header(Kind.STEP, group, step, rows=len(x), payload_bytes=len(tokens)), tokens)

    def send_pack(self, number: int, parts: Sequence[Part], x: Tensor) -> None:
        """Send new tokens of several groups."""
        for part in parts:
            self._sender.forget(part.group)
        tokens, description = x.contiguous().numpy().tobytes(), pack_parts(parts)
        header = Header(Kind.PACK, number, tokens=len(x), description_bytes=len(description), payload_bytes=len(tokens))
        self._sender.send(header, tokens, description=description)

    def forget(self, number: int) -> None:
        """Keep a pack no longer."""
        self._sender.forget(number)

    def repeat(self, group: int, step: int) -> None:
        """Send tokens once more; chunks before the last have none."""
        if step >= 0:
            self._sender.repeat(group, step)

    def notify(self, kind: Kind, group: int = 0, reason: str = "", step: int = 0) -> None:
        """Report corruption or an error; the first stage is the origin of END and needs no message."""
        if kind in (Kind.CORRUPTED, Kind.FAILED):
            _notify(self._sender, kind, group, reason)
        elif kind in (Kind.END, Kind.KEEP):
            self._sender.forget(group)


class TokenInlet:
    """Receives new tokens on the first stage."""

    def __init__(self, receiver: Receiver, link: str) -> None:
        self._receiver = receiver
        self._link = link

    def receive(self) -> tuple[Message, Header, float]:
        """Wait for new tokens [b] or [b, 1 + w], CORRUPTED or FAILED; return also the header and the time of arrival.

        Raises TransportError if the message is none of them.
        """
        header, description, payload = self._receiver.receive()
        kind = kind_of(header, self._link)
        if kind is Kind.FAILED:
            return Message(kind, header.group, reason=_reason(description)), header, time.monotonic()
        if kind is Kind.CORRUPTED or payload is None:
            return Message(Kind.CORRUPTED, header.group), header, time.monotonic()
        parts = parts_of(header, description, self._link) if kind is Kind.PACK else ()
        count = header.tokens if parts else header.rows
        row_bytes = _TOKEN_BYTES * count
        if kind not in (Kind.STEP, Kind.PACK) or (
            len(payload) != row_bytes and (not count or len(payload) % row_bytes)
        ):
            raise TransportError(f"{self._link}: {len(payload)} bytes of kind {kind.name} are not {count} tokens")
        tokens = (
            torch.frombuffer(bytearray(payload), dtype=torch.int64) if payload else torch.zeros(0, dtype=torch.int64)
        )
        if len(payload) > row_bytes:  # with details of each
            tokens = tokens.reshape(count, -1)
        return Message(kind, header.group, header.step, tokens, parts=parts), header, time.monotonic()


def _notify(sender: Sender, kind: Kind, group: int, reason: str, step: int = 0) -> None:
    description = reason.encode()
    header = Header(kind, group, step, description_bytes=len(description))
    sender.send(header, description=description, is_answered=False)


def _reason(description: memoryview) -> str:
    return bytes(description).decode(errors="replace")


def _check_size(shape: Sequence[int], dtype: torch.dtype, limit: int, name: str = "an activation") -> int:
    """Return the bytes of an array; a header may announce any shape, and a small frame may hold a large array."""
    size = math.prod(shape) * dtype.itemsize
    if size > limit:
        raise ValueError(f"{name} {tuple(shape)} in {dtype} takes {size} bytes, the limit is {limit}")
    return size
