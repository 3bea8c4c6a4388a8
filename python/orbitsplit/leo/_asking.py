"""What is asked, from the arguments of planning in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from orbitsplit._network import Node
from orbitsplit._plan import Workload
from orbitsplit._profile import ModelProfile
from orbitsplit._typed import check_number

from ._carrying import Carrier
from ._constellation import Constellation
from ._power import Power
from ._timetable import Timetable
from ._ways import Asked


def table_of(
    constellation: Constellation | Timetable,
    requested: datetime,
    deadline_s: float,
    step_s: float,
    satellites: Sequence[str] | None,
) -> Timetable:
    """Return the links from the request to the deadline, or those given."""
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise ValueError(f"deadline_s is {deadline_s}, must be finite and > 0")
    if isinstance(constellation, Constellation):
        stop = requested + timedelta(seconds=deadline_s)
        return Timetable.of(constellation, requested, stop, step_s=step_s, satellites=satellites)
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
        check_number(name, size)
        if not (math.isfinite(size) and size >= 0):
            raise ValueError(f"{name} is {size}, must be finite and at least 0")
    source, destination = ends
    grounds = [station.name for station in table.stations]
    receivers = grounds if destination is None else list(destination)
    for name in receivers:
        if name not in grounds:
            raise ValueError(f"no station {name!r}; the stations are {', '.join(grounds)}")
    if source not in grounds and source not in table.satellites:
        names = ", ".join((*table.satellites[:5], *grounds))
        raise ValueError(f"no satellite or station {source!r}; there are {names}")
    senders = (grounds.index(source),) if source in grounds else ()
    down_to = tuple(grounds.index(name) for name in receivers)
    carrier = Carrier(table, senders, down_to, relays=relays)
    place = carrier.ground if senders else table.satellites.index(source)
    nodes = _computers(table, computers)
    return Asked(profile, workload, table, nodes, float(sizes[0]), float(sizes[1]), place, down_to, carrier)


def _computers(table: Timetable, computers: Mapping[str, Node] | None) -> dict[str, Node]:
    """Return the computers by name: the equipment's, the stations', and in place of them those given."""
    equipment = table.constellation.equipment
    assert equipment is not None  # a timetable has links
    nodes = dict.fromkeys(table.satellites, equipment.node)
    nodes |= {station.name: station.node for station in table.stations if station.node is not None}
    for name, node in (computers or {}).items():
        if name not in nodes:
            raise ValueError(f"computers name {name!r}, which is no satellite or station with a node")
        nodes[name] = node
    return nodes


def powers_of(power: Power | Mapping[str, Power] | None, table: Timetable) -> dict[str, Power]:
    """Return the power limits by satellite."""
    if power is None:
        return {}
    if isinstance(power, Power):
        return dict.fromkeys(table.satellites, power)
    for name in power:
        if name not in table.satellites:
            raise ValueError(f"power names {name!r}, which is no satellite that takes part")
    return dict(power)
