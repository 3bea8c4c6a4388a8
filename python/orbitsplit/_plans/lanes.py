"""The lanes of a timeline: one for each node, one for each link, and how busy each is."""

from __future__ import annotations

from collections.abc import Iterable

from .trace import Trace, TraceEvent

# What keeps a node or a link busy; a node that waits is not.
BUSY = ("compute", "encode", "decode", "send", "receive")

# The name of a node, and whether the lane is that of the link behind it.
Lane = tuple[str, bool]


def lanes(trace: Trace) -> dict[Lane, list[TraceEvent]]:
    """Return the events of each node and of the link behind it, in order; only of links that send something."""
    senders = {event.node for event in trace.events if event.kind == "send"}
    found: dict[Lane, list[TraceEvent]] = {}
    for node in trace.nodes:
        found[node, False] = []
        if node in senders:
            found[node, True] = []
    for event in trace.events:
        found[event.node, event.kind == "send"].append(event)
    return found


def utilisation(trace: Trace) -> dict[Lane, float]:
    """Return the part of the time for which each node computes, encodes or decodes, and each link sends."""
    span_s = trace.stop_s or 1.0
    return {
        lane: _covered_s(event for event in events if event.kind in BUSY) / span_s
        for lane, events in lanes(trace).items()
    }


def lane_labels(trace: Trace) -> dict[Lane, str]:
    """Return what stands beside each lane: its name and its utilisation."""
    return {lane: f"{lane[0]}{' link' * lane[1]}  {100 * part:.0f} %" for lane, part in utilisation(trace).items()}


def _covered_s(events: Iterable[TraceEvent]) -> float:
    """Return the seconds that at least one event covers."""
    covered, end_s = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start_s):
        covered += max(0.0, event.stop_s - max(event.start_s, end_s))
        end_s = max(end_s, event.stop_s)
    return covered
