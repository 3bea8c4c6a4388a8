"""Judges the trace of a flight, given as the JSON that was written: were links up when they were used, and wide enough?

It shares no code with what plans and flies: contacts, lines of sight and ranges are derived by `Sky` from the positions
of satellites, each second anew, and rates are those that the caller knows from the scenario.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from orbitsplit import leo

from .events import Sky

Rate = Callable[[str, str], float]
# What is sampled each second is known at half seconds, and a use shorter than that lies beside one.
_HALF_S = 0.5
FILES = ("input", "result")


def misuses(trace: Mapping[str, Any], constellation: leo.Constellation, rate: Rate) -> list[str]:
    """Return a sentence on each use of a link that was closed, or that carried more than its rate allows."""
    flight = trace["flight"]
    stop_s = max((sent[5] for sent in flight["transmissions"]), default=0.0)
    sky = Sky(constellation, datetime.fromisoformat(flight["epoch"]), int(stop_s) + 2)
    found = []
    for source, destination, carried, request, start_s, stop_s, _ in flight["transmissions"]:
        name = f"{carried} of request {request}, {source} to {destination} from {start_s:.2f} s to {stop_s:.2f} s"
        inside = list(_seconds(start_s, stop_s))
        is_open = all(sky.is_seen(source, destination, second) for second in inside)
        if not inside:
            is_open = any(sky.is_seen(source, destination, second) for second in _beside(start_s))
        if not is_open:
            found.append(f"{name}: the link is closed")
    return found + list(_overloads(flight["transmissions"], rate))


def unseen(trace: Mapping[str, Any], constellation: leo.Constellation) -> list[str]:
    """Return a sentence on each pass in the trace whose middle is none."""
    flight = trace["flight"]
    stop_s = max((row[3] for row in flight["passes"]), default=0.0)
    sky = Sky(constellation, datetime.fromisoformat(flight["epoch"]), int(stop_s) + 2)
    return [
        f"{satellite} is not seen by {station} at {(start_s + stop_s) / 2:.0f} s"
        for satellite, station, start_s, stop_s in flight["passes"]
        if not sky.is_seen(station, satellite, int((start_s + stop_s) / 2))
    ]


def _overloads(transmissions: Iterable[Any], rate: Rate) -> Iterator[str]:
    """Yield a sentence on each span in which all that a link carries at once is more than its rate allows.

    Files, and what stages send, each have the rate for themselves (docs/guides/flying.md).
    """
    carriers: dict[tuple[str, str, bool], list[tuple[float, float, int]]] = {}
    for source, destination, carried, _, start_s, stop_s, size in transmissions:
        carriers.setdefault((source, destination, carried in FILES), []).append((start_s, stop_s, size))
    for (source, destination, _), spans in carriers.items():
        for start_s, stop_s, size in _together(spans):
            if size > rate(source, destination) * (stop_s - start_s) * 1.001 + 1:
                yield (
                    f"{source} to {destination} from {start_s:.2f} s to {stop_s:.2f} s: {size} bytes are more than the "
                    "link carries"
                )


def _together(spans: Iterable[tuple[float, float, int]]) -> Iterator[tuple[float, float, int]]:
    """Yield spans with their bytes, those that overlap as one."""
    begin_s = end_s = -math.inf
    total = 0
    for start_s, stop_s, size in sorted(spans):
        if start_s >= end_s:
            if total:
                yield begin_s, end_s, total
            begin_s, end_s, total = start_s, stop_s, 0
        end_s, total = max(end_s, stop_s), total + size
    if total:
        yield begin_s, end_s, total


def _seconds(start_s: float, stop_s: float) -> Iterator[int]:
    """Yield the seconds whose middle lies in a span."""
    yield from range(math.ceil(start_s - _HALF_S), math.floor(stop_s - _HALF_S) + 1)


def _beside(at_s: float) -> tuple[int, ...]:
    """Return the seconds whose middles are next to an instant."""
    before = max(0, math.floor(at_s - _HALF_S))
    return before, before + 1
