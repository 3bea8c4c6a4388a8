"""Constellations in low Earth orbit, their networks over time, and plans in time. Needs the extra `leo` (sgp4).

Example:
    >>> from orbitsplit import Node, leo
    >>> ring = leo.walker_delta(12, 1, 0, altitude_km=500, inclination_deg=53)
    >>> network = ring.equipped(leo.Equipment(Node("jetson", 8_000_000_000, slowdown=4))).network(at=ring.epoch)
    >>> len(network.links)
    24
"""

from __future__ import annotations

from ._orbits.build import from_tle, load, single, walker_delta, walker_star
from ._orbits.constellation import Constellation, Equipment
from ._orbits.contacts import Contact
from ._orbits.earth import delay_s, line_of_sight, maximal_range_km, period_s, range_km
from ._orbits.link_budget import FixedRate, KaBand, LinkRate, Optical
from ._orbits.satellites import Satellite
from ._orbits.stations import Station
from ._orbits.times import Times
from ._orbits.topology import Grid, Nearest, Topology
from ._orbits.walker import Pattern
from ._scenarios.devices import DEVICES, Device, calibrated, calibrated_node, device
from ._scenarios.lint import Finding, lint, lint_chain, lint_collisions
from ._scenarios.provenance import ORIGINS, Sourced
from ._scenarios.scenario import Scenario
from ._scheduling.baselines import start_now, wait_for_pass
from ._scheduling.contact_plan import Timetable
from ._scheduling.energy import Power, energy_j
from ._scheduling.plan_in_time import plan_in_time
from ._scheduling.plan_requests import plan_requests
from ._scheduling.request import StrategyOptions, TimedRequest
from ._scheduling.timed_plan import Alternative, Handover, Relay, TimedPlan, Transfer

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
    "Relay",
    "Satellite",
    "Scenario",
    "Sourced",
    "Station",
    "StrategyOptions",
    "TimedPlan",
    "TimedRequest",
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
    "plan_requests",
    "range_km",
    "single",
    "start_now",
    "wait_for_pass",
    "walker_delta",
    "walker_star",
]
