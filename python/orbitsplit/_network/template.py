"""A network as a file for people: units, links in both directions as one table, and comments on every key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbitsplit._io.toml import format_value
from orbitsplit._io.units import UNITS

if TYPE_CHECKING:
    from .network import Link, Network, Node

_HEAD = """\
# Nodes of a network and the links between them, for `orbitsplit plan profile.json --network FILE`.
# Quantities have units: "8 GB" is 8e9 bytes, "8 GiB" 8 * 2^30 bytes; "10 Mbit/s" is "1.25 MB/s"; "5 ms".
# For completion in editors: `orbitsplit schema network -o network.schema.json`, and as the first line of this file
# "#:schema ./network.schema.json".
"""
_NODES = """\
# Nodes. On several machines, `orbitsplit node --name NAME` offers a machine as the node of this name.
#   memory     what a stage may take, beside the interpreter and its libraries (about 0.3 GB)
#   slowdown   how many times slower than the machine of `orbitsplit profile --measure`; below 1 for a faster one.
#              Instead: compute = "1.25 TFLOP/s", and with it memory_bandwidth = "204.8 GB/s"
# Optional:
#   headroom = "500 MB"   memory that is kept free of the stage
#   device = "cuda"       what runs the stage: "cpu" (default), "cuda", "cuda:1" or "mps"
#   half_duplex = true    a node that cannot compute and transmit at once
"""
_LINKS = """\
# Links. `between` is a link in each direction; source = "a" and destination = "b" one in one direction.
#   bandwidth  what is measured, for example by iperf3, rather than what is on the label
#   latency    of one direction: half of what ping prints
"""
_PINS = """\
# Layers that must run on a node, by name or index; []: the node must run at least one.
"""
_NO_PINS = """\
# [[pins]]
# node = {}
# layers = ["embeddings"]
"""
# The units that a person would choose, the largest first.
_CHOSEN = {
    "bytes": ("TB", "GB", "MB", "kB", "B"),
    "bytes_per_s": ("Gbit/s", "Mbit/s", "kbit/s", "bit/s"),
    "seconds": ("s", "ms", "us"),
    "flop_per_s": ("TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s"),
}


def template(network: Network) -> str:
    """Return a network as TOML text with units and comments; links that are alike in both directions are one table."""
    tables = [f"{_HEAD}name = {format_value(network.name)}\n", _NODES + _node(network.nodes[0])]
    tables += map(_node, network.nodes[1:])
    links = _links(network)
    tables += [_LINKS + links[0], *links[1:]] if links else [_LINKS]
    pins = [_table("pins", node=format_value(node), layers=format_value(list(layers))) for node, layers in network.pins]
    tables += [_PINS + pins[0], *pins[1:]] if pins else [_PINS + _NO_PINS.format(format_value(network.nodes[0].name))]
    return "\n".join(tables)


def _node(node: Node) -> str:
    return _table(
        "nodes",
        name=format_value(node.name),
        memory=_quantity(node.memory_bytes, "bytes"),
        headroom=_quantity(node.headroom_bytes, "bytes") if node.headroom_bytes else None,
        slowdown=None if node.slowdown is None else format_value(node.slowdown),
        compute=None if node.flop_per_s is None else _quantity(node.flop_per_s, "flop_per_s"),
        memory_bandwidth=None if node.memory_bytes_per_s is None else _quantity(node.memory_bytes_per_s, "bytes_per_s"),
        half_duplex="true" if node.half_duplex else None,
        device=None if node.device == "cpu" else format_value(node.device),
    )


def _links(network: Network) -> list[str]:
    rest = {(link.source, link.destination): link for link in network.links}
    made = []
    while rest:
        source, destination = next(iter(rest))
        link, back = rest.pop((source, destination)), rest.get((destination, source))
        if back is not None and (back.bytes_per_s, back.latency_s) == (link.bytes_per_s, link.latency_s):
            del rest[destination, source]
            made.append(_link(link, between=format_value([source, destination])))
        else:
            made.append(_link(link, source=format_value(source), destination=format_value(destination)))
    return made


def _link(link: Link, **ends: str) -> str:
    latency = _quantity(link.latency_s, "seconds") if link.latency_s else None
    return _table("links", **ends, bandwidth=_quantity(link.bytes_per_s, "bytes_per_s"), latency=latency)


def _quantity(value: float, kind: str) -> str:
    """Return a number with the largest unit in which it is at least 1 and the same number, else the bare number."""
    for unit in _CHOSEN[kind]:
        factor = UNITS[kind][unit]
        text = f"{value / factor:.12g}"
        if value >= factor and "e" not in text and float(text) * factor == value:
            return format_value(f"{text} {unit}")
    return format_value(value)


def _table(table: str, /, **keys: str | None) -> str:
    lines = [f"{key} = {value}\n" for key, value in keys.items() if value is not None]
    return "".join([f"[[{table}]]\n", *lines])
