"""What the parent and its workers tell each other through the control store: keys, and records as JSON.

A session is the time in which one plan runs with nothing lost. After a loss the next one begins, with another plan
and, of the processes, those that are left. Keys of a session have its number in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from orbitsplit._plans.plan import Plan

from .groups import Group
from .record import Record, Traffic

_TOKENS = ".tokens"  # no input of a model has a name like that

# A request to end: no more work.
STOP = b""

# The environment variable of the secret that messages are authenticated with; not in the store, which anybody reads
# who reaches it.
SECRET_VARIABLE = "ORBITSPLIT_SECRET"


def setup_key(session: int) -> str:
    """Return the key of a session's setup."""
    return f"setup/{session}"


def ready_key(session: int, worker: int) -> str:
    """Return the key a worker sets once it can take work."""
    return f"ready/{session}/{worker}"


def failure_key(session: int, worker: int) -> str:
    """Return the key a worker sets when it fails, or has lost another."""
    return f"failure/{session}/{worker}"


def interrupt_key(session: int) -> str:
    """Return the key the parent sets so that no worker waits for another any more."""
    return f"interrupt/{session}"


def sign_of_life_key(worker: int) -> str:
    """Return the key a worker sets every second."""
    return f"sign-of-life/{worker}"


def request_key(session: int, number: int) -> str:
    """Return the key of the parent's next request to the first stage."""
    return f"request/{session}/{number}"


def events_key(session: int, number: int) -> str:
    """Return the key of what the first stage reports next."""
    return f"events/{session}/{number}"


def outputs_key(session: int, group: int) -> str:
    """Return the key of what the last stage puts out for a group that generates nothing."""
    return f"outputs/{session}/{group}"


def record_key(session: int, group: int, worker: int) -> str:
    """Return the key of what a worker did for a group."""
    return f"record/{session}/{group}/{worker}"


@dataclass(frozen=True, slots=True)
class Setup(Record):
    """What a worker needs to know before any work: the plan (as `Plan.to_dict`) and how to load its stage.

    `workers[k]` is the worker that runs stage k; those that are not named are not needed any more. `codecs` is the path
    of the plan's calibrated codecs, None where it has none; `conditions` are those of links (`LinkConditions.to_dict`).
    `emulates` says whether links are as slow as the plan says; conditions count from `origin_s` on the monotonic clock,
    in the first session (None) from when all stages have connected. `nonce` makes the keys of this session unlike
    all others.
    """

    plan: dict[str, Any]
    workers: tuple[int, ...]
    model: str
    codecs: str | None
    conditions: dict[str, Any] | None
    emulates: bool
    origin_s: float | None
    most_groups: int
    start_timeout_s: float
    nonce: str

    def read_plan(self) -> Plan:
        """Return the plan."""
        return Plan.from_dict(self.plan)


@dataclass(frozen=True, slots=True)
class Ready(Record):
    """A worker has loaded its stage; `baseline_bytes` were resident before, `loading_s` it took.

    `generates` says whether the model generates tokens, of which `vocabulary` exist. `sampling` is what its generation
    config says of it: temperature, top_k, top_p. `clock_offset_s` is the time of day on the monotonic clock's zero.
    """

    weight_bytes: int
    baseline_bytes: int
    loading_s: float
    generates: bool
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    vocabulary: int | None
    clock_offset_s: float
    sampling: tuple[float | None, int | None, float | None]


@dataclass(frozen=True, slots=True)
class SignOfLife(Record):
    """A worker is alive: `count` grows, `phase` says what it does.

    `received` and `sent` count its messages of a session; `waiting_s` is how long it has waited for the next one, and
    `dues_in_s` says of the last ones sent in how many seconds they should arrive. All seconds are differences, because
    clocks of several machines differ.
    """

    count: int
    phase: str
    session: int = 0
    received: int = 0
    waiting_s: float = 0.0
    sent: int = 0
    dues_in_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure(Record):
    """A worker failed: why (see `TransportError.kind`), or `is_consequence`: it only lost another stage."""

    kind: str
    summary: str
    traceback: str
    is_consequence: bool


@dataclass(frozen=True, slots=True)
class StageRecord(Record):
    """What a stage did for one group: the recorder's events, and the traffic on its outgoing link.

    `cpu_s` is the processor time of its work before any slow-down, as far as that is read (see `Pace.run`).
    """

    events: tuple[tuple[str, int, int, float, float], ...]
    cpu_s: float
    traffic: Traffic
    peak_bytes: int


def pack_begin(group: Group, x: torch.Tensor | Mapping[str, torch.Tensor]) -> bytes:
    """Return the request to begin a group with its tokens, or the inputs of its forward. Nothing is pickled."""
    named = {_TOKENS: x} if isinstance(x, torch.Tensor) else x
    tensors = {name: value.contiguous() for name, value in named.items()}
    data: bytes = save_tensors(tensors, metadata={"group": group.to_json().decode()})
    return data


def pack_cancel(group: int) -> bytes:
    """Return the request to end a group early."""
    return json.dumps({"cancel": group}).encode()


def unpack_request(data: bytes) -> tuple[Group, torch.Tensor | dict[str, torch.Tensor]] | int:
    """Return a group and what it begins with, or the group to end early."""
    if data[:1] == b"{":
        return int(json.loads(data)["cancel"])
    # The head of a safetensors file: eight bytes of length, then JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors: dict[str, torch.Tensor] = load_tensors(data)
    group = Group.from_json(header["__metadata__"]["group"].encode())
    return group, tensors.get(_TOKENS, tensors)
