"""What the parent and its workers tell each other through the control store: keys, and records as JSON.

Nothing is pickled: whoever reaches the store can send wrong data, not code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from orbitsplit._plan import Plan

R = TypeVar("R", bound="Record")

SETUP = "setup"
# Instead of the next job: no more work.
STOP = b""


def ready_key(rank: int) -> str:
    """Return the key a worker sets once it can take work."""
    return f"ready/{rank}"


def sign_of_life_key(rank: int) -> str:
    """Return the key a worker sets every second."""
    return f"sign-of-life/{rank}"


def failure_key(rank: int) -> str:
    """Return the key a worker sets when it fails."""
    return f"failure/{rank}"


def job_key(job: int) -> str:
    """Return the key of a job's description."""
    return f"job/{job}"


def job_part_key(job: int, part: str) -> str:
    """Return the key of a part of a job: `tokens`, `mask`, `result`, or the record of a rank."""
    return f"job/{job}/{part}"


class Record:
    """A dataclass that travels as a JSON object."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_json(self) -> bytes:
        """Return the record as JSON; `from_json` takes it back."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls: type[R], data: bytes) -> R:
        """Make a record from what `to_json` returned, lists as tuples."""
        values = json.loads(data)
        return cls(
            **{
                field.name: tuple(values[field.name]) if isinstance(values[field.name], list) else values[field.name]
                for field in fields(cls)
            }
        )


@dataclass(frozen=True, slots=True)
class Setup(Record):
    """What a worker needs to know before any work: the plan (as `Plan.to_dict`) and how to load its stage."""

    plan: dict[str, Any]
    model: str
    dtype: str
    threads: int
    start_timeout_s: float

    def read_plan(self) -> Plan:
        """Return the plan."""
        return Plan.from_dict(self.plan)


@dataclass(frozen=True, slots=True)
class Ready(Record):
    """A worker has loaded its stage. `baseline_bytes` were resident before that."""

    weight_bytes: int
    baseline_bytes: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


@dataclass(frozen=True, slots=True)
class SignOfLife(Record):
    """A worker is alive: `count` grows, `phase` says what it does, `new_tokens` how far the job is."""

    count: int
    phase: str
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Failure(Record):
    """A worker failed; `is_consequence` where it only lost another stage."""

    summary: str
    traceback: str
    is_consequence: bool


@dataclass(frozen=True, slots=True)
class Job(Record):
    """One batch to generate for: `rows` sequences of `prompt_tokens` tokens (padded), in `groups` groups."""

    id: int
    rows: int
    prompt_tokens: int
    max_new_tokens: int
    groups: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def rows_of(self, group: int) -> slice:
        """Return the rows of a group; sizes differ by one at most, larger groups first."""
        size, larger = divmod(self.rows, self.groups)
        start = group * size + min(group, larger)
        return slice(start, start + size + (group < larger))

    @property
    def largest_group(self) -> int:
        """Return the number of rows of the largest group."""
        return -(-self.rows // self.groups)


@dataclass(frozen=True, slots=True)
class StageRecord(Record):
    """What a stage did for one job: the recorder's events, and what it sent over its outgoing link.

    `cpu_s` is the processor time of its work before any slow-down; `original_bytes` those of the activations before
    compression.
    """

    events: tuple[tuple[str, int, int, float, float], ...]
    cpu_s: float
    frames: int
    prefill_bytes: int
    decode_bytes: int
    original_bytes: int
    peak_bytes: int
