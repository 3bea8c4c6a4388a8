"""Judges the trace of a flight, given as the JSON that was written: were links up when they were used, and wide enough?

It shares no code with what plans and flies: contacts, lines of sight and ranges are derived by `Sky` from the positions
of satellites, each second anew, and rates are those that the caller knows from the scenario.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from orbitsplit import leo

from .events import Sky

Rate = Callable[[str, str], float]
# What is sampled each second is known at half seconds, and a use shorter than that lies beside one.
_HALF_S = 0.5


def misuses(trace: Mapping[str, Any], constellation: leo.Constellation, rate: Rate) -> list[str]:
    """Return a sentence on each use of a link that was closed, or that carried more than its rate allows."""
    flight = trace["flight"]
    stop_s = max((sent[5] for sent in flight["transmissions"]), default=0.0)
    sky = Sky(constellation, datetime.fromisoformat(flight["epoch"]), int(stop_s) + 2)
    found = []
    for source, destination, carried, request, start_s, stop_s, size in flight["transmissions"]:
        name = f"{carried} of request {request}, {source} to {destination} from {start_s:.2f} s to {stop_s:.2f} s"
        inside = list(_seconds(start_s, stop_s))
        is_open = all(sky.is_seen(source, destination, second) for second in inside)
        if not inside:
            is_open = any(sky.is_seen(source, destination, second) for second in _beside(start_s))
        if not is_open:
            found.append(f"{name}: the link is closed")
        if size > rate(source, destination) * (stop_s - start_s) * 1.001 + 1:
            found.append(f"{name}: {size} bytes are more than the link carries")
    return found


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


def _seconds(start_s: float, stop_s: float) -> Iterator[int]:
    """Yield the seconds whose middle lies in a span."""
    yield from range(math.ceil(start_s - _HALF_S), math.floor(stop_s - _HALF_S) + 1)


def _beside(at_s: float) -> tuple[int, ...]:
    """Return the seconds whose middles are next to an instant."""
    before = max(0, math.floor(at_s - _HALF_S))
    return before, before + 1
