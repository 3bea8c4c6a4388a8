"""Activations and tokens as messages: what is sent is received, and corruption is reported or refused by name."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import orbitsplit as osp
from orbitsplit._plans.trace import Recorder
from orbitsplit.runtime._emulation.pace import Pace
from orbitsplit.runtime._messages.framing import Header
from orbitsplit.runtime._messages.groups import Group
from orbitsplit.runtime._messages.packs import FIRST_PACK, Part, pack_parts
from orbitsplit.runtime._messages.record import Traffic
from orbitsplit.runtime._messages.transport import Sender
from orbitsplit.runtime._schedule.protocol import Kind, Message
from orbitsplit.runtime._worker import channels
from orbitsplit.runtime._worker.channels import ActivationInlet, ActivationOutlet, TokenInlet, TokenOutlet

HIDDEN = 64
LINK = 'link from node "a" to node "b"'
GROUP = Group(id=3, rows=2, tokens=5, mask=None, max_new_tokens=8, is_recorded=True)


@dataclass
class Memory:
    """Both ends of a channel, in memory; corrupted payloads arrive as the transport returns them."""

    messages: deque[tuple[Header, bytes, bytes | None]] = field(default_factory=deque)
    last: dict[tuple[int, int], tuple[Header, bytes, bytes | None]] = field(default_factory=dict)

    def send(
        self, header: Header, payload: bytes = b"", *, description: bytes = b"", is_answered: bool = True
    ) -> tuple[float, float]:
        header = header._replace(payload_bytes=len(payload), description_bytes=len(description))
        self.messages.append((header, description, bytes(payload)))
        if is_answered:
            self.last[header.group, header.step] = self.messages[-1]
        return 10.0, 12.0

    def repeat(self, group: int, step: int) -> tuple[Header, float, float] | None:
        if (group, step) not in self.last:
            return None
        self.messages.append(self.last[group, step])
        return self.last[group, step][0], 12.0, 14.0

    def forget(self, group: int) -> None:
        self.last = {key: message for key, message in self.last.items() if key[0] != group}

    def receive(self) -> tuple[Header, memoryview, memoryview | None]:
        header, description, payload = self.messages.popleft()
        return header, memoryview(description), None if payload is None else memoryview(payload)


@dataclass
class Ends:
    """Both ends of a link."""

    memory: Memory
    recorder: Recorder
    pace: Pace
    outlet: ActivationOutlet
    inlet: ActivationInlet


def activation_ends(
    codec: str = "raw", *, half_duplex: bool = False, dtype: torch.dtype = torch.float32, planned_tokens: int = 10
) -> Ends:
    memory, recorder = Memory(), Recorder()
    recorder.begin(GROUP.id)
    pace = Pace(recorder)
    outlet = ActivationOutlet(memory, pace, codec=codec, half_duplex=half_duplex)  # type: ignore[arg-type]
    shape: dict[str, Any] = {"hidden_size": HIDDEN, "dtype": dtype, "planned_tokens": planned_tokens}
    inlet = ActivationInlet(memory, pace, link=LINK, **shape)  # type: ignore[arg-type]
    return Ends(memory, recorder, pace, outlet, inlet)


def activation(tokens: int = 5) -> Tensor:
    return torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))


def arrived(message: Message) -> Tensor:
    assert message.x is not None
    return message.x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uncompressed_activations_arrive_as_they_were(dtype: torch.dtype) -> None:
    ends = activation_ends(dtype=dtype)
    ends.outlet.begin(GROUP, activation().to(dtype))
    message = ends.inlet.receive()
    assert (message.kind, message.group, message.step, message.begun) == (Kind.BEGIN, 3, 0, GROUP)
    assert torch.equal(arrived(message), activation().to(dtype))
    for step in (1, 2):
        x = (activation(1) * step).to(dtype)
        ends.outlet.send(3, step, x)
        message = ends.inlet.receive()
        assert (message.kind, message.group, message.step, message.begun) == (Kind.STEP, 3, step, None)
        assert torch.equal(arrived(message), x)


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "topk"])
def test_a_compressed_activation_is_what_the_codec_makes_of_it(codec: str) -> None:
    ends = activation_ends(codec)
    for step, tokens in ((0, 5), (1, 1), (2, 1)):
        x = activation(tokens) + step
        if step == 0:
            ends.outlet.begin(GROUP, x)
        else:
            ends.outlet.send(3, step, x)
        expected = osp.decompress(osp.compress(x, codec=codec), framework="torch")
        assert torch.equal(arrived(ends.inlet.receive()), expected)


def test_an_activation_need_not_be_contiguous() -> None:
    ends = activation_ends()
    x = torch.randn(5, 2, HIDDEN).transpose(0, 1)
    ends.outlet.begin(GROUP, x)
    assert torch.equal(arrived(ends.inlet.receive()), x)


def test_frames_and_bytes_of_recorded_groups_are_counted() -> None:
    ends = activation_ends("int8")
    frames = [len(osp.compress(activation(tokens), codec="int8")) for tokens in (5, 1, 1)]
    ends.outlet.begin(GROUP, activation(5))
    ends.outlet.send(3, 1, activation(1))
    ends.outlet.send(3, 2, activation(1))
    ends.outlet.send(4, 1, activation(1))
    assert ends.outlet.take_traffic(3) == Traffic(
        frames=3,
        prefill_bytes=frames[0],
        decode_bytes=sum(frames[1:]),
        original_bytes=2 * 7 * HIDDEN * 4,
        message_bytes=3 * 96 + len(GROUP.to_json()) + sum(frames),
    )
    assert ends.outlet.take_traffic(3) == ends.outlet.take_traffic(4) == Traffic()


def test_what_is_sent_again_is_what_was_sent_and_counts_as_a_frame() -> None:
    ends = activation_ends("int8")
    ends.outlet.begin(GROUP, activation(5))
    first = ends.inlet.receive()
    ends.outlet.notify(Kind.CORRUPTED, 3)  # of a stage before: what was sent may yet be asked for
    assert ends.inlet.receive() == Message(Kind.CORRUPTED, 3)
    ends.outlet.repeat(3, -1)  # it never left
    ends.outlet.repeat(3, 0)
    again = ends.inlet.receive()
    assert again._replace(x=None) == first._replace(x=None)
    assert torch.equal(arrived(again), arrived(first))
    events, _ = ends.recorder.take(3)
    assert [event[3:] for event in events if event[0] == "send"] == [(10.0, 12.0), (12.0, 14.0)]
    frame_bytes = len(osp.compress(activation(5), codec="int8"))
    assert ends.outlet.take_traffic(3) == Traffic(
        2, 2 * frame_bytes, 0, 2 * 2 * 5 * HIDDEN * 4, 2 * (96 + len(GROUP.to_json()) + frame_bytes)
    )
    ends.outlet.notify(Kind.END, 3)
    assert ends.memory.last == {}


PARTS = (Part(4, 1, 1), Part(5, 7, 3), Part(3 + (1 << 40), 2, 1))


def packed_ends(codec: str = "int8") -> Ends:
    """Return ends that know the groups of `PARTS`, of which 5 is recorded."""
    ends = activation_ends(codec)
    for part in PARTS:
        ends.outlet.begin(replace(GROUP, id=part.group, rows=1, is_recorded=part.group == 5), activation()[:1])
        ends.inlet.receive()
    return ends


def test_steps_of_several_groups_arrive_as_each_alone() -> None:
    ends = packed_ends()
    ends.outlet.take_traffic(5)
    ends.outlet._counts[5] = [0] * 6
    x = activation(5)[:1]
    ends.outlet.send_pack(FIRST_PACK, PARTS, x)
    message = ends.inlet.receive()
    assert (message.kind, message.group, message.parts) == (Kind.PACK, FIRST_PACK, PARTS)
    alone = [
        osp.decompress(osp.compress(one.contiguous(), codec="int8"), framework="torch") for one in x.split(1, dim=1)
    ]
    assert torch.equal(arrived(message), torch.cat(alone, dim=1))
    frame_bytes = len(osp.compress(x, codec="int8"))
    assert ends.outlet.take_traffic(5) == Traffic(
        1, 0, 3 * frame_bytes // 5, 3 * x.nbytes // 5, 3 * (96 + 48 + frame_bytes) // 5
    )


def test_a_pack_is_sent_again_until_it_is_forgotten() -> None:
    ends = packed_ends()
    assert {group for group, _ in ends.memory.last} == {part.group for part in PARTS}
    ends.outlet.send_pack(FIRST_PACK + 1, PARTS, activation(5)[:1])
    assert {group for group, _ in ends.memory.last} == {FIRST_PACK + 1}  # what came before has been answered
    first = ends.inlet.receive()
    ends.outlet.repeat(FIRST_PACK + 1, 0)
    assert torch.equal(arrived(ends.inlet.receive()), arrived(first))
    ends.outlet.forget(FIRST_PACK + 1)
    assert not ends.memory.last
    ends.outlet.repeat(FIRST_PACK + 1, 0)
    assert not ends.memory.messages


def test_a_corrupted_pack_is_reported_with_its_groups() -> None:
    ends = packed_ends()
    ends.outlet.send_pack(FIRST_PACK, PARTS, activation(5)[:1])
    header, description, payload = ends.memory.messages.pop()
    assert payload is not None
    ends.memory.messages.append((header, description, payload[:-1] + bytes([payload[-1] ^ 1])))
    message = ends.inlet.receive()
    assert (message.x, message.group, message.parts) == (None, FIRST_PACK, PARTS)


@pytest.mark.parametrize(
    ("parts", "tokens", "number", "reason"),
    [
        (PARTS, 4, FIRST_PACK, "of 4 tokens has parts of 5"),
        ((), 0, FIRST_PACK, "0 bytes describe no pack"),
        ((PARTS[0], PARTS[0]), 2, FIRST_PACK, "of different groups"),
        ((Part(4, 0, 1),), 1, FIRST_PACK, "steps after the prompt"),
        ((Part(4, 1, 0),), 0, FIRST_PACK, "with tokens"),
        (PARTS, 5, 17, "pack 17 of 5 tokens"),
        ((Part(FIRST_PACK, 1, 1),), 1, FIRST_PACK, "has parts of 1"),
        ((Part(3, 1, 2),), 2, FIRST_PACK, "group 3 has 2 rows, must have one"),
    ],
)
def test_a_pack_that_is_not_as_announced_is_refused(
    parts: tuple[Part, ...], tokens: int, number: int, reason: str
) -> None:
    ends = packed_ends()
    ends.outlet.begin(GROUP, activation())
    ends.inlet.receive()
    frame = osp.compress(activation(max(1, tokens))[:1], codec="int8")
    ends.memory.send(Header(Kind.PACK, number, 0, 1, tokens), frame, description=pack_parts(parts))
    with pytest.raises(osp.TransportError, match=reason):
        ends.inlet.receive()


def test_tokens_of_several_groups_return_together() -> None:
    memory = Memory()
    outlet, inlet = TokenOutlet(memory), TokenInlet(memory, LINK)  # type: ignore[arg-type]
    outlet.send_pack(FIRST_PACK, PARTS, torch.arange(5))
    message, _, _ = inlet.receive()
    assert (message.kind, message.group, message.parts) == (Kind.PACK, FIRST_PACK, PARTS)
    assert arrived(message).tolist() == [0, 1, 2, 3, 4]
    outlet.repeat(FIRST_PACK, 0)
    assert inlet.receive()[0].parts == PARTS
    memory.send(Header(Kind.PACK, FIRST_PACK, tokens=5), bytes(32), description=pack_parts(PARTS))
    with pytest.raises(osp.TransportError, match="32 bytes of kind PACK are not 5 tokens"):
        inlet.receive()


@pytest.mark.parametrize("kind", [Kind.END, Kind.CORRUPTED, Kind.STOP, Kind.FORGET])
def test_what_needs_no_activation_is_passed_on(kind: Kind) -> None:
    ends = activation_ends()
    ends.outlet.notify(kind, 3)
    assert ends.inlet.receive() == Message(kind, 3)


def test_how_much_is_kept_is_passed_on() -> None:
    ends = activation_ends()
    ends.outlet.begin(GROUP, activation())
    ends.inlet.receive()
    ends.outlet.notify(Kind.KEEP, 3, step=417)
    assert ends.inlet.receive() == Message(Kind.KEEP, 3, 417)
    assert ends.memory.last == {}


def test_an_error_for_a_group_is_passed_on_with_its_text() -> None:
    ends = activation_ends()
    ends.outlet.notify(Kind.FAILED, 3, "ValueError: größer")
    assert ends.inlet.receive() == Message(Kind.FAILED, 3, reason="ValueError: größer")


def test_sending_and_working_are_recorded() -> None:
    ends = activation_ends()
    ends.outlet.begin(GROUP, activation())
    ends.inlet.receive()
    events, _ = ends.recorder.take(3)
    assert [event[0] for event in events] == ["encode", "send", "wait", "decode"]
    assert events[1][3:] == (10.0, 12.0)


def test_what_an_emulated_link_had_delivered_already_is_received_not_waited_for() -> None:
    ends = activation_ends()
    ends.memory.send(
        Header(Kind.STEP, 3, 1, rows=2, tokens=1, deliver_s=1e-9), osp.compress(activation(1), codec="raw")
    )
    ends.inlet.receive()
    (wait, receive, decode), _ = ends.recorder.take(3)
    assert (wait[0], receive[0], decode[0]) == ("wait", "receive", "decode")
    assert wait[4] - wait[3] == 0.0 < receive[4] - receive[3]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("position", [0, 9, 30, -1])
def test_a_corrupted_frame_is_reported(step: int, position: int) -> None:
    ends = activation_ends("int8")
    if step == 0:
        ends.outlet.begin(GROUP, activation())
    else:
        ends.outlet.send(3, step, activation(1))
    header, description, frame = ends.memory.messages.pop()
    assert frame is not None
    corrupted = bytearray(frame)
    corrupted[position] ^= 0x40
    ends.memory.messages.append((header, description, bytes(corrupted)))
    begun = GROUP if step == 0 else None
    assert ends.inlet.receive() == Message(Kind.BEGIN if begun else Kind.STEP, 3, step, None, begun)
    ends.memory.messages.append((header, description, None))  # as the transport returns it
    begun = GROUP if step == 0 else None
    assert ends.inlet.receive() == Message(Kind.BEGIN if begun else Kind.STEP, 3, step, None, begun)


def test_a_valid_frame_larger_than_announced_is_not_decoded() -> None:
    ends = activation_ends()
    ends.memory.send(Header(Kind.STEP, 3, 0, rows=2, tokens=5), osp.compress(torch.zeros(2, 500, HIDDEN), codec="int8"))
    assert ends.inlet.receive() == Message(Kind.STEP, 3, 0)


def test_a_header_cannot_make_the_receiver_allocate_more_than_a_message_may_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A sparse frame of few bytes decodes into any shape that a forged header announces.
    ends = activation_ends("topk:0.001")
    ends.outlet.begin(GROUP, torch.zeros(2, 5, HIDDEN))
    ends.memory.send(Header(Kind.STEP, 3, 1, rows=2**32 - 1, tokens=1), b"")
    monkeypatch.setattr(channels, "MESSAGE_BYTES", 2 * 5 * HIDDEN * 4 - 1)
    with pytest.raises(osp.TransportError, match=r"\(2, 5, 64\) in torch.float32 takes 2560 bytes, the limit is 2559"):
        ends.inlet.receive()
    with pytest.raises(osp.TransportError, match=r"\(4294967295, 1, 64\) in torch.float32 takes 1099511627520 bytes"):
        ends.inlet.receive()
    with pytest.raises(ValueError, match="takes 2560 bytes, the limit is 2559"):
        ends.outlet.send(3, 2, torch.zeros(2, 5, HIDDEN))


def forged(group: Group, frame: bytes, *, rows: int = 1, tokens: int = 1 << 18) -> Ends:
    """Return ends of a link on which a header of these rows and tokens begins a group."""
    ends = activation_ends()
    ends.memory.send(Header(Kind.BEGIN, 3, 0, rows=rows, tokens=tokens), frame, description=group.to_json())
    return ends


def test_a_small_frame_cannot_make_an_array_far_beyond_the_plan() -> None:
    """Regression: a header and a sparse frame of 67 bytes made an array of up to 1 GiB, whatever the plan was."""
    tokens = 1 << 18
    frame = osp.compress(torch.zeros(1, tokens * HIDDEN), codec="topk:1e-9")
    assert len(frame) < 100
    message = rf"\(1, {tokens}, 64\) in torch.float32 takes 67108864 bytes, the limit is {8192 * len(frame)}$"
    with pytest.raises(osp.TransportError, match=message):
        forged(replace(GROUP, rows=1, tokens=1, max_new_tokens=0), frame).inlet.receive()
    for rows, step_tokens in ((1, tokens), (tokens, 1)):
        ends = activation_ends()
        ends.memory.send(Header(Kind.STEP, 3, 1, rows=rows, tokens=step_tokens), frame)
        with pytest.raises(osp.TransportError, match=rf"takes 67108864 bytes, the limit is {8192 * len(frame)}$"):
            ends.inlet.receive()


@pytest.mark.parametrize("planned_tokens", [1, 1 << 14])
def test_what_the_plan_lets_cross_has_no_other_limit(planned_tokens: int) -> None:
    frame = osp.compress(torch.zeros(1, planned_tokens * HIDDEN), codec="topk:1e-9")
    limit = max(planned_tokens * HIDDEN * 4, 8192 * len(frame))
    for excess in (0, 1):
        ends = activation_ends(planned_tokens=planned_tokens)
        ends.memory.send(Header(Kind.STEP, 3, 1, rows=1, tokens=limit // (HIDDEN * 4) + excess), frame)
        # Within the limit the frame is decoded: it holds another shape, or less than was announced.
        message = rf"the limit is {limit}$" if excess else r"the frame holds torch.float32 \(1, \d+\), not"
        with pytest.raises(osp.TransportError, match=message):
            ends.inlet.receive()


def test_a_longer_prompt_than_the_plan_has_is_received() -> None:
    x = torch.randn(2, 5000, HIDDEN)
    for codec in ("int8", "topk:0.001"):
        ends = activation_ends(codec)
        ends.outlet.begin(replace(GROUP, tokens=5000), x)
        assert arrived(ends.inlet.receive()).shape == x.shape


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (replace(GROUP, rows=3), r"group, rows, step and tokens \(3, 2, 0, 5\), its description says \(3, 3, 0, 5\)"),
        (replace(GROUP, tokens=6), r"\(3, 2, 0, 5\), its description says \(3, 2, 0, 6\)"),
        (replace(GROUP, id=4), r"\(3, 2, 0, 5\), its description says \(4, 2, 0, 5\)"),
        (replace(GROUP, tokens=1 << 40, max_new_tokens=0), r"attention_mask \(2, 1099511627776\) in torch.int64 takes"),
        (
            replace(GROUP, max_new_tokens=0, inputs=(("pixel_values", (2, 1 << 30), "float32"),)),
            r"pixel_values \(2, 1073741824\) in torch.float32 takes 8589934592 bytes, the limit is ",
        ),
        (replace(GROUP, inputs=(("pixel_values", (2, 2), "load"),)), "its description is invalid"),
        (replace(GROUP, rows="2"), "its description is invalid"),
        (replace(GROUP, chunk_tokens=2), r"\(3, 2, 0, 5\), its description says \(3, 2, -2, 2\)"),
    ],
)
def test_a_description_that_its_header_does_not_announce_is_refused(group: Group, message: str) -> None:
    """Regression: the mask and the inputs of a forward were allocated in any size."""
    with pytest.raises(osp.TransportError, match=message):
        forged(group, osp.compress(activation()), rows=2, tokens=5).inlet.receive()


@pytest.mark.parametrize("description", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_description_that_is_none_is_refused(description: bytes) -> None:
    ends = activation_ends()
    ends.memory.send(Header(Kind.BEGIN, 3, 0, rows=2, tokens=5), osp.compress(activation()), description=description)
    with pytest.raises(osp.TransportError, match=r'"b", group 3: its description is invalid: '):
        ends.inlet.receive()


@pytest.mark.parametrize(("step", "tokens"), [(0, 5), (1, 1)])
def test_a_frame_of_another_shape_or_dtype_is_refused(step: int, tokens: int) -> None:
    for x in (activation(tokens)[:1], activation(tokens).half()):
        ends = activation_ends()
        ends.memory.send(Header(Kind.STEP, 3, step, rows=2, tokens=tokens), osp.compress(x, codec="raw"))
        with pytest.raises(osp.TransportError, match=rf'from node "a" to node "b", group 3, step {step}: .*'):
            ends.inlet.receive()


def test_a_message_of_no_kind_is_refused() -> None:
    ends = activation_ends()
    ends.memory.send(Header(77, 3))
    with pytest.raises(osp.TransportError, match="a message is of kind 77, which does not exist"):
        ends.inlet.receive()


def test_tokens_arrive_as_they_were() -> None:
    memory = Memory()
    outlet, inlet = TokenOutlet(memory), TokenInlet(memory, LINK)  # type: ignore[arg-type]
    for step, tokens in enumerate((torch.tensor([1 << 40, 7]), torch.zeros(0, dtype=torch.int64))):
        outlet.send(1, step, tokens)
        message, _, _ = inlet.receive()
        assert (message.kind, message.group, message.step) == (Kind.STEP, 1, step)
        assert torch.equal(arrived(message), tokens)


def test_only_corruption_and_errors_are_reported_to_the_first_stage() -> None:
    memory = Memory()
    outlet, inlet = TokenOutlet(memory), TokenInlet(memory, LINK)  # type: ignore[arg-type]
    outlet.notify(Kind.END, 1)
    outlet.notify(Kind.STOP)
    outlet.notify(Kind.CORRUPTED, 2)
    outlet.notify(Kind.FAILED, 4, "ValueError: no")
    assert inlet.receive()[0] == Message(Kind.CORRUPTED, 2)
    assert inlet.receive()[0] == Message(Kind.FAILED, 4, reason="ValueError: no")
    assert not memory.messages


def test_the_last_stage_keeps_no_buffers_of_groups_that_have_ended() -> None:
    # It kept the last message of every group: a kilobyte for each request to a server.
    sent: list[weakref.ref[Tensor]] = []

    class Works:
        group: Any

        def __init__(self) -> None:
            self.group = self

        def send(self, messages: list[Tensor], _rank: int, _tag: int) -> Works:
            sent.extend(map(weakref.ref, messages))
            return self

        def wait(self, _timeout: Any) -> None:
            pass

    outlet = TokenOutlet(Sender(Works(), LINK, 0, shaper=None))  # type: ignore[arg-type]
    for group in range(100):
        outlet.begin(replace(GROUP, id=group), torch.zeros(2, dtype=torch.int64))
        outlet.send(group, 1, torch.zeros(2, dtype=torch.int64))
        outlet.notify(Kind.END, group)
    assert len(sent) == 200
    assert len({id(message()) for message in sent if message() is not None}) <= 20


def test_tokens_of_the_wrong_size_are_refused() -> None:
    memory = Memory()
    memory.send(Header(Kind.STEP, 0, rows=1), b"1234567")
    with pytest.raises(osp.TransportError, match="7 bytes of kind STEP are not 1 tokens"):
        TokenInlet(memory, LINK).receive()  # type: ignore[arg-type]


def test_a_half_duplex_node_waits_for_its_own_transmission() -> None:
    ends = activation_ends(half_duplex=True)
    ends.outlet.begin(GROUP, activation())
    assert ends.pace.held_until_s == 12.0


def test_headers_do_not_make_arrays_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: each number of rows that a forged header announced took an array of its own, for good."""
    ends = activation_ends("topk:0.001")
    kept: list[tuple[int, ...]] = []

    def decoder(shape: tuple[int, ...], *args: Any, **options: Any) -> osp.Decoder:
        kept.append(shape)
        return osp.Decoder(shape, *args, **options)

    monkeypatch.setattr(channels, "Decoder", decoder)
    ends.outlet.begin(GROUP, activation())
    ends.inlet.receive()
    for rows in (1, 3, 1000, 2, 2):
        x = torch.ones(rows, 1, HIDDEN)
        ends.memory.send(Header(Kind.STEP, 3, 1, rows=rows, tokens=1), osp.compress(x, codec="topk:0.001"))
        assert arrived(ends.inlet.receive()).shape == x.shape
    assert kept == [(2, 1, HIDDEN)]
