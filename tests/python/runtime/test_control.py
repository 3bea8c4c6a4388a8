"""Records between processes: they come back from JSON as they were, and requests from their bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from orbitsplit.runtime._messages.control import (
    Failure,
    Heartbeat,
    Ready,
    Setup,
    StageRecord,
    pack_begin,
    pack_cancel,
    unpack_request,
)
from orbitsplit.runtime._messages.groups import Details, Group, Sampling, described_inputs
from orbitsplit.runtime._messages.limits import Limits
from orbitsplit.runtime._messages.record import Record, Traffic
from tests.support.warpers import warpers

GROUP = Group(
    id=2**40,
    rows=2,
    tokens=3,
    mask="uA==",
    max_new_tokens=8,
    eos_token_ids=(1, 2),
    pad_token_id=7,
    sampling=Sampling(seed=2**62, rows=4, first_row=2, drawn=3),
    processors=warpers(temperature=0.5, top_p=0.9),
    needs_ids=True,
    ids="AQAAAA==",
    details=Details(logprobs=3, has_scores=True),
    ended_rows=(1,),
    is_recorded=True,
)
RECORDS: list[Record] = [
    GROUP,
    Group(id=0, rows=1, tokens=2, mask=None, max_new_tokens=3, beside=(("token_type_ids", (1, 2), "AAAAAAEAAAA="),)),
    Group(id=0, rows=1, tokens=1, mask=None, max_new_tokens=0, inputs=(("pixel_values", (1, 3, 8, 8), "float32"),)),
    Setup({"a": [1, 2]}, (0, 4), "model", None, {"seed": 1}, True, 12.5, Limits(4, 64, 2, 32), 600.0, "nonce"),
    Ready(7, 8, 0.5, True, 97, 1.25, {"eos_token_id": [1, 2], "temperature": 0.5}, 512, takes_token_types=True),
    Heartbeat(3, "waiting", 1, received=4, waiting_s=0.5, sent=5, arrivals_in_s=(-1.0, 2.0)),
    Failure("memory", "summary", 'a "quoted"\ntraceback', is_consequence=True),
    StageRecord(events=(("compute", 1, 0, 0.5, 1.5),), cpu_s=0.25, traffic=Traffic(2, 30, 4, 500), peak_bytes=7),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_json(record: Record) -> None:
    assert type(record).from_json(record.to_json()) == record


def test_traffic_adds_up_over_groups() -> None:
    traffic = Traffic(frames=3, prefill_bytes=100, decode_bytes=20, original_bytes=480, message_bytes=450)
    assert (traffic.frame_bytes, traffic.ratio) == (120, 4.0)
    assert traffic + traffic == Traffic(
        frames=6, prefill_bytes=200, decode_bytes=40, original_bytes=960, message_bytes=900
    )


def test_a_group_and_its_tokens_survive_a_request() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    request = unpack_request(pack_begin(GROUP, tokens[:, :]))
    assert isinstance(request, tuple)
    group, x = request
    assert group == GROUP
    assert isinstance(x, torch.Tensor)
    assert torch.equal(x, tokens)


def test_inputs_of_a_forward_survive_a_request_by_name() -> None:
    inputs = {"pixel_values": torch.randn(1, 3, 8, 8), "attention_mask": torch.ones(1, 4, dtype=torch.bool)}
    group = Group(0, 1, 4, None, 0, inputs=described_inputs(inputs))
    request = unpack_request(pack_begin(group, inputs))
    assert isinstance(request, tuple)
    assert request[0] == group
    assert isinstance(request[1], dict)
    assert all(torch.equal(request[1][name], value) for name, value in inputs.items())
    placeholders = group.placeholders()
    assert {name: (value.shape, value.dtype) for name, value in placeholders.items()} == {
        name: (value.shape, value.dtype) for name, value in inputs.items()
    }
    assert not any(value.any() for value in placeholders.values())


def test_one_tensor_may_be_several_inputs() -> None:
    # RuntimeError: some tensors share memory.
    ids = torch.tensor([[1, 2, 3]])
    inputs = {"input_ids": ids, "token_type_ids": ids, "attention_mask": ids[:, :]}
    request = unpack_request(pack_begin(Group(0, 1, 3, None, 0, inputs=described_inputs(inputs)), inputs))
    assert isinstance(request, tuple)
    assert isinstance(request[1], dict)
    assert all(torch.equal(request[1][name], ids) for name in inputs)


def test_the_end_of_a_group_survives_a_request() -> None:
    assert unpack_request(pack_cancel(2**40)) == 2**40


def test_the_schedule_knows_no_store_keys() -> None:
    code = (
        "import sys, orbitsplit.runtime._schedule.first_stage; "
        "sys.exit('orbitsplit.runtime._messages.control' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
