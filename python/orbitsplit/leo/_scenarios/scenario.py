"""Scenarios: a constellation with its computers, links and stations from a TOML file, every number with its origin."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from orbitsplit._io.files import read_text
from orbitsplit._io.toml import parse_toml
from orbitsplit._io.validation import listed, quoted
from orbitsplit._network.network import Network, Node
from orbitsplit.leo._orbits.build import single, walker_delta, walker_star
from orbitsplit.leo._orbits.constellation import Constellation, Equipment
from orbitsplit.leo._orbits.earth import EARTH_RADIUS_KM
from orbitsplit.leo._orbits.link_budget import FixedRate, KaBand, LinkRate, Optical
from orbitsplit.leo._orbits.stations import Station
from orbitsplit.leo._orbits.topology import Grid, Nearest, Topology
from orbitsplit.leo._orbits.validation import has_time_zone

from .devices import DEVICES
from .lint import Finding, lint
from .provenance import Sourced
from .toml_sections import Section

_KINDS = ("walker_delta", "walker_star", "train")
_BUDGETS: Mapping[str, type[Optical] | type[KaBand]] = {"optical": Optical, "ka_band": KaBand}


@dataclass(frozen=True)
class Scenario:
    """A constellation, the computer of each satellite, and the satellites that work together.

    `devices` has one node per satellite, and repeats along the constellation if there are fewer. `chain` names the
    satellites that work together. `numbers` has every number of the file with its origin, by its place in the file.

    Example:
        >>> scenario = Scenario.load("paper")
        >>> len(scenario.constellation), scenario.chain[0], str(scenario.numbers["constellation.altitude_km"])
        (12, 'sat-0', '500 [paper]')
    """

    name: str
    title: str
    constellation: Constellation
    devices: tuple[Node, ...]
    chain: tuple[str, ...]
    numbers: Mapping[str, Sourced]

    @classmethod
    def load(cls, path: str | Path) -> Scenario:
        """Read a scenario: a file that ends in .toml, or the name of one that ships with orbitsplit.

        Raises:
            ValueError: There is no such scenario, the file is not TOML, a key is missing or unknown, a number has no
                origin, or a value is wrong; the message names the place.
        """
        if str(path).endswith(".toml"):
            return cls.from_toml(read_text(path), source=str(path))
        if str(path) not in cls.names():
            raise ValueError(
                f"no scenario {quoted(str(path))}; there are: {', '.join(cls.names())}, or give a .toml file"
            )
        return cls.from_toml((_folder() / f"{path}.toml").read_text(encoding="utf-8"), source=str(path))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the scenarios that ship with orbitsplit."""
        return tuple(sorted(f.name.removesuffix(".toml") for f in _folder().iterdir() if f.name.endswith(".toml")))

    @classmethod
    def from_toml(cls, text: str, *, source: str = "scenario") -> Scenario:
        """Make a scenario from TOML text; `source` is its name, and is named in errors.

        Raises:
            ValueError: As `load`.
        """
        top = Section(source, parse_toml(text, source))
        top.check_keys(("title", "constellation", "links", "satellites"), ("devices", "stations", "chain"))
        known = {**_presets(), **_devices(top)}
        section = top.section("satellites")
        section.check_keys(("devices",))
        nodes = tuple(_device_named(known, name, f"{section.where}.devices") for name in section.texts("devices"))
        constellation = _constellation(top.section("constellation"))
        constellation = replace(
            constellation,
            equipment=_equipment(top.section("links"), nodes[0]),
            stations=tuple(_station(part, known) for part in top.sections("stations")),
        )
        return cls(
            name=Path(source).stem,
            title=top.text("title"),
            constellation=constellation,
            devices=nodes,
            chain=_chain(top, constellation),
            numbers=top.numbers,
        )

    def network(self, at: datetime | float | None = None) -> Network:
        """Return the network at an instant (default: the epoch), each satellite with its own computer.

        Raises:
            ValueError: As `Constellation.network`.
        """
        network = self.constellation.network(self.constellation.epoch if at is None else at)
        count = len(self.constellation)
        own = [
            replace(device, name=node.name)
            for node, device in zip(network.nodes[:count], itertools.cycle(self.devices), strict=False)
        ]
        return replace(network, nodes=(*own, *network.nodes[count:]))

    def lint(self, *, hours: float = 24.0, transfer_bytes: float | None = None) -> tuple[Finding, ...]:
        """Return what geometry does not allow, the links of the chain included; see `leo.lint`."""
        chains = [self.chain] if len(self.chain) > 1 else []
        return lint(self.constellation, hours=hours, chains=chains, transfer_bytes=transfer_bytes)

    def in_contact(self, satellite: str, *, hours: float = 48.0) -> datetime:
        """Return the middle of the highest pass of a satellite over a station with a node, from the epoch on.

        Raises:
            ValueError: There is no such satellite, or no pass.
        """
        self.constellation.index(satellite)
        serving = {station.name for station in self.constellation.stations if station.node is not None}
        start = self.constellation.epoch
        passes = [
            contact
            for contact in self.constellation.contacts(start, start + timedelta(hours=hours))
            if contact.satellite == satellite and contact.station in serving
        ]
        if not passes:
            raise ValueError(
                f"no station with a node sees satellite {quoted(satellite)} within {hours:g} h of the epoch"
            )
        return max(passes, key=lambda contact: contact.max_elevation_deg).highest


