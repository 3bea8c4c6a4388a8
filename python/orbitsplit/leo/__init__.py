"""Constellations in low Earth orbit: what yields networks over time. Needs the extra `leo` (sgp4).

Example:
    >>> from orbitsplit import Node, leo
    >>> ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    >>> network = ring.equipped(leo.Equipment(Node("jetson", 8_000_000_000, slowdown=4))).network(at=ring.epoch)
    >>> len(network.links)
    24
"""

from __future__ import annotations

from ._build import from_tle, load, single, walker_delta, walker_star
from ._by_rule import start_now, wait_for_pass
from ._constellation import Constellation, Equipment
from ._contacts import Contact
from ._devices import DEVICES, Device, calibrated, calibrated_node, device
from ._earth import delay_s, line_of_sight, maximal_range_km, period_s, range_km
from ._in_time import plan_in_time
from ._lint import Finding, lint, lint_chain, lint_collisions
from ._origin import ORIGINS, Sourced
from ._pattern import Pattern
from ._power import Power, energy_j
from ._rates import FixedRate, KaBand, LinkRate, Optical
from ._satellites import Satellite
from ._scenario import Scenario
from ._stations import Station
from ._timed_plan import Alternative, Handover, TimedPlan, Transfer
from ._times import Times
from ._timetable import Timetable
from ._topology import Grid, Nearest, Topology

__all__ = [
    "DEVICES",
    "ORIGINS",
    "Alternative",
    "Constellation",
    "Contact",
    "Device",
    "Equipment",
    "Finding",
    "FixedRate",
    "Grid",
    "Handover",
    "KaBand",
    "LinkRate",
    "Nearest",
    "Optical",
    "Pattern",
    "Power",
    "Satellite",
    "Scenario",
    "Sourced",
    "Station",
    "TimedPlan",
    "Times",
    "Timetable",
    "Topology",
    "Transfer",
    "calibrated",
    "calibrated_node",
    "delay_s",
    "device",
    "energy_j",
    "from_tle",
    "line_of_sight",
    "lint",
    "lint_chain",
    "lint_collisions",
    "load",
    "maximal_range_km",
    "period_s",
    "plan_in_time",
    "range_km",
    "single",
    "start_now",
    "wait_for_pass",
    "walker_delta",
    "walker_star",
]
