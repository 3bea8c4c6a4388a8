"""One setting of the experiments: satellites, links and input, and the planning problem that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from orbitsplit._network.network import Link, Network, Node
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.problem_parts import ExternalLink
from orbitsplit._plans.problem_building import build_problem
from orbitsplit._profiling.profile import ModelProfile
from orbitsplit._profiling.workload import Workload
from orbitsplit.leo._scenarios.scenario import Scenario

from .published import BATCH, CLASSES, LOSS_BUDGET, MODEL_SIDE, PAPER_CODEC, RESOLUTIONS, SAMPLE_BYTES, Codec

GBIT = 1e9 / 8
# The rate where the data already are; a problem has no infinite rates.
_AT_ONCE = 1e30

# What a scenario must have to be a setting.
_NEEDED = (
    "a chain of two satellites or more, each linked to the next; a station with a device that serves the last of them;"
    " compute in FLOP/s of every computer; memory on the satellites that together holds the model"
)

# Assumed: batches of one request, one after the other; the paper only gives the size of a batch.
BATCHES = 16
# Assumed: the resolution where the paper varies something else.
RESOLUTION = "720p"


@dataclass(frozen=True)
class Setup:
    """Images are taken on the first of `satellites`; the one `hops` links further is in contact with the ground.

    Satellites form a chain, each linked to the next. Rates in bytes per second; `image` in pixels.
    """

    profile: ModelProfile
    satellites: tuple[Node, ...]
    server: Node
    isl_bytes_per_s: float
    isl_latency_s: float
    downlink_bytes_per_s: float
    downlink_latency_s: float
    hops: int
    image: tuple[int, int] = RESOLUTIONS[RESOLUTION]
    batches: int = BATCHES
    codec: Codec = PAPER_CODEC
    loss_budget: float = LOSS_BUDGET

    def __post_init__(self) -> None:
        if not 0 <= self.hops < len(self.satellites):
            raise ValueError(f"hops is {self.hops}, must be from 0 to {len(self.satellites) - 1}, the last satellite's")

    @classmethod
    def of(cls, scenario: Scenario, profile: ModelProfile) -> Setup:
        """Return the setting of a scenario whose chain starts where images are taken and ends in contact.

        Raises:
            ValueError: The chain is one satellite, links are missing, no station with a node serves the last
                satellite, or a computer's speed is a slowdown; the message lists the requirements.
        """
        chain = scenario.chain
        if len(chain) < 2:
            raise unusable(scenario, f"its chain is {chain[0]} alone")
        network = scenario.network(_contact(scenario))
        isl, down = _links(scenario, network)
        satellites = tuple(network.nodes[network.index(name)] for name in chain)
        server = network.nodes[network.index(down.destination)]
        slow = [f"{node.name} {node.slowdown:g}" for node in (*satellites, server) if node.slowdown is not None]
        if slow:
            raise unusable(scenario, f"computers have a slowdown ({', '.join(slow)}), and nothing is measured here")
        return cls(
            profile=profile,
            satellites=satellites,
            server=server,
            isl_bytes_per_s=min(link.bytes_per_s for link in isl),
            isl_latency_s=max(link.latency_s for link in isl),
            downlink_bytes_per_s=down.bytes_per_s,
            downlink_latency_s=down.latency_s,
            hops=len(chain) - 1,
        )

    def varied(self, **changes: Any) -> Setup:
        """Return the setting with other values; the rates also as `isl_gbit` and `downlink_gbit`."""
        for key in ("isl", "downlink"):
            if f"{key}_gbit" in changes:
                changes[f"{key}_bytes_per_s"] = GBIT * changes.pop(f"{key}_gbit")
        return replace(self, **changes)

    def faster(self, factor: float) -> Setup:
        """Return the setting with satellites and server that compute faster by a factor."""

        def scaled(node: Node) -> Node:
            assert node.flop_per_s is not None
            return replace(node, flop_per_s=factor * node.flop_per_s)

        return replace(self, satellites=tuple(scaled(node) for node in self.satellites), server=scaled(self.server))

    @property
    def raw_bytes(self) -> float:
        """Bytes of a batch of raw images."""
        return float(BATCH * SAMPLE_BYTES * self.image[0] * self.image[1])

    @property
    def input_bytes(self) -> float:
        """Bytes of a batch of the model's input, resized on the first satellite."""
        return float(BATCH * SAMPLE_BYTES * MODEL_SIDE**2)

    @property
    def result_bytes(self) -> float:
        """Bytes of a batch's result."""
        return float(BATCH * CLASSES * 4)

    @property
    def server_index(self) -> int:
        """Index of the server among the nodes of a problem that has it."""
        return len(self.satellites)

    def problem(self) -> Problem:
        """Return the problem of the satellites alone: input at the first, result down to the ground."""
        return self._problem(self.satellites, self._relayed_links(), self.input_bytes)

    def problem_with_server(self, *, input_bytes: float | None = None) -> Problem:
        """Return the problem of the satellites and the server; the input is at the first satellite.

        Each hop has a link of its own, so that relays are pipelined. `input_bytes` None: the raw images.
        """
        links = [
            Link(self.satellites[a].name, self.satellites[b].name, self.isl_bytes_per_s, self.isl_latency_s)
            for k in range(len(self.satellites) - 1)
            for a, b in ((k, k + 1), (k + 1, k))
        ]
        contact = self.satellites[self.hops].name
        links.append(Link(contact, self.server.name, self.downlink_bytes_per_s, self.downlink_latency_s))
        found = self._problem(
            (*self.satellites, self.server), links, self.raw_bytes if input_bytes is None else input_bytes
        )
        assert found.ingress is not None
        first = np.zeros(len(found.nodes))
        first[0] = _AT_ONCE
        return replace(found, ingress=replace(found.ingress, bandwidth_bytes_per_s=first))

    def problem_of_all(self) -> Problem:
        """Return the problem in which the server may run stages too, the first one on raw images.

        A relay over several links counts as one link that is slower by their number.
        """
        links = self._relayed_links()
        for k, satellite in enumerate(self.satellites):
            rate, latency = self._down_from(k)
            links.append(Link(satellite.name, self.server.name, rate, latency))
        found = self._problem((*self.satellites, self.server), links, self.input_bytes)
        assert found.ingress is not None
        rate, latency = self._down_from(0)
        bandwidth, latencies = found.ingress.bandwidth_bytes_per_s.copy(), found.ingress.latency_s.copy()
        bandwidth[-1], latencies[-1] = rate * self.input_bytes / self.raw_bytes, latency
        return replace(found, ingress=replace(found.ingress, bandwidth_bytes_per_s=bandwidth, latency_s=latencies))

    def _relayed_links(self) -> list[Link]:
        """Return links between all satellites: over k hops, store and forward takes k times as long."""
        return [
            Link(a.name, b.name, self.isl_bytes_per_s / abs(i - j), self.isl_latency_s * abs(i - j))
            for i, a in enumerate(self.satellites)
            for j, b in enumerate(self.satellites)
            if i != j
        ]

    def _down_from(self, satellite: int) -> tuple[float, float]:
        """Return rate and latency from a satellite to the ground, over the satellite in contact."""
        hops = abs(satellite - self.hops)
        rate = 1 / (hops / self.isl_bytes_per_s + 1 / self.downlink_bytes_per_s)
        return rate, hops * self.isl_latency_s + self.downlink_latency_s

    def _problem(self, nodes: tuple[Node, ...], links: list[Link], input_bytes: float) -> Problem:
        workload = Workload(
            micro_batches=self.batches, batch_size=BATCH, prompt_tokens=self.profile.prompt_tokens, new_tokens=0
        )
        cuts = len(self.profile.layers) - 1
        found = build_problem(
            self.profile,
            Network("experiment", nodes, tuple(links)),
            workload,
            levels=self.codec.table(cuts),
            loss_budget=self.loss_budget,
        )
        count = len(self.satellites)
        at = np.arange(count)
        down = np.array([self._down_from(k) for k in range(count)])
        ingress = {
            "bandwidth": np.concatenate([[_AT_ONCE], self.isl_bytes_per_s / at[1:]]),
            "latency": self.isl_latency_s * at,
        }
        egress = {"bandwidth": down[:, 0], "latency": down[:, 1]}
        more = len(nodes) - count
        workspace = self.profile.workspace_bytes
        return replace(
            found,
            # Only weights and workspace: these experiments leave out other memory of our processes (libraries, batches
            # that wait).
            layer_memory_bytes=np.array([layer.weight_bytes for layer in self.profile.layers], dtype=np.float64),
            nodes=tuple(replace(node, headroom_bytes=min(node.memory_bytes, workspace)) for node in found.nodes),
            ingress=_external(input_bytes, ingress, more),
            egress=_external(self.result_bytes, egress, more),
        )


