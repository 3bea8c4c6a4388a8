"""The links of a contact plan as conditions that the runtime emulates: rates by range, outages, light time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from orbitsplit._network.link_conditions import LinkConditions, LinkShape
from orbitsplit.leo import Timetable, delay_s

from ._clock import changed_rates


def contact_links(contact_plan: Timetable, stations: Sequence[str]) -> LinkConditions:
    """Return the conditions of all links between the satellites, and of those from and to `stations`.

    Delays are the longest of a link while it is up, which is what plans count with.
    """
    names = (*contact_plan.satellites, *stations)
    pairs = [pair for pair in itertools.permutations(names, 2) if not set(pair) <= set(stations)]
    return LinkConditions(tuple(_shape(contact_plan, source, destination) for source, destination in pairs))


def _shape(contact_plan: Timetable, source: str, destination: str) -> LinkShape:
    rates = contact_plan.rate_bytes_per_s(source, destination)
    edges_s = contact_plan.edges_s.tolist()
    is_up = rates > 0
    if not is_up.any():
        return LinkShape(source, destination, down=((0.0, math.inf),))
    longest_km = float(_range_km(contact_plan, source, destination)[is_up].max())
    return LinkShape(
        source,
        destination,
        latency_s=float(delay_s(np.array(longest_km))),
        rates=changed_rates(edges_s, rates.tolist()),
        down=_outages(edges_s, is_up.tolist()),
    )


def _range_km(contact_plan: Timetable, source: str, destination: str) -> np.ndarray:
    stations = [station.name for station in contact_plan.stations]
    if source in stations or destination in stations:
        satellite, station = (destination, source) if source in stations else (source, destination)
        return contact_plan.ground_km[:, contact_plan.satellites.index(satellite), stations.index(station)]
    return contact_plan.isl_km[:, contact_plan.satellites.index(source), contact_plan.satellites.index(destination)]


def _outages(edges_s: Sequence[float], is_up: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Return start and end of each span without a link; the last one does not end."""
    found: list[tuple[float, float]] = []
    for k, up in enumerate(is_up):
        if up:
            continue
        stop_s = math.inf if k + 1 == len(is_up) else edges_s[k + 1]
        if found and found[-1][1] == edges_s[k]:
            found[-1] = found[-1][0], stop_s
        else:
            found.append((edges_s[k], stop_s))
    return tuple(found)
