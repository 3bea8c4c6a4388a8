"""Records between processes: they come back from JSON as they were."""

from __future__ import annotations

import subprocess
import sys

from orbitsplit.runtime._control import Failure, StageRecord
from orbitsplit.runtime._record import Record, Traffic
from orbitsplit.runtime._schedule import Job

RECORDS: list[Record] = [
    Job(id=3, rows=4, prompt_tokens=5, max_new_tokens=8, groups=2, eos_token_ids=(1, 2), pad_token_id=0),
    Failure("summary", 'a "quoted"\ntraceback', is_consequence=True),
    StageRecord(events=(), cpu_s=0.25, traffic=Traffic(2, 30, 4, 500), peak_bytes=7),
]


def test_records_survive_json() -> None:
    for record in RECORDS:
        assert type(record).from_json(record.to_json()) == record


def test_traffic_is_counted_by_phase() -> None:
    traffic = Traffic().plus(100, 400, is_prefill=True).plus(10, 40, is_prefill=False).plus(10, 40, is_prefill=False)
    assert traffic == Traffic(frames=3, prefill_bytes=100, decode_bytes=20, original_bytes=480)
    assert (traffic.frame_bytes, traffic.ratio) == (120, 4.0)


def test_the_schedule_knows_no_store_keys() -> None:
    code = "import sys, orbitsplit.runtime._schedule; sys.exit('orbitsplit.runtime._control' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