def unusable(scenario: Scenario, fact: str) -> ValueError:
    """Return the error of a scenario that cannot be a setting, with the requirements."""
    return ValueError(
        f"scenario {scenario.name!r} cannot be used for the paper's experiments: {fact}. They need {_NEEDED}"
    )


def _contact(scenario: Scenario) -> datetime:
    """Return when the last satellite of the chain is in contact."""
    stations = scenario.constellation.stations
    if all(station.node is None for station in stations):
        raise unusable(scenario, f"of its {len(stations)} stations none has a device")
    try:
        return scenario.in_contact(scenario.chain[-1])
    except ValueError as error:
        raise unusable(scenario, str(error)) from None


def _links(scenario: Scenario, network: Network) -> tuple[list[Link], Link]:
    """Return the links from each satellite of the chain to the next, and one from the last to a station."""
    links = {(link.source, link.destination): link for link in network.links}
    missing = [f"{a} to {b}" for a, b in pairwise(scenario.chain) if (a, b) not in links]
    if missing:
        raise unusable(scenario, f"there is no link from {', from '.join(missing)}")
    last, ground = scenario.chain[-1], {station.name for station in scenario.constellation.stations}
    down = [link for link in network.links if link.source == last and link.destination in ground]
    if not down:
        raise unusable(scenario, f"there is no link from {last} to a station")
    return [links[pair] for pair in pairwise(scenario.chain)], down[0]


def _external(size: float, link: Mapping[str, Any], more: int) -> ExternalLink:
    """Return an external link of the satellites, and of `more` nodes on the ground, which take no time."""
    return ExternalLink(
        bytes=size,
        bandwidth_bytes_per_s=np.concatenate([link["bandwidth"], np.full(more, _AT_ONCE)]),
        latency_s=np.concatenate([link["latency"], np.zeros(more)]),
    )
