"""A plan in time: what is sent when along which path, which plan runs when, and until when that stays possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import check_keys, list_of, mapping_of, record_of, records_of
from orbitsplit._plans.plan import Plan

FORMAT = "orbitsplit-timed-plan"
VERSION = 1

Way = Literal["ground", "satellite", "split", "mixed", "deferred", "shared"]
_TIMES = ("requested", "start", "compute_start", "compute_stop", "completion", "valid_until")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes along a path of satellites and stations, from `start` to `stop`; the path is there until `closes`."""

    path: tuple[str, ...]
    start: datetime
    stop: datetime
    closes: datetime
    bytes: float


@dataclass(frozen=True, slots=True)
class Handover:
    """What is left of a file at `at`, when the next transfer takes over: on another path, or in a later contact."""

    at: datetime
    bytes_left: float
    path: tuple[str, ...]
    next_path: tuple[str, ...]
    next_start: datetime


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to do the work: when it would be complete, or why it is not possible."""

    way: str
    completion: datetime | None
    reason: str | None = None


@dataclass(frozen=True)
class TimedPlan:
    """When to start, where to run, and how input and result travel, with hand-overs from pass to pass; frozen.

    `way` is "ground" (a station computes), "satellite" (one does), "split" (several satellites), "mixed" (satellites
    and a station at once), "deferred" (a satellite computes the first layers and keeps the activation for a pass,
    after which a station goes on) or "shared" (a station computes some micro-batches, of which the input goes down, and
    satellites the others: those are `beside`, a plan of its own). `input`, `activation` and `result` are the transfers
    before, amid and after computing, in order of time; each ends before its path `closes`, and the next one takes over
    what is left. `plan` is what runs, from `compute_start` to `compute_stop`. All of `plan`'s own links, and the paths
    of the transfers that feed it while it computes, are there until `valid_until`; started later than `latest_start` it
    would not end in time. `completion` is when the last byte of the result is at a station, that of `beside` included.
    `energy_j` is what each satellite with a power limit takes beyond idling, for `beside` too (which has none itself).
    """

    way: Way
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
    beside: TimedPlan | None = None

    @property
    def duration_s(self) -> float:
        """Return seconds from the request to the completion."""
        return (self.completion - self.requested).total_seconds()

    @property
    def waits_s(self) -> float:
        """Return seconds from the request until anything is sent or computed."""
        return (self.start - self.requested).total_seconds()

    @property
    def latest_start(self) -> datetime:
        """Return when the plan, not that of `beside`, must start to compute to end while it is valid.

        A result that then misses its pass waits for the next.
        """
        return self.valid_until - (self.compute_stop - self.compute_start)

    @property
    def energy_per_inference_j(self) -> float:
        """Return the joules of all satellites beyond idling for one sequence of the workload, transfers included."""
        beside = 0 if self.beside is None else self.beside.plan.workload.sequences
        return sum(self.energy_j.values()) / (self.plan.workload.sequences + beside)

    @property
    def handovers(self) -> tuple[Handover, ...]:
        """Return where one transfer of a file takes over from another, in order of time."""
        found = [] if self.beside is None else list(self.beside.handovers)
        for transfers in (self.input, self.activation, self.result):
            left = sum(transfer.bytes for transfer in transfers if transfer.path[-1] == transfers[-1].path[-1])
            for a, b in pairwise(transfers):
                left -= a.bytes if a.path[-1] == transfers[-1].path[-1] else 0.0
                found.append(Handover(a.stop, max(left, 0.0), a.path, b.path, b.start))
        return tuple(sorted(found, key=lambda handover: handover.at))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data; `from_dict` takes it back."""
        data = {**vars(self), "plan": self.plan.to_dict(), "energy_j": dict(self.energy_j)}
        data["beside"] = None if self.beside is None else self.beside.to_dict()
        for key in ("input", "activation", "result", "alternatives"):
            data[key] = [_plain(asdict(item)) for item in data[key]]
        return document_of(FORMAT, VERSION, _plain(data))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TimedPlan:
        """Make a plan from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the timed plan", values, cls)
        if values["way"] not in get_args(Way):
            raise ValueError(f"way is {values['way']!r}, must be one of {', '.join(get_args(Way))}")
        for key in _TIMES:
            values[key] = _instant(key, values[key])
        values["plan"] = Plan.from_dict(mapping_of("plan", values["plan"]))
        for key in ("input", "activation", "result"):
            rows = [mapping_of(key, row) for row in list_of(key, values.get(key, ()))]
            values[key] = tuple(_transfer(key, row) for row in rows)
        others = [dict(mapping_of("alternatives", row)) for row in list_of("alternatives", values["alternatives"])]
        for row in others:
            row["completion"] = None if row["completion"] is None else _instant("completion", row["completion"])
        values["alternatives"] = records_of("alternatives", others, Alternative)
        beside = values.get("beside")
        values["beside"] = None if beside is None else cls.from_dict(mapping_of("beside", beside))
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
        lines = [f"{self.way}: {self.reason}"]
        for what, transfers in (("input", self.input), ("activation", self.activation), ("result", self.result)):
            lines += [_line(what, transfer) for transfer in transfers]
        lines.append(f"  {_clock(self.compute_start)} {self.plan} until {_clock(self.compute_stop)}")
        if self.beside is not None:
            lines += str(self.beside).splitlines()[1:-1]
        lines = [lines[0], *sorted(lines[1:])]
        lines.append(f"  complete {_clock(self.completion)}, {self.duration_s:,.0f} s after the request")
        return "\n".join(lines)


def _line(what: str, transfer: Transfer) -> str:
    path = " -> ".join(transfer.path)
    times = f"{_clock(transfer.start)} {what} {path} until {_clock(transfer.stop)}"
    return f"  {times} (closes {_clock(transfer.closes)}), {format_bytes(transfer.bytes)}"


def _clock(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with instants as text and tuples as lists."""
    return {
        key: value.isoformat() if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value
        for key, value in data.items()
    }


def _instant(key: str, value: Any) -> datetime:
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}, must be an instant such as 2026-01-01T00:00:00+00:00") from None
    if when.utcoffset() != timedelta(0):
        raise ValueError(f"{key} is {value!r}, must be in UTC, with +00:00")
    return when


def _transfer(key: str, row: Mapping[str, Any]) -> Transfer:
    values = dict(row)
    check_keys(key, values, Transfer)
    for name in ("start", "stop", "closes"):
        values[name] = _instant(f"{key}.{name}", values[name])
    values["path"] = tuple(list_of(f"{key}.path", values["path"]))
    made: Transfer = record_of(key, values, Transfer)
    return made
