"""The protocol between the parent and its workers over the control store: keys, and records as JSON.

A session is the time during which one plan runs without a loss. After a loss the next session starts, with another plan
and the processes that are left. The keys of a session contain its number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from orbitsplit._plans.plan import Plan

from .groups import Group
from .limits import Limits
from .record import Record, Traffic

_TOKENS = ".tokens"  # no input of a model has a name like that

# The request to stop: no more work.
STOP = b""


def stage_name(plan: Plan, rank: int) -> str:
    """Return the name of a stage in messages: its node, number and layers."""
    stage = plan.stages[rank]
    return f'node "{stage.node}" (stage {rank}, layers {stage.start}-{stage.stop - 1})'


def setup_key(session: int) -> str:
    """Return the key of a session's setup."""
    return f"setup/{session}"


def codecs_key(session: int, link: int) -> str:
    """Return the key of the file of the codec of a link in a session, where workers on other machines need it."""
    return f"codecs/{session}/{link}"


def ready_key(session: int, worker: int) -> str:
    """Return the key that a worker sets when it is ready for work."""
    return f"ready/{session}/{worker}"


def failure_key(session: int, worker: int) -> str:
    """Return the key that a worker sets when it fails, or loses another worker."""
    return f"failure/{session}/{worker}"


def interrupt_key(session: int) -> str:
    """Return the key that the parent sets to interrupt workers that wait for each other."""
    return f"interrupt/{session}"


def hand_over_key(session: int) -> str:
    """Return the key that the parent sets before it stops a session whose workers go over to the next one."""
    return f"hand_over/{session}"


def ahead_key(worker: int) -> str:
    """Return the key of the setup for which a new worker loads its stage before the session starts."""
    return f"ahead/{worker}"


def loaded_key(worker: int) -> str:
    """Return the key of what a worker that has loaded its stage ahead reports, as when it is ready."""
    return f"loaded/{worker}"


def heartbeat_key(worker: int) -> str:
    """Return the key that a worker sets with each heartbeat."""
    return f"heartbeat/{worker}"


def request_key(session: int, number: int) -> str:
    """Return the key of the parent's next request to the first stage."""
    return f"request/{session}/{number}"


def events_key(session: int, number: int) -> str:
    """Return the key of the first stage's next list of events."""
    return f"events/{session}/{number}"


def outputs_key(session: int, group: int) -> str:
    """Return the key of the last stage's outputs for a group that generates nothing."""
    return f"outputs/{session}/{group}"


def record_key(session: int, group: int, worker: int) -> str:
    """Return the key of a worker's `StageRecord` of a group."""
    return f"record/{session}/{group}/{worker}"


class Drain:
    """The request to the first stage to send nothing more, and to report when nothing is under way."""


@dataclass(frozen=True, slots=True)
class Setup(Record):
    """The configuration of a session: the plan (as `Plan.to_dict`) and what a worker needs to load its stage.

    `workers[k]` is the number of the worker that runs stage k; workers that are not listed end. `model` is that of
    stages without `weights` of their own. `codecs` is the folder of the plan's calibrated codecs, None for a plan
    without any; if `sends_codecs`, its files are in the store. `conditions` is `LinkConditions.to_dict`. If `emulates`,
    links and nodes are emulated as the plan describes them; the time of conditions counts from `origin_s` on the
    monotonic clock, or if that is None (first session) from when all stages have connected. `nonce` makes the
    authentication keys of the session unique. `source_hashes` are the digests of the transformer layers from which the
    `weights` of stages were converted, empty where none were. The first stage loads the `assistant` beside its layers,
    None: there is none. Workers in `leaving` ran stages of the session before: they hand over the caches of
    `moved_groups` (as `MovedGroup`) by the `moves` (as `WorkerMove`), and end. A move of which nothing comes for
    `stall_s` has lost its link. If requests are replicated (`is_replicated`), stages tell the digests of their layers.
    """

    plan: dict[str, Any]
    workers: tuple[int, ...]
    model: str
    codecs: str | None
    conditions: dict[str, Any] | None
    emulates: bool
    origin_s: float | None
    limits: Limits
    start_timeout_s: float
    nonce: str
    source_hashes: tuple[str, ...] = ()
    assistant: str | None = None
    sends_codecs: bool = False
    leaving: tuple[int, ...] = ()
    moves: tuple[tuple[Any, ...], ...] = ()
    moved_groups: tuple[tuple[int, ...], ...] = ()
    stall_s: float | None = None
    is_replicated: bool = False

    def read_plan(self) -> Plan:
        """Return the plan."""
        return Plan.from_dict(self.plan)


class WorkerMove(NamedTuple):
    """The caches of the transformer layers [start, stop) go from one worker to another, encoded by `codec`.

    `links` are the rate (None: not limited) and the latency of each link on the way; none within a node.
    """

    source: int
    destination: int
    start: int
    stop: int
    codec: str
    links: tuple[tuple[float | None, float], ...]
    nodes: tuple[str, ...]


class MovedGroup(NamedTuple):
    """A group whose caches are handed over: `tokens` of each row, room for `most_tokens`, `spare_tokens` of guesses."""

    id: int
    rows: int
    tokens: int
    most_tokens: int
    spare_tokens: int


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """What the encoder of a model reads: the input of this `name`, token ids out of `vocabulary` or features.

    `tokens` is how many it makes of features, None for as many as it reads; `positions` the size of its table, None
    without one. `has_own_loop`: transformers has a loop around generate for the model, see `own_loop.py`.
    """

    name: str
    model_type: str
    tokens: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    has_own_loop: bool = False


