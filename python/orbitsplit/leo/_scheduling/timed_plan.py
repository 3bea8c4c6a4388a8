"""A plan in time: the transfers of its files, the plan that runs between them, and how long it stays valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from orbitsplit._io.deprecation import renamed_attribute
from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import check_keys, check_string, list_of, mapping_of, quoted, record_of, records_of
from orbitsplit._plans.plan import Plan

FORMAT = "orbitsplit-timed-plan"
VERSION = 1

Strategy = Literal["ground", "satellite", "split", "mixed", "deferred", "shared", "relayed"]
_RENAMED_KEYS = {"way": "strategy", "beside": "concurrent"}
_TIMES = ("requested", "start", "compute_start", "compute_stop", "completion", "valid_until")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes along a path of satellites and stations from `start` to `stop`; the path is up until `closes`."""

    path: tuple[str, ...]
    start: datetime
    stop: datetime
    closes: datetime
    bytes: float


@dataclass(frozen=True, slots=True)
class Handover:
    """The bytes that one transfer of a file leaves to the next at `at`: on another path, or in a later contact."""

    at: datetime
    bytes_left: float
    path: tuple[str, ...]
    next_path: tuple[str, ...]
    next_start: datetime


@dataclass(frozen=True, slots=True)
class Relay:
    """A generation that another plan resumes: handed over at `at`, when each sequence had `tokens` new tokens.

    What the other plan lacks of keys and values is there at `resume`, and `plan` then generates the other tokens.
    """

    at: datetime
    resume: datetime
    tokens: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another strategy: when it would complete, or the reason why it is not possible."""

    strategy: str
    completion: datetime | None
    reason: str | None = None

    way = renamed_attribute("Alternative.way", "strategy")


@dataclass(frozen=True)
class TimedPlan:
    """When to start, where to run, and how input and result travel, with handovers from pass to pass; frozen.

    `strategy` is "ground" (a station computes), "satellite" (one satellite does), "split" (several satellites), "mixed"
    (satellites and a station at once), "deferred" (a satellite computes the first layers and stores their activation
    until a pass, after which a station computes the rest), "shared" (a station computes some micro-batches, whose
    input goes down, and satellites the others: those are the part `concurrent`, a plan of its own) or "relayed"
    (satellites generate the first tokens by `plan`, and from a pass on a station the others by the plan of `relay`).

    `input`, `activation` and `result` are the transfers before, during and after computation, in order of time; each
    ends before its path `closes`, and the next one transfers what is left. `plan` runs from `compute_start` to
    `compute_stop`. Its own links, and the paths of the transfers that feed it while it computes, are up until
    `valid_until`; a plan that starts after `latest_start` would not end in time. Where a generation is relayed, `plan`
    runs until `relay.at`, the plan of `relay` until `compute_stop`, and `valid_until` is of `plan` alone.

    `completion` is when the last byte of the result is at a station, that of `concurrent` included. `energy_j` is what
    each satellite with a power limit consumes beyond idling, for `concurrent` too (which has none itself).
    """

    strategy: Strategy
    reason: str
    requested: datetime
    start: datetime
    compute_start: datetime
    compute_stop: datetime
    completion: datetime
    valid_until: datetime
    plan: Plan
    input: tuple[Transfer, ...] = ()
    activation: tuple[Transfer, ...] = ()
    result: tuple[Transfer, ...] = ()
    energy_j: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    concurrent: TimedPlan | None = None
    relay: Relay | None = None

    way = renamed_attribute("TimedPlan.way", "strategy")
    beside = renamed_attribute("TimedPlan.beside", "concurrent")

    @property
    def duration_s(self) -> float:
        """Return seconds from the request to the completion."""
        return (self.completion - self.requested).total_seconds()

    @property
    def waits_s(self) -> float:
        """Return seconds from the request until the first transfer or computation starts."""
        return (self.start - self.requested).total_seconds()

    @property
    def latest_start(self) -> datetime:
        """Return when `plan` must start at the latest to end while it is valid; `concurrent` has its own instant.

        A result that then misses its pass waits for the next one. A generation that is relayed has to start as planned:
        later, fewer tokens are there at the switch, and the other plan does not end at `compute_stop`.
        """
        if self.relay is not None:
            return self.compute_start
        return self.valid_until - (self.compute_stop - self.compute_start)

    @property
    def energy_per_inference_j(self) -> float:
        """Return the joules of all satellites beyond idling for one sequence of the workload, transfers included."""
        others = 0 if self.concurrent is None else self.concurrent.plan.workload.sequences
        return sum(self.energy_j.values()) / (self.plan.workload.sequences + others)

    @property
    def handovers(self) -> tuple[Handover, ...]:
        """Return the handovers from one transfer of a file to the next, in order of time."""
        found = [] if self.concurrent is None else list(self.concurrent.handovers)
        for transfers in (self.input, self.activation, self.result):
            left = sum(transfer.bytes for transfer in transfers if transfer.path[-1] == transfers[-1].path[-1])
            for a, b in pairwise(transfers):
                left -= a.bytes if a.path[-1] == transfers[-1].path[-1] else 0.0
                found.append(Handover(a.stop, max(left, 0.0), a.path, b.path, b.start))
        return tuple(sorted(found, key=lambda handover: handover.at))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data; `from_dict` takes it back."""
        data = {**vars(self), "plan": self.plan.to_dict(), "energy_j": dict(self.energy_j)}
        data["concurrent"] = None if self.concurrent is None else self.concurrent.to_dict()
        data["relay"] = None if self.relay is None else _relay_data(self.relay)
        for key in ("input", "activation", "result", "alternatives"):
            data[key] = [_plain(asdict(item)) for item in data[key]]
        return document_of(FORMAT, VERSION, _plain(data))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TimedPlan:
        """Make a plan from what `to_dict` returned; the keys `way` and `beside` of version 0.1 are read, too.

        Raises:
            TypeError, ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = _renamed(data_of(FORMAT, VERSION, document))
        check_keys("the timed plan", values, cls)
        if values["strategy"] not in get_args(Strategy):
            raise ValueError(
                f"strategy is {quoted(values['strategy'])}, must be one of {', '.join(get_args(Strategy))}"
            )
        for key in _TIMES:
            values[key] = _instant(key, values[key])
        values["plan"] = Plan.from_dict(mapping_of("plan", values["plan"]))
        for key in ("input", "activation", "result"):
            rows = [mapping_of(key, row) for row in list_of(key, values.get(key, ()))]
            values[key] = tuple(_transfer(key, row) for row in rows)
        listed = list_of("alternatives", values["alternatives"])
        others = [_renamed(mapping_of("alternatives", row)) for row in listed]
        for row in others:
            row["completion"] = None if row["completion"] is None else _instant("completion", row["completion"])
        values["alternatives"] = records_of("alternatives", others, Alternative)
        part = values.get("concurrent")
        values["concurrent"] = None if part is None else cls.from_dict(mapping_of("concurrent", part))
        relay = values.get("relay")
        values["relay"] = None if relay is None else _relay(mapping_of("relay", relay))
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_document(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TimedPlan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: The file is not JSON or not such a plan.
        """
        return load_document(path, cls.from_dict)

    def __str__(self) -> str:
        lines = [f"{self.strategy}: {self.reason}"]
        for what, transfers in (("input", self.input), ("activation", self.activation), ("result", self.result)):
            lines += [_line(what, transfer) for transfer in transfers]
        until = self.compute_stop if self.relay is None else self.relay.at
        lines.append(f"  {_clock(self.compute_start)} {self.plan} until {_clock(until)}")
        if self.concurrent is not None:
            lines += str(self.concurrent).splitlines()[1:-1]
        if self.relay is not None:
            relayed = (
                f"after {self.relay.tokens} tokens, from {_clock(self.relay.resume)} until {_clock(self.compute_stop)}"
            )
            lines.append(f"  {_clock(self.relay.at)} handed over to {self.relay.plan} {relayed}")
        lines = [lines[0], *sorted(lines[1:])]
        lines.append(f"  complete {_clock(self.completion)}, {self.duration_s:,.0f} s after the request")
        return "\n".join(lines)