def _folder() -> Any:
    return resources.files("orbitsplit.leo") / "scenarios"


def _presets() -> dict[str, Node]:
    return {name: known.node() for name, known in DEVICES.items()}


def _devices(top: Section) -> dict[str, Node]:
    """Return the computers that the file itself describes."""
    nodes: dict[str, Node] = {}
    for section in top.sections("devices"):
        section.check_keys(("name", "memory"), ("headroom", "slowdown", "compute", "memory_bandwidth"))
        table, name = section.table, section.text("name")
        if name in nodes or name in DEVICES:
            raise ValueError(f"{section.where}: there is another device called {quoted(name)}")
        bandwidth = section.number("memory_bandwidth", kind="bytes_per_s") if "memory_bandwidth" in table else None
        try:
            nodes[name] = Node(
                name,
                int(section.number("memory", kind="bytes")),
                slowdown=section.number("slowdown") if "slowdown" in table else None,
                flop_per_s=section.number("compute", kind="flop_per_s") if "compute" in table else None,
                memory_bytes_per_s=bandwidth,
                headroom_bytes=int(section.number("headroom", 0, kind="bytes")),
            )
        except ValueError as error:
            raise _located(section, error) from None
    return nodes


def _device_named(known: Mapping[str, Node], name: str, where: str) -> Node:
    if name not in known:
        raise ValueError(f"{where} names {quoted(name)}; there are: {listed(known)}")
    return known[name]


def _constellation(section: Section) -> Constellation:
    kind = section.text("kind") if "kind" in section.table else None
    if kind not in _KINDS:
        raise ValueError(f"{section.where}.kind is {quoted(kind)}, must be one of {', '.join(_KINDS)}")
    common = ("kind", "total", "altitude_km", "inclination_deg")
    own = ("spacing_km",) if kind == "train" else ("planes", "phasing")
    section.check_keys((*common, *own), ("raan_deg", "epoch"))
    orbit: dict[str, Any] = {key: section.number(key) for key in ("altitude_km", "inclination_deg")}
    orbit["raan_deg"] = section.number("raan_deg", 0.0)
    if "epoch" in section.table:
        epoch = section.table["epoch"]
        if not has_time_zone(epoch):
            raise ValueError(f"{section.where}.epoch is {epoch}, must be a time with a zone: 2026-01-01T00:00:00Z")
        orbit["epoch"] = epoch
    total = section.count("total")
    try:
        if kind == "train":
            return _train(total, section.number("spacing_km"), orbit)
        walker = walker_delta if kind == "walker_delta" else walker_star
        return walker(total, section.count("planes"), section.count("phasing"), **orbit)
    except ValueError as error:
        raise _located(section, error) from None


