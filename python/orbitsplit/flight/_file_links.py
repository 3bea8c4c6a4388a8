"""Files on emulated links: inputs and results of requests, chunk by chunk along the paths of a plan in time.

Only their bytes count. Every satellite on a path sends a chunk on when it has all of it, so that a file streams along
the path, and a link that several files take at once carries them one after the other.
"""

from __future__ import annotations

import threading
from itertools import pairwise

from orbitsplit._network.link_conditions import LinkConditions
from orbitsplit._plans.flight_log import FlightTransmission
from orbitsplit.runtime._emulation.link_shaper import LinkShaper

from ._clock import FlightClock

_CHUNKS = 64


class FileLinks:
    """The links that files take, under conditions in the scale of a clock."""

    def __init__(self, conditions: LinkConditions, clock: FlightClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._links = {
            (link.source, link.destination): LinkShaper(conditions=link, origin_s=clock.origin_s)
            for link in conditions.links
        }

    def send(
        self, path: tuple[str, ...], size: float, at_s: float, *, carried: str, request: int
    ) -> tuple[float, list[FlightTransmission]]:
        """Queue `size` bytes at `at_s` of the clock; return when all have arrived, and what the links carried."""
        count = max(1, min(_CHUNKS, int(size)))
        sent: list[FlightTransmission] = []
        arrival = queued = self._clock.monotonic_s(at_s)
        with self._lock:
            for k in range(count):
                chunk = round(size * (k + 1) / count) - round(size * k / count)
                arrival = queued
                for source, destination in pairwise(path):
                    start, stop, arrival = self._links[source, destination].stamp(max(chunk, 1), arrival)
                    span = self._clock.of_s(start), self._clock.of_s(stop)
                    sent.append(FlightTransmission(source, destination, carried, request, *span, chunk))
        return self._clock.of_s(arrival), _joined(sent)


def _joined(sent: list[FlightTransmission]) -> list[FlightTransmission]:
    """Return the transmissions of each link, those that follow each other without a pause as one."""
    found: dict[tuple[str, str], list[FlightTransmission]] = {}
    for one in sent:
        own = found.setdefault((one.source, one.destination), [])
        if own and one.start_s - own[-1].stop_s < 1e-6 * max(1.0, one.start_s):
            own[-1] = own[-1]._replace(stop_s=one.stop_s, bytes=own[-1].bytes + one.bytes)
        else:
            own.append(one)
    return [one for own in found.values() for one in own]