def _line(what: str, transfer: Transfer) -> str:
    path = " -> ".join(transfer.path)
    times = f"{_clock(transfer.start)} {what} {path} until {_clock(transfer.stop)}"
    return f"  {times} (closes {_clock(transfer.closes)}), {format_bytes(transfer.bytes)}"


def _clock(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the keys of version 0.1 under their new names."""
    names = {old: new for old, new in _RENAMED_KEYS.items() if new not in values}
    return {names.get(key, key): value for key, value in values.items()}


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with instants as text and tuples as lists."""
    return {
        key: value.isoformat() if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value
        for key, value in data.items()
    }


def _instant(key: str, value: Any) -> datetime:
    check_string(key, value)
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{key} is {quoted(value)}, must be an instant such as 2026-01-01T00:00:00+00:00") from None
    if when.utcoffset() != timedelta(0):
        raise ValueError(f"{key} is {quoted(value)}, must be in UTC, with +00:00")
    return when


def _relay_data(relay: Relay) -> dict[str, Any]:
    times = {"at": relay.at.isoformat(), "resume": relay.resume.isoformat()}
    return {**times, "tokens": relay.tokens, "plan": relay.plan.to_dict()}


def _relay(row: Mapping[str, Any]) -> Relay:
    values = dict(row)
    check_keys("relay", values, Relay)
    for name in ("at", "resume"):
        values[name] = _instant(f"relay.{name}", values[name])
    values["plan"] = Plan.from_dict(mapping_of("relay.plan", values["plan"]))
    made: Relay = record_of("relay", values, Relay)
    return made


def _transfer(key: str, row: Mapping[str, Any]) -> Transfer:
    values = dict(row)
    check_keys(key, values, Transfer)
    for name in ("start", "stop", "closes"):
        values[name] = _instant(f"{key}.{name}", values[name])
    values["path"] = tuple(list_of(f"{key}.path", values["path"]))
    made: Transfer = record_of(key, values, Transfer)
    return made
