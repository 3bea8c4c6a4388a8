"""What the parent and its workers tell each other through the control store: keys, and records as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orbitsplit._plan import Plan

from ._record import Record, Traffic

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


@dataclass(frozen=True, slots=True)
class Setup(Record):
    """What a worker needs to know before any work: the plan (as `Plan.to_dict`) and how to load its stage.

    `codecs` is the path of the plan's calibrated codecs, None where it has none.
    """

    plan: dict[str, Any]
    model: str
    codecs: str | None
    start_timeout_s: float

    def read_plan(self) -> Plan:
        """Return the plan."""
        return Plan.from_dict(self.plan)


@dataclass(frozen=True, slots=True)
class Ready(Record):
    """A worker has loaded its stage; `baseline_bytes` were resident before. `vocabulary` is the number of tokens."""

    weight_bytes: int
    baseline_bytes: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    vocabulary: int


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
class StageRecord(Record):
    """What a stage did for one job: the recorder's events, and the traffic on its outgoing link.

    `cpu_s` is the processor time of its work before any slow-down.
    """

    events: tuple[tuple[str, int, int, float, float], ...]
    cpu_s: float
    traffic: Traffic
    peak_bytes: int
