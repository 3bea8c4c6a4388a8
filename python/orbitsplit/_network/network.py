"""Nodes and the links between them at one instant, usually read from a TOML file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._io.deprecation import renamed_attribute, takes_renamed
from orbitsplit._io.device_names import CPU, check_device_name
from orbitsplit._io.files import read_text, write_text
from orbitsplit._io.toml import check_table_keys, format_value, parse_toml, quantity_of, tables_of
from orbitsplit._io.validation import check_boolean, check_number, check_string, listed, quoted, tuple_of

from .link_ends import end_keys, ends_of
from .template import template

_NODE_QUANTITIES = {
    "memory": "bytes",
    "headroom": "bytes",
    "compute": "flop_per_s",
    "memory_bandwidth": "bytes_per_s",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A computer with a memory and a speed: either `slowdown`, or `flop_per_s` and optionally `memory_bytes_per_s`.

    Attributes:
        name: Unique name.
        memory_bytes: Memory in bytes, without what the Python interpreter takes.
        slowdown: How many times slower than the machine that measured the profile; below 1 for a faster node.
        flop_per_s: Compute rate.
        memory_bytes_per_s: Rate of reading weights, which bounds decoding; None: not counted.
        headroom_bytes: Memory that is not for weights, keys and values, and workspace. A plan keeps at least what the
            process of a stage takes for itself, which may be more.
        half_duplex: Whether the node cannot compute and transmit at once.
        device: What runs a stage on the node, as torch names it: "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: No speed, two speeds, or a number out of range.
        TypeError: A field has another type.
    """

    name: str
    memory_bytes: int
    slowdown: float | None = None
    flop_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    headroom_bytes: int = 0
    half_duplex: bool = False
    device: str = CPU

    def __post_init__(self) -> None:
        check_string("name of a node", self.name)
        check_device_name(f"device of node {quoted(self.name)}", self.device)
        check_boolean(f"half_duplex of node {quoted(self.name)}", self.half_duplex)
        if (self.slowdown is None) == (self.flop_per_s is None):
            raise ValueError(f"node {quoted(self.name)} needs a speed: either slowdown or compute, not both")
        for name in ("memory_bytes", "headroom_bytes", "slowdown", "flop_per_s", "memory_bytes_per_s"):
            value = getattr(self, name)
            if value is None and name not in ("memory_bytes", "headroom_bytes"):
                continue
            check_number(f"{name} of node {quoted(self.name)}", value)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of node {quoted(self.name)} is {value}, must be finite and at least 0")
        if self.slowdown == 0:
            raise ValueError(f"slowdown of node {quoted(self.name)} is 0, must be above 0")
        if self.flop_per_s == 0 or self.memory_bytes_per_s == 0:
            raise ValueError(f"compute and memory_bandwidth of node {quoted(self.name)} must be positive, one is 0")
        if self.headroom_bytes > self.memory_bytes:
            raise ValueError(
                f"headroom of node {quoted(self.name)} is {self.headroom_bytes} bytes, its memory {self.memory_bytes}"
            )