@dataclass(frozen=True, slots=True)
class Ready(Record):
    """A worker has loaded its stage in `loading_s`; `baseline_bytes` were resident before that.

    `generates` tells whether the model generates tokens, out of `vocabulary`. `generation_config` is the model's.
    `clock_offset_s` is the time of day at the zero of the monotonic clock. `positions` is the size of the first stage's
    table of positions, None for a model without such a table. `takes_token_types` tells whether the model's forward
    has token_type_ids, `image_inputs` by which inputs it takes images beside a text, `rope_change` is a `RopeChange`.
    `encoder` is what its encoder reads, None for a model without one.
    `runs_chunks` tells whether the stage runs several tokens at once behind others, as chunks of prompts are,
    `runs_packs` whether steps of several sequences may share a forward. `cache_bytes_per_token` is the most that keys
    and values of a further token take. `assistant_bytes` of `weight_bytes` are of the assistant: its weights, and its
    keys and values of the plan's workload. The stage was connected to the others in `connecting_s`, which includes
    waiting for them. `cache_layers` are the `LayerBytes` of its transformer layers, empty if their caches cannot be
    moved. `moved_bytes` of caches came over links in `exchange_s`; of groups in `lost_groups` not all came whole.
    `transfers` have source, destination, start and stop on the sender's monotonic clock, and bytes of what links
    carried.
    `layer_hashes` are the digests of its transformer layers where requests are replicated, else empty.
    """

    weight_bytes: int
    baseline_bytes: int
    loading_s: float
    generates: bool
    vocabulary: int | None
    clock_offset_s: float
    generation_config: dict[str, Any]
    positions: int | None = None
    takes_token_types: bool = False
    image_inputs: tuple[str, ...] = ()
    rope_change: tuple[str, int, bool] | None = None
    encoder: EncoderInput | None = None
    runs_chunks: bool = False
    runs_packs: bool = False
    cache_bytes_per_token: int = 0
    assistant_bytes: int = 0
    connecting_s: float = 0.0
    cache_layers: tuple[tuple[int, int, int | None], ...] = ()
    moved_bytes: int = 0
    lost_groups: tuple[int, ...] = ()
    exchange_s: float = 0.0
    transfers: tuple[tuple[str, str, float, float, int], ...] = ()
    layer_hashes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat(Record):
    """A worker is alive: `count` grows, `phase` describes what it does.

    `received` and `sent` count its messages of a session. `waiting_s` is how long it has waited for the next message,
    `arrivals_in_s` in how many seconds the last messages sent are expected to arrive (negative: overdue). All times are
    differences, because the clocks of several machines differ. `sent_bytes` are the payloads of all messages sent,
    `resident_bytes` the memory of the process. `step_times` has number and seconds of what was computed, encoded and
    decoded for token steps, `link_s` how long messages have occupied the link, where it is emulated, and
    `busy_s` the seconds that the stage has worked in the session.
    """

    count: int
    phase: str
    session: int = 0
    received: int = 0
    waiting_s: float = 0.0
    sent: int = 0
    arrivals_in_s: tuple[float, ...] = ()
    sent_bytes: int = 0
    resident_bytes: int = 0
    step_times: tuple[tuple[int, float], ...] = ()
    link_s: float = 0.0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure(Record):
    """A worker failed; `kind` and `link` as in `TransportError`.

    `is_consequence`: it only lost its connection to a stage.
    """

    kind: str
    summary: str
    traceback: str
    is_consequence: bool
    link: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class StageRecord(Record):
    """The measurements of one group on one stage: the recorder's events, and the traffic on its outgoing link.

    `cpu_s` is the processor time without the emulated slowdown, as far as it is measured (see `Pace.run`).
    """

    events: tuple[tuple[str, int, int, float, float], ...]
    cpu_s: float
    traffic: Traffic
    peak_bytes: int


def pack_begin(group: Group, x: torch.Tensor | Mapping[str, torch.Tensor]) -> bytes:
    """Return the request to start a group with its tokens, or the inputs of its forward. Nothing is pickled."""
    named = {_TOKENS: x} if isinstance(x, torch.Tensor) else x
    # Clones, since safetensors refuses tensors that share memory, such as one tensor for two inputs.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()}
    data: bytes = save_tensors(tensors, metadata={"group": group.to_json().decode()})
    return data


def pack_cancel(group: int) -> bytes:
    """Return the request to cancel a group."""
    return json.dumps({"cancel": group}).encode()


def pack_drain() -> bytes:
    """Return the request to send nothing more."""
    return json.dumps({"drain": True}).encode()


def pack_limits(limits: Limits) -> bytes:
    """Return the request to keep other limits from now on."""
    return json.dumps({"limits": asdict(limits)}).encode()


def unpack_request(data: bytes) -> tuple[Group, torch.Tensor | dict[str, torch.Tensor]] | int | Limits | Drain:
    """Return a group and its initial input, the number of the group to cancel, limits, or the request to drain."""
    if data[:1] == b"{":
        values = json.loads(data)
        if "drain" in values:
            return Drain()
        return Limits(**values["limits"]) if "limits" in values else int(values["cancel"])
    # The head of a safetensors file: eight bytes of length, then JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors: dict[str, torch.Tensor] = load_tensors(data)
    group = Group.from_json(header["__metadata__"]["group"].encode())
    return group, tensors.get(_TOKENS, tensors)
