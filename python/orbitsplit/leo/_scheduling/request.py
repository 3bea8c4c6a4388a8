"""What is asked, from the arguments of planning in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from orbitsplit._network.network import Node
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._orbits.constellation import Constellation
from orbitsplit.leo._orbits.validation import check_moment, check_name, check_real, names_of
from orbitsplit.leo._scenarios.scenario import Scenario

from .contact_plan import Timetable
from .energy import Power, powers_by_name
from .store_and_forward import Carrier
from .strategies import Asked


def table_of(
    constellation: Constellation | Timetable,
    requested: datetime,
    deadline_s: float,
    step_s: float,
    satellites: Sequence[str] | None,
) -> Timetable:
    """Return the links from the request to the deadline, or those given."""
    _check_constellation(constellation)
    # Before anything is taken off the request, so that errors show the time that was given.
    check_moment("requested", requested)
    check_real("deadline_s", deadline_s)
    check_real("step_s", step_s)
    members = None if satellites is None else names_of("satellites", satellites)
    if members == ():
        raise ValueError("satellites is empty, at least one must take part; None: all do")
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise ValueError(f"deadline_s is {deadline_s}, must be finite and > 0")
    if isinstance(constellation, Constellation):
        stop = requested + timedelta(seconds=deadline_s)
        return Timetable.of(constellation, requested, stop, step_s=step_s, satellites=members)
    if not 0 <= constellation.seconds(requested) < constellation.stop_s:
        stop = constellation.datetime(constellation.stop_s)
        raise ValueError(f"the request is of {requested}, the timetable is of {constellation.start} to {stop}")
    return constellation


def asked_of(
    profile: ModelProfile,
    workload: Workload,
    table: Timetable,
    ends: tuple[str, Sequence[str] | None],
    sizes: tuple[float, float],
    computers: Mapping[str, Node] | None,
    *,
    relays: bool = True,
) -> Asked:
    """Return what is asked, apart from codecs and limits. `ends` are source and destination, `sizes` in and out."""
    for name, size in zip(("input_bytes", "output_bytes"), sizes, strict=True):
        check_real(name, size)
        if not (math.isfinite(size) and size >= 0):
            raise ValueError(f"{name} is {size}, must be finite and at least 0")
    source, destination = ends
    grounds = [station.name for station in table.stations]
    receivers = _receivers(destination, grounds)
    _check_source(source, table, grounds)
    senders = (grounds.index(source),) if source in grounds else ()
    down_to = tuple(grounds.index(name) for name in receivers)
    carrier = Carrier(table, senders, down_to, relays=relays)
    place = carrier.ground if senders else table.satellites.index(source)
    nodes = _computers(table, computers)
    return Asked(profile, workload, table, nodes, float(sizes[0]), float(sizes[1]), place, down_to, carrier)


def _check_constellation(value: Any) -> None:
    if isinstance(value, Scenario):
        raise TypeError(f"the constellation is the Scenario {value.name!r}; pass its .constellation")
    if not isinstance(value, (Constellation, Timetable)):
        raise TypeError(f"the constellation is {value!r}, expected a Constellation or a Timetable")


def _receivers(destination: Sequence[str] | None, grounds: list[str]) -> tuple[str, ...]:
    """Return the stations that may take the result."""
    if destination is None:
        return tuple(grounds)
    receivers = names_of("destination", destination)
    if not receivers:
        raise ValueError(f"destination is empty, at least one station is needed; the stations are {', '.join(grounds)}")
    for name in receivers:
        if name not in grounds:
            raise ValueError(f"no station {name!r}; the stations are {', '.join(grounds)}")
    return receivers


def _check_source(source: str, table: Timetable, grounds: list[str]) -> None:
    check_name("source", source)
    if source in grounds or source in table.satellites:
        return
    if source in table.constellation.names:
        members = ", ".join(table.satellites[:5]) + (", ..." if len(table.satellites) > 5 else "")
        raise ValueError(f"the source {source!r} does not take part; the satellites that do are {members}")
    names = ", ".join((*table.satellites[:5], *grounds))
    raise ValueError(f"no satellite or station {source!r}; there are {names}")


def _computers(table: Timetable, computers: Mapping[str, Node] | None) -> dict[str, Node]:
    """Return the computers by name: the equipment's, the stations', and in place of them those given."""
    equipment = table.constellation.equipment
    assert equipment is not None  # a timetable has links
    nodes = dict.fromkeys(table.satellites, equipment.node)
    nodes |= {station.name: station.node for station in table.stations if station.node is not None}
    given = {} if computers is None else computers
    if not isinstance(given, Mapping):
        raise TypeError(f"computers is {given!r}, expected nodes by name")
    for name, node in given.items():
        if not isinstance(node, Node):
            raise TypeError(f"the computer of {name!r} is {node!r}, expected a Node")
        if name not in nodes:
            raise ValueError(f"computers name {name!r}, which is no satellite or station with a node")
        nodes[name] = node
    return nodes


def powers_of(power: Power | Mapping[str, Power] | None, table: Timetable) -> dict[str, Power]:
    """Return the power limits by satellite."""
    if power is None:
        return {}
    powers = powers_by_name(power, table.satellites)
    for name in powers:
        if name not in table.satellites:
            raise ValueError(f"power names {name!r}, which is no satellite that takes part")
    return powers