def _train(total: int, spacing_km: float, orbit: Mapping[str, Any]) -> Constellation:
    """Return satellites one behind the other in one orbit, the first in front."""
    around_km = 2 * math.pi * (EARTH_RADIUS_KM + orbit["altitude_km"])
    if total < 1 or not 0 < spacing_km * total <= around_km:
        raise ValueError(
            f"{total} satellites {spacing_km:g} km apart do not fit into an orbit {around_km:,.0f} km around"
        )
    apart_deg = 360 * spacing_km / around_km
    members = [single(f"sat-{k}", mean_anomaly_deg=-k * apart_deg % 360, **orbit) for k in range(total)]
    satellites = tuple(satellite for member in members for satellite in member.satellites)
    return Constellation(f"train of {total}, {spacing_km:g} km apart", satellites)


def _equipment(section: Section, node: Node) -> Equipment:
    section.check_keys(
        (), ("isl", "downlink", "uplink", "topology", "terminals", "max_range_km", "acquisition_s", "margin_km")
    )
    settings: dict[str, Any] = {key: _rate(section, key) for key in ("isl", "downlink", "uplink")}
    if "margin_km" in section.table:
        settings["margin_km"] = section.number("margin_km")
    try:
        return Equipment(node, topology=_topology(section), **settings)
    except ValueError as error:
        raise _located(section, error) from None


def _rate(section: Section, key: str) -> LinkRate | None:
    """Return the rate of a link: a number with a unit, or the name of a link budget."""
    if key not in section.table:
        return None
    budget = section.choice(key, tuple(_BUDGETS))
    if budget is not None:
        return _BUDGETS[budget]()
    try:
        return FixedRate(section.number(key, kind="bytes_per_s"))
    except ValueError as error:
        # Of a value without its origin, nothing else is known to be wrong.
        is_unknown = isinstance(section.table[key], dict) and not str(error).startswith("the rate")
        also = f"; or one of {', '.join(_BUDGETS)}" if is_unknown else ""
        raise ValueError(f"{_located(section, error)}{also}") from None


def _topology(section: Section) -> Topology | None:
    kind = section.text("topology") if "topology" in section.table else None
    if kind not in (None, "grid", "nearest"):
        raise ValueError(f"{section.where}.topology is {quoted(kind)}, must be grid or nearest")
    acquisition_s = section.number("acquisition_s", 0.0)
    if kind == "nearest":
        limit = section.number("max_range_km") if "max_range_km" in section.table else None
        return Nearest(section.count("terminals", 4), acquisition_s, limit)
    for key in ("terminals", "max_range_km"):
        if key in section.table:
            raise ValueError(f'{section.where}.{key} needs topology = "nearest"')
    return Grid(acquisition_s) if kind == "grid" or acquisition_s else None


def _station(section: Section, known: Mapping[str, Node]) -> Station:
    numbers = ("altitude_km", "mask_deg", "acquisition_s")
    section.check_keys(("name", "latitude_deg", "longitude_deg"), ("device", "antennas", *numbers))
    given = {key: section.number(key) for key in numbers if key in section.table}
    device = section.text("device") if "device" in section.table else None
    try:
        return Station(
            section.text("name"),
            section.number("latitude_deg"),
            section.number("longitude_deg"),
            node=None if device is None else _device_named(known, device, f"{section.where}.device"),
            antennas=section.count("antennas") if "antennas" in section.table else None,
            **given,
        )
    except ValueError as error:
        raise _located(section, error) from None


def _chain(top: Section, constellation: Constellation) -> tuple[str, ...]:
    if "chain" not in top.table:
        return (constellation.names[0],)
    section = top.section("chain")
    section.check_keys(("satellites",))
    chain = section.texts("satellites")
    try:
        for name in chain:
            constellation.index(name)
    except ValueError as error:
        raise _located(section, error) from None
    if len(set(chain)) < len(chain):
        raise ValueError(f"{section.where} names a satellite twice: {', '.join(chain)}")
    return chain


def _located(section: Section, error: ValueError) -> ValueError:
    """Return the error with its section in front, unless it is there."""
    text = str(error)
    return ValueError(text if text.startswith(section.where) else f"{section.where}: {text}")
