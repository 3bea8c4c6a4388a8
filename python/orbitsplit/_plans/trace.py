"""Traces of runs: events of every node with their times, as JSON and for trace viewers. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.validation import check_integer, check_keys, check_kind, check_number, list_of, quoted, tuple_of

from .flight_log import FlightLog

FORMAT = "orbitsplit-trace"
VERSION = 1

# compute: a stage's forward. encode, decode: an activation into and out of a frame. send: a link is occupied.
# wait: a node is idle, or may not compute while it transmits. receive: a message that is late (the transport's own
# delay).
KINDS = ("compute", "encode", "send", "wait", "receive", "decode")


class TraceEvent(NamedTuple):
    """One event of one node.

    Attributes:
        node: Name of the node.
        kind: "compute", "encode", "send", "wait", "receive" or "decode".
        group: Index of the sequence group.
        step: Token step; 0 is the prefill, or its last chunk, with chunks before it -1, -2, ... backwards.
        start_s: Seconds since the start of the run.
        stop_s: Seconds since the start of the run.
    """

    node: str
    kind: str
    group: int
    step: int
    start_s: float
    stop_s: float

    @property
    def duration_s(self) -> float:
        """The duration in seconds."""
        return self.stop_s - self.start_s


class Recorder:
    """Collects the events of one node for selected groups, at low cost: one tuple per event."""

    def __init__(self) -> None:
        self._events: dict[int, list[tuple[str, int, int, float, float, float]]] = {}

    def begin(self, group: int) -> None:
        """Start to record the events of a group."""
        self._events.setdefault(group, [])

    def add(self, kind: str, group: int, step: int, start_s: float, stop_s: float, cpu_s: float = 0.0) -> None:
        """Record one event of a selected group; times are of the monotonic clock, `cpu_s` is processor time."""
        events = self._events.get(group)
        if events is not None:
            events.append((kind, group, step, start_s, stop_s, cpu_s))

    def take(self, group: int) -> tuple[tuple[tuple[str, int, int, float, float], ...], float]:
        """Return the events of a group and their processor time, and stop recording it."""
        events = self._events.pop(group, [])
        return tuple(event[:5] for event in events), math.fsum(event[5] for event in events)


@dataclass(frozen=True, slots=True)
class Trace:
    """All events of a run, with a JSON round trip and an export for Chrome's and Perfetto's viewers.

    Attributes:
        nodes: Names of the nodes, in order of their stages.
        events: The events, in order of their start.
        slowdowns: How many times slower than this machine each node was emulated; empty: no node was. Below 1
            the node is planned to be faster, and ran as fast as this machine.
        flight: Of `orbitsplit.flight.fly`: passes, hand-overs, what links carried, and tokens. All times are then those
            of its clock, and the groups of events are requests; of a generation that was handed over to another plan
            while it ran there are tokens, and no events.

    Raises:
        ValueError: The number of slowdowns is neither 0 nor that of the nodes.
    """

    nodes: tuple[str, ...]
    events: tuple[TraceEvent, ...]
    slowdowns: tuple[float, ...] = ()
    flight: FlightLog | None = None

    def __post_init__(self) -> None:
        for name, kind in (("nodes", str), ("events", TraceEvent), ("slowdowns", object)):
            object.__setattr__(self, name, tuple_of(name, getattr(self, name), kind))
        if self.flight is not None:
            check_kind("flight", self.flight, FlightLog)
        if len(self.slowdowns) not in (0, len(self.nodes)):
            raise ValueError(f"slowdowns are {len(self.slowdowns)}, must be 0 or {len(self.nodes)}, one per node")

    @property
    def stop_s(self) -> float:
        """End of the last event in seconds, 0 without events."""
        return max((event.stop_s for event in self.events), default=0.0)

    def totals(self) -> dict[str, dict[str, float]]:
        """Return the seconds of each node by kind of event."""
        totals = {node: dict.fromkeys(KINDS, 0.0) for node in self.nodes}
        for event in self.events:
            totals[event.node][event.kind] += event.duration_s
        return totals

    def of(self, node: str, kind: str) -> tuple[TraceEvent, ...]:
        """Return the events of one node and kind, in order of start."""
        return tuple(event for event in self.events if event.node == node and event.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as JSON-ready data; events are lists that name their node by index."""
        index = {node: k for k, node in enumerate(self.nodes)}
        data: dict[str, Any] = {
            "nodes": list(self.nodes),
            "slowdowns": list(self.slowdowns),
            "events": [[index[event.node], *event[1:]] for event in self.events],
        }
        if self.flight is not None:
            data["flight"] = self.flight.to_dict()
        return document_of(FORMAT, VERSION, data)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Trace:
        """Make a trace from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        values = data_of(FORMAT, VERSION, document)
        check_keys("the trace", values, cls)
        nodes = tuple(list_of("nodes", values["nodes"]))
        events = [_event(f"events[{k}]", row, nodes) for k, row in enumerate(list_of("events", values["events"]))]
        slowdowns = tuple(list_of("slowdowns", values.get("slowdowns", [])))
        flight = None if values.get("flight") is None else FlightLog.from_dict(values["flight"])
        return cls(nodes=nodes, events=tuple(events), slowdowns=slowdowns, flight=flight)

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON."""
        write_document(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            ValueError: The file is not JSON or not a trace.
        """
        return load_document(path, cls.from_dict)

    def to_chrome(self) -> dict[str, Any]:
        """Return the trace in Chrome's trace event format: a process per node, its outgoing link as a thread."""
        records: list[dict[str, Any]] = []
        for pid, node in enumerate(self.nodes):
            slowdown = self.slowdowns[pid] if self.slowdowns else 1.0
            label = f"{node} ({slowdown:g}x slower than this machine)" if slowdown > 1.0 else node
            records.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": label}})
            for tid, thread in enumerate(("node", "outgoing link")):
                records.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": thread}})
        index = {node: k for k, node in enumerate(self.nodes)}
        for event in self.events:
            records.append(
                {
                    "ph": "X",
                    "name": f"{event.kind} group {event.group} step {event.step}",
                    "cat": event.kind,
                    "pid": index[event.node],
                    "tid": int(event.kind == "send"),
                    "ts": event.start_s * 1e6,
                    "dur": event.duration_s * 1e6,
                }
            )
        return {"traceEvents": records, "displayTimeUnit": "ms"}


def _event(key: str, row: Any, nodes: tuple[str, ...]) -> TraceEvent:
    values = list_of(key, row)
    if len(values) != len(TraceEvent._fields):
        raise ValueError(f"{key} has {len(values)} values, must be {', '.join(TraceEvent._fields)}")
    node, kind, group, step, start_s, stop_s = values
    for name, number in (("node", node), ("group", group), ("step", step)):
        check_integer(f"{key}: {name}", number)
    for name, number in (("start_s", start_s), ("stop_s", stop_s)):
        check_number(f"{key}: {name}", number)
    if kind not in KINDS or not 0 <= node < len(nodes):
        raise ValueError(f"{key} has kind {quoted(kind)} and node {node}, the trace has {len(nodes)} nodes")
    return TraceEvent(nodes[node], kind, group, step, start_s, stop_s)


def merge(
    nodes: tuple[str, ...], recorded: Sequence[Iterable[Any]], *, origin_s: float, slowdowns: tuple[float, ...]
) -> Trace:
    """Join the recorded events of all nodes (in the order of `nodes`) into one trace that starts at `origin_s`.

    Events that began earlier (stages that waited for the first message) count from there.
    """
    events = [
        TraceEvent(node, kind, group, step, max(0.0, start_s - origin_s), max(0.0, stop_s - origin_s))
        for node, entries in zip(nodes, recorded, strict=True)
        for kind, group, step, start_s, stop_s in entries
    ]
    return Trace(nodes=nodes, events=tuple(sorted(events, key=lambda event: event.start_s)), slowdowns=slowdowns)