@takes_renamed(target="destination")
@dataclass(frozen=True, slots=True)
class Link:
    """A directed connection between two nodes.

    Attributes:
        source: Name of the sending node.
        destination: Name of the receiving node.
        bytes_per_s: Rate.
        latency_s: Propagation delay of each message, which does not occupy the link.

    Raises:
        ValueError: Source and destination are the same node, or a number is out of range.
        TypeError: A field has another type.
    """

    source: str
    destination: str
    bytes_per_s: float
    latency_s: float = 0.0

    target = renamed_attribute("Link.target", "destination")

    def __post_init__(self) -> None:
        check_string("source of a link", self.source)
        check_string("destination of a link", self.destination)
        if self.source == self.destination:
            raise ValueError(f"link from node {quoted(self.source)} to itself")
        check_number(f"bandwidth of {quoted(self.source)} -> {quoted(self.destination)}", self.bytes_per_s)
        check_number(f"latency of {quoted(self.source)} -> {quoted(self.destination)}", self.latency_s)
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(
                f"bandwidth of {quoted(self.source)} -> {quoted(self.destination)} is {self.bytes_per_s}, must be > 0"
            )
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(
                f"latency of {quoted(self.source)} -> {quoted(self.destination)} is {self.latency_s}, must be >= 0"
            )


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes and directed links at one instant.

    Attributes:
        name: Name of the network.
        nodes: The nodes.
        links: The links, at most one from each node to each other node.
        pins: The layers, by name or index, that nodes must run, as pairs (node, layers). A node without layers must run
            at least one. `plan` applies them.

    Example:
        >>> network = Network.sample("cubesat_chain")
        >>> [node.name for node in network.nodes]
        ['sat-0', 'sat-1', 'sat-2', 'sat-3']

    Raises:
        ValueError: No node, a name used twice, or a link or pin of a node that does not exist.
    """

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    pins: tuple[tuple[str, tuple[str | int, ...]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple_of("nodes", self.nodes, Node))
        object.__setattr__(self, "links", tuple_of("links", self.links, Link))
        names = Counter(node.name for node in self.nodes)  # keeps the order; constellations have thousands of nodes
        if not names:
            raise ValueError("a network needs at least one node")
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"{count} nodes are called {quoted(name)}, names must differ")
        pairs: set[tuple[str, str]] = set()
        for link in self.links:
            for end in (link.source, link.destination):
                if end not in names:
                    raise ValueError(f"a link names node {quoted(end)}; the nodes are {listed(names)}")
            if (link.source, link.destination) in pairs:
                raise ValueError(f"two links from {quoted(link.source)} to {quoted(link.destination)}")
            pairs.add((link.source, link.destination))
        for k, pin in enumerate(tuple_of("pins", self.pins)):
            if len(tuple_of(f"pins[{k}]", pin)) != 2:
                raise ValueError(f"pins[{k}] is {quoted(pin)}, must be a pair (node, layers)")
        pinned = [node for node, _ in self.pins]
        for node in pinned:
            if node not in names:
                raise ValueError(f"a pin names node {quoted(node)}; the nodes are {listed(names)}")
            if pinned.count(node) > 1:
                raise ValueError(f"node {quoted(node)} has {pinned.count(node)} lists of pins, expected one")

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """Read a network from a TOML file; quantities may carry a unit (`"10 Mbit/s"`, `"8 GB"`, `"5 ms"`).

        A bare number is in bytes, bytes per second, seconds or FLOP/s.

        The file has `name`, `[[nodes]]` with `name`, `memory`, a speed (`slowdown`, or `compute` and optionally
        `memory_bandwidth`), optional `headroom`, `half_duplex` and `device`; and `[[links]]` with `bandwidth`, optional
        `latency` and either `source` and `destination` (one way; `from` and `to` in files of version 0.1) or
        `between = [a, b]` (both ways). `[[pins]]`, optional, has `node` and `layers`, a list of names and indices.

        Raises:
            ValueError: The file is not TOML, or a key is missing, unknown or has a wrong value.
        """
        return cls.from_toml(read_text(path), source=str(path))

    def save(self, path: str | Path) -> None:
        """Write the network as TOML; `load` returns one that is equal."""
        # Encoded before the file is opened: a name that UTF-8 cannot encode leaves an existing file unchanged.
        write_text(path, self.to_toml())

    @classmethod
    def sample(cls, name: str) -> Network:
        """Read a network that ships with orbitsplit, e.g. `cubesat_chain`.

        Raises:
            ValueError: There is no such sample; the message lists the samples.
        """
        folder = resources.files("orbitsplit") / "networks"
        names = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
        if name not in names:
            raise ValueError(f"no sample network {quoted(name)}; there are: {listed(names)}")
        return cls.from_toml((folder / f"{name}.toml").read_text(encoding="utf-8"), source=name)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "network") -> Network:
        """Make a network from TOML text; `source` is named in errors. See `load` for the keys.

        Raises:
            ValueError: As `load`.
        """
        data = parse_toml(text, source)
        check_table_keys(data, required=("nodes",), optional=("name", "links", "pins"), where=source)
        nodes = tuple(_node(table, f"{source}: nodes[{k}]") for k, table in enumerate(tables_of(data, "nodes", source)))
        links = [
            link
            for k, table in enumerate(tables_of(data, "links", source))
            for link in _links(table, f"{source}: links[{k}]")
        ]
        pins = [_pin(table, f"{source}: pins[{k}]") for k, table in enumerate(tables_of(data, "pins", source))]
        try:
            return cls(name=str(data.get("name", source)), nodes=nodes, links=tuple(links), pins=tuple(pins))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    def to_toml(self, *, comments: bool = False) -> str:
        """Return the network as TOML text; `from_toml` takes it back.

        With `comments` it is a file to edit: every key is explained, quantities have units, and links that are alike in
        both directions are one table, which changes their order.
        """
        check_boolean("comments", comments)
        nodes, links = [*map(_node_keys, self.nodes)], [*map(_link_keys, self.links)]
        pins = [{"node": node, "layers": list(layers)} for node, layers in self.pins]
        if comments:
            return template(self.name, nodes, links, pins)
        tables = [f"# Bytes, bytes per second, seconds and FLOP/s.\nname = {format_value(self.name)}\n"]
        tables += [_table_of("nodes", node) for node in nodes]
        tables += [_table_of("links", link) for link in links]
        tables += [_table_of("pins", pin) for pin in pins]
        return "\n".join(tables)

    def index(self, node: str) -> int:
        """Return the position of the node with this name.

        Raises:
            ValueError: There is no such node.
        """
        names = [n.name for n in self.nodes]
        if node not in names:
            raise ValueError(f"no node {quoted(node)}; the nodes are {listed(names)}")
        return names.index(node)

    def without(self, nodes: Sequence[str] = (), links: Sequence[tuple[str, str]] = ()) -> Network:
        """Return the network without some nodes, their links and pins, and some links, given as (source, destination).

        Raises:
            ValueError: There is no such node, or no node is left. Links that do not exist are ignored.
        """
        for node in nodes:
            self.index(node)
        gone = {*nodes}
        return replace(
            self,
            nodes=tuple(node for node in self.nodes if node.name not in gone),
            links=tuple(
                link
                for link in self.links
                if not gone & {link.source, link.destination} and (link.source, link.destination) not in links
            ),
            pins=tuple(pin for pin in self.pins if pin[0] not in gone),
        )

    def bandwidth_bytes_per_s(self) -> npt.NDArray[np.float64]:
        """Return the link rates (N, N) in bytes per second, from row to column; 0: no link."""
        return self._matrix("bytes_per_s")

    def latency_s(self) -> npt.NDArray[np.float64]:
        """Return the link latencies (N, N) in seconds, from row to column; 0 where there is no link."""
        return self._matrix("latency_s")

    def _matrix(self, attribute: str) -> npt.NDArray[np.float64]:
        matrix = np.zeros((len(self.nodes), len(self.nodes)))
        position = {node.name: k for k, node in enumerate(self.nodes)}
        for link in self.links:
            matrix[position[link.source], position[link.destination]] = getattr(link, attribute)
        return matrix


def _node(table: Mapping[str, Any], where: str) -> Node:
    optional = ("slowdown", "compute", "memory_bandwidth", "headroom", "half_duplex", "device")
    check_table_keys(table, required=("name", "memory"), optional=optional, where=where)
    values = {
        key: quantity_of(table[key], kind, f"{where}.{key}") for key, kind in _NODE_QUANTITIES.items() if key in table
    }
    half_duplex = table.get("half_duplex", False)
    if not isinstance(half_duplex, bool):
        raise ValueError(f"{where}.half_duplex is {quoted(half_duplex)}, expected true or false")
    slowdown = table.get("slowdown")
    if slowdown is not None and (isinstance(slowdown, bool) or not isinstance(slowdown, (int, float))):
        raise ValueError(f"{where}.slowdown is {quoted(slowdown)}, expected a number")
    try:
        return Node(
            name=str(table["name"]),
            memory_bytes=_whole(table["memory"], values["memory"]),
            slowdown=slowdown,
            flop_per_s=values.get("compute"),
            memory_bytes_per_s=values.get("memory_bandwidth"),
            headroom_bytes=_whole(table.get("headroom", 0), values.get("headroom", 0.0)),
            half_duplex=half_duplex,
            device=table.get("device", CPU),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _pin(table: Mapping[str, Any], where: str) -> tuple[str, tuple[str | int, ...]]:
    check_table_keys(table, required=("node", "layers"), optional=(), where=where)
    layers = table["layers"]
    if not isinstance(layers, list):
        raise ValueError(f"{where}.layers is {quoted(layers)}, expected a list of layers")
    for k, layer in enumerate(layers):
        if isinstance(layer, bool) or not isinstance(layer, (str, int)):
            raise ValueError(f"{where}.layers[{k}] is {quoted(layer)}, expected a name or an index")
    return str(table["node"]), tuple(layers)


def _whole(given: object, parsed: float) -> int:
    """Return bytes as given if that is an integer: a float has only 53 bits."""
    return given if isinstance(given, int) else int(parsed)


def _links(table: Mapping[str, Any], where: str) -> list[Link]:
    """Return the one or two directed links of a table."""
    check_table_keys(table, required=(*end_keys(table), "bandwidth"), optional=("latency",), where=where)
    source, destination = ends_of(table, where)
    pairs = [(source, destination), (destination, source)] if "between" in table else [(source, destination)]
    rate = quantity_of(table["bandwidth"], "bytes_per_s", f"{where}.bandwidth")
    latency = quantity_of(table.get("latency", 0.0), "seconds", f"{where}.latency")
    try:
        return [Link(str(a), str(b), rate, latency) for a, b in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _node_keys(node: Node) -> dict[str, object]:
    """Return the keys that `_node` reads, None for a key to be left out."""
    return {
        "name": node.name,
        "memory": node.memory_bytes,
        "headroom": node.headroom_bytes or None,
        "slowdown": node.slowdown,
        "compute": node.flop_per_s,
        "memory_bandwidth": node.memory_bytes_per_s,
        "half_duplex": node.half_duplex or None,
        "device": None if node.device == CPU else node.device,
    }


def _link_keys(link: Link) -> dict[str, object]:
    """Return the keys that `_links` reads, None for a key to be left out. `between` would change the links' order."""
    return {
        "source": link.source,
        "destination": link.destination,
        "bandwidth": link.bytes_per_s,
        "latency": link.latency_s or None,
    }


def _table_of(name: str, keys: Mapping[str, object]) -> str:
    lines = [f"{key} = {format_value(value)}\n" for key, value in keys.items() if value is not None]
    return "".join([f"[[{name}]]\n", *lines])
