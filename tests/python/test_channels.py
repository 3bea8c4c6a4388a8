"""Activations and tokens as messages: what is sent is received, and what is damaged is refused by name."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
import torch

import orbitsplit as osp
from orbitsplit._trace import Recorder
from orbitsplit.runtime._channels import (
    ActivationInlet,
    ActivationOutlet,
    TokenInlet,
    TokenOutlet,
    activation_capacity,
    token_capacity,
)
from orbitsplit.runtime._emulation import Pace
from orbitsplit.runtime._schedule import Job
from orbitsplit.runtime._transport import Header

HIDDEN = 64
LINK = 'link from node "a" to node "b"'
JOB = Job(id=3, rows=4, prompt_tokens=5, max_new_tokens=8, groups=2, eos_token_ids=(), pad_token_id=0)


@dataclass
class Memory:
    """Both ends of a channel, in memory."""

    messages: deque[tuple[Header, bytes]] = field(default_factory=deque)
    expected: int = 0

    def send(
        self, payload: bytes, *, job: int, group: int, step: int, rows: int = 0, tokens: int = 0
    ) -> tuple[float, float]:
        self.messages.append((Header(job, group, step, rows, tokens, payload_bytes=len(payload)), payload))
        return 10.0, 12.0

    def end(self, *, job: int, group: int) -> None:
        self.messages.append((Header(job, group, 0, is_end=True), b""))

    def expect(self, messages: int) -> None:
        self.expected += messages

    def receive(self) -> tuple[Header, memoryview]:
        header, payload = self.messages.popleft()
        return header, memoryview(payload)


def activation_ends(
    codec: str = "raw", *, half_duplex: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Memory, ActivationOutlet, ActivationInlet]:
    memory = Memory()
    outlet = ActivationOutlet(memory, Pace(Recorder()), job=JOB, codec=codec, half_duplex=half_duplex)  # type: ignore[arg-type]
    inlet = ActivationInlet(memory, Pace(Recorder()), job=JOB, hidden_size=HIDDEN, dtype=dtype, link=LINK)  # type: ignore[arg-type]
    return memory, outlet, inlet


def activation(tokens: int = 5) -> torch.Tensor:
    return torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_uncompressed_activation_arrives_as_it_was(dtype: torch.dtype) -> None:
    _, outlet, inlet = activation_ends(dtype=dtype)
    x = activation().to(dtype)
    outlet.send(1, 0, x)
    group, step, received = inlet.receive()
    assert (group, step) == (1, 0)
    assert received is not None
    assert torch.equal(received, x)


def test_a_compressed_activation_is_what_the_codec_makes_of_it() -> None:
    _, outlet, inlet = activation_ends("int8")
    x = activation()
    outlet.send(0, 0, x)
    received = inlet.receive().x
    assert received is not None
    assert torch.equal(received, osp.decompress(osp.compress(x, codec="int8"), framework="torch"))


def test_an_activation_need_not_be_contiguous() -> None:
    _, outlet, inlet = activation_ends()
    x = torch.randn(5, 2, HIDDEN).transpose(0, 1)
    outlet.send(0, 0, x)
    received = inlet.receive().x
    assert received is not None
    assert torch.equal(received, x)


def test_frames_and_bytes_are_counted() -> None:
    _, outlet, _ = activation_ends("int8")
    outlet.send(0, 0, activation(5))
    outlet.send(0, 1, activation(1))
    outlet.send(0, 2, activation(1))
    assert outlet.traffic.frames == 3
    assert outlet.traffic.prefill_bytes == len(osp.compress(activation(5), codec="int8"))
    assert outlet.traffic.decode_bytes == 2 * len(osp.compress(activation(1), codec="int8"))
    assert outlet.traffic.original_bytes == 2 * 7 * HIDDEN * 4


@pytest.mark.parametrize("codec", ["raw", "bf16", "int8", "int4", "topk"])
def test_no_frame_of_a_job_exceeds_the_capacity(codec: str) -> None:
    capacity = activation_capacity(JOB, HIDDEN, "float32", codec)
    for tokens in (1, JOB.prompt_tokens):
        assert len(osp.compress(activation(tokens), codec=codec)) <= capacity


def test_the_end_of_a_group_is_passed_on() -> None:
    _, outlet, inlet = activation_ends()
    outlet.end(1)
    assert inlet.receive() == (1, 0, None)


def test_sending_and_working_are_recorded() -> None:
    memory = Memory()
    recorder = Recorder()
    ActivationOutlet(memory, Pace(recorder), job=JOB, codec="raw", half_duplex=False).send(0, 0, activation())  # type: ignore[arg-type]
    ActivationInlet(
        memory,  # type: ignore[arg-type]
        Pace(recorder),
        job=JOB,
        hidden_size=HIDDEN,
        dtype=torch.float32,
        link=LINK,
    ).receive()
    assert [event[0] for event in recorder.events] == ["encode", "send", "wait", "receive", "decode"]
    assert recorder.events[1][3:] == (10.0, 12.0)


@pytest.mark.parametrize("position", [0, 9, 30, -1])
def test_a_damaged_frame_names_link_group_and_step(position: int) -> None:
    memory, outlet, inlet = activation_ends("int8")
    outlet.send(1, 0, activation())
    header, frame = memory.messages.pop()
    damaged = bytearray(frame)
    damaged[position] ^= 0x40
    memory.messages.append((header, bytes(damaged)))
    with pytest.raises(osp.TransportError, match='from node "a" to node "b", group 1, step 0: corrupt frame'):
        inlet.receive()


def test_a_valid_frame_larger_than_the_job_allows_is_refused() -> None:
    memory, _, inlet = activation_ends()
    huge = osp.compress(torch.zeros(2, 500, HIDDEN), codec="int8")
    memory.send(huge, job=JOB.id, group=0, step=0, rows=2, tokens=500)
    with pytest.raises(osp.TransportError, match="corrupt frame"):
        inlet.receive()


def test_a_frame_of_another_shape_or_dtype_is_refused() -> None:
    for x in (activation()[:, :3], activation().half()):
        memory, _, inlet = activation_ends()
        memory.send(osp.compress(x.contiguous(), codec="raw"), job=JOB.id, group=0, step=0, rows=2, tokens=5)
        with pytest.raises(osp.TransportError, match=r"the frame holds torch.float.* not torch.float32 \(2, 5, 64\)"):
            inlet.receive()


def test_a_message_of_another_job_or_group_is_refused() -> None:
    for job, group in ((JOB.id + 1, 0), (JOB.id, 2)):
        memory, _, inlet = activation_ends()
        memory.send(b"", job=job, group=group, step=0)
        with pytest.raises(osp.TransportError, match=rf"job {job}, group {group} in job 3 of 2 groups"):
            inlet.receive()


def test_tokens_arrive_as_they_were() -> None:
    memory = Memory()
    outlet = TokenOutlet(memory, job=JOB)  # type: ignore[arg-type]
    inlet = TokenInlet(memory, Pace(Recorder()), job=JOB, link=LINK)  # type: ignore[arg-type]
    tokens = torch.tensor([1 << 40, 7])
    outlet.send(1, 4, tokens)
    group, step, received = inlet.receive()
    assert (group, step) == (1, 4)
    assert received is not None
    assert torch.equal(received, tokens)
    assert token_capacity(JOB) == 16


def test_tokens_of_the_wrong_size_are_refused() -> None:
    memory = Memory()
    memory.send(b"1234567", job=JOB.id, group=0, step=0, rows=1)
    inlet = TokenInlet(memory, Pace(Recorder()), job=JOB, link=LINK)  # type: ignore[arg-type]
    with pytest.raises(osp.TransportError, match="7 bytes are not 1 tokens"):
        inlet.receive()


def test_a_half_duplex_node_waits_for_its_own_transmission() -> None:
    recorder = Recorder()
    pace = Pace(recorder)
    outlet = ActivationOutlet(Memory(), pace, job=JOB, codec="raw", half_duplex=True)  # type: ignore[arg-type]
    outlet.send(0, 0, activation())
    assert pace.held_until_s == 12.0
