"""Activations and tokens as messages: a stage's inlet and outlet, over the transport.

activations   compressed frames, from each stage to the next, on a link of the plan
tokens        plain int64, from the last stage back to the first; only their latency is emulated
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from orbitsplit._calibrated import CalibratedCodec
from orbitsplit._compress import compress, decompress, frame_bytes
from orbitsplit._errors import CorruptFrameError, TransportError

from ._emulation import Pace
from ._record import Traffic
from ._schedule import Job, Step
from ._transport import Header, Receiver, Sender

_TOKEN_BYTES = 8


def codebook_of(codec: CalibratedCodec | str) -> CalibratedCodec | None:
    """Return what decoding a codec's frames needs."""
    return codec if isinstance(codec, CalibratedCodec) else None


def activation_capacity(job: Job, hidden_size: int, dtype: str, codec: CalibratedCodec | str) -> int:
    """Return the bytes of the largest frame of a job, for either end of a link."""
    rows = job.largest_group
    return max(frame_bytes((rows, tokens, hidden_size), dtype, codec) for tokens in (job.prompt_tokens, 1))


def token_capacity(job: Job) -> int:
    """Return the bytes of the largest message of tokens."""
    return _TOKEN_BYTES * job.largest_group


class ActivationOutlet:
    """Encodes activations and sends them on."""

    def __init__(
        self, sender: Sender, pace: Pace, *, job: Job, codec: CalibratedCodec | str, half_duplex: bool
    ) -> None:
        self.traffic = Traffic()
        self._sender = sender
        self._pace = pace
        self._job = job
        self._codec = codec
        self._half_duplex = half_duplex

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Encode an activation [b, S, H] and send it."""
        frame = self._pace.run("encode", group, step, lambda: compress(x.contiguous(), codec=self._codec))
        rows, tokens = x.shape[:2]
        start_s, stop_s = self._sender.send(frame, job=self._job.id, group=group, step=step, rows=rows, tokens=tokens)
        self._pace.recorder.add("send", group, step, start_s, stop_s)
        self.traffic = self.traffic.plus(len(frame), x.nbytes, is_prefill=step == 0)
        if self._half_duplex:
            self._pace.hold_until(stop_s)

    def end(self, group: int) -> None:
        """Pass the end of the group on."""
        self._sender.end(job=self._job.id, group=group)


class ActivationInlet:
    """Receives activations and decodes them."""

    def __init__(
        self,
        receiver: Receiver,
        pace: Pace,
        *,
        job: Job,
        hidden_size: int,
        dtype: torch.dtype,
        link: str,
        codebook: CalibratedCodec | None = None,
    ) -> None:
        self._codebook = codebook
        self._receiver = receiver
        self._pace = pace
        self._job = job
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._link = link

    def expect(self, messages: int) -> None:
        """Post receives ahead."""
        self._receiver.expect(messages)

    def receive(self) -> Step:
        """Wait for an activation [b, S, H] or the end of a group.

        Raises:
            TransportError: The message is not of this job, or its frame is damaged; the message names the link.
        """
        header, payload = _receive(self._receiver, self._pace, self._job, self._link)
        if header.is_end:
            return Step(header.group, header.step, None)
        where = f"{self._link}, group {header.group}, step {header.step}"
        try:
            x = self._pace.run("decode", header.group, header.step, lambda: self._decode(payload))
        except CorruptFrameError as error:
            raise TransportError(f"{where}: corrupt frame of {len(payload)} bytes: {error}") from error
        expected = (header.rows, header.tokens, self._hidden_size)
        if x.shape != expected or x.dtype != self._dtype:
            raise TransportError(f"{where}: the frame holds {x.dtype} {tuple(x.shape)}, not {self._dtype} {expected}")
        return Step(header.group, header.step, x)

    def _decode(self, payload: memoryview) -> Tensor:
        elements = self._job.largest_group * self._job.prompt_tokens * self._hidden_size
        limit = elements * self._dtype.itemsize
        x: Tensor = decompress(payload, self._codebook, framework="torch", max_bytes=limit)
        return x


class TokenOutlet:
    """Sends new tokens back to the first stage."""

    def __init__(self, sender: Sender, *, job: Job) -> None:
        self._sender = sender
        self._job = job

    def send(self, group: int, step: int, x: Tensor) -> None:
        """Send the new tokens [b]."""
        self._sender.send(x.contiguous().numpy().tobytes(), job=self._job.id, group=group, step=step, rows=len(x))

    def end(self, group: int) -> None:
        """Tell nobody: the first stage ends groups."""


class TokenInlet:
    """Receives new tokens on the first stage."""

    def __init__(self, receiver: Receiver, pace: Pace, *, job: Job, link: str) -> None:
        self._receiver = receiver
        self._pace = pace
        self._job = job
        self._link = link

    def expect(self, messages: int) -> None:
        """Post receives ahead."""
        self._receiver.expect(messages)

    def receive(self) -> Step:
        """Wait for new tokens [b].

        Raises:
            TransportError: The message is not of this job, or is not one token per row.
        """
        header, payload = _receive(self._receiver, self._pace, self._job, self._link)
        if header.is_end or len(payload) != _TOKEN_BYTES * header.rows:
            raise TransportError(f"{self._link}: {len(payload)} bytes are not {header.rows} tokens")
        return Step(header.group, header.step, torch.frombuffer(bytearray(payload), dtype=torch.int64))


def _receive(receiver: Receiver, pace: Pace, job: Job, link: str) -> tuple[Header, memoryview]:
    asked_s = time.monotonic()
    header, payload = receiver.receive()
    got_s = time.monotonic()
    if header.job != job.id or header.group >= job.groups:
        raise TransportError(
            f"{link}: a message of job {header.job}, group {header.group} in job {job.id} of {job.groups} groups"
        )
    if not header.is_end:
        due_s = min(max(asked_s, header.deliver_s), got_s)
        pace.recorder.add("wait", header.group, header.step, asked_s, due_s)
        pace.recorder.add("receive", header.group, header.step, due_s, got_s)
    return header, payload
