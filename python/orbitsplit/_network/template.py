"""A network as a file for people: units, links in both directions as one table, and comments on every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orbitsplit._io.toml import format_value
from orbitsplit._io.units import UNITS

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


# The kinds of quantities by their keys; other values are written as they are.
_KINDS = {
    "memory": "bytes",
    "headroom": "bytes",
    "compute": "flop_per_s",
    "memory_bandwidth": "bytes_per_s",
    "bandwidth": "bytes_per_s",
    "latency": "seconds",
}

Keys = Mapping[str, object]
"""The keys of a table, None for one to be left out."""


def template(name: str, nodes: Sequence[Keys], links: Sequence[Keys], pins: Sequence[Keys]) -> str:
    """Return tables of a network file as text with units and comments; links alike in both directions are one table."""
    made = [_table("nodes", node) for node in nodes]
    tables = [f"{_HEAD}name = {format_value(name)}\n", _NODES + made[0], *made[1:]]
    made = [_table("links", link) for link in _joined(links)]
    tables += [_LINKS + made[0], *made[1:]] if made else [_LINKS]
    made = [_table("pins", pin) for pin in pins]
    tables += [_PINS + made[0], *made[1:]] if made else [_PINS + _NO_PINS.format(format_value(nodes[0]["name"]))]
    return "\n".join(tables)


def _joined(links: Sequence[Keys]) -> list[Keys]:
    """Return links with those that are alike in both directions as one."""
    rest = {(link["source"], link["destination"]): link for link in links}
    made: list[Keys] = []
    while rest:
        source, destination = next(iter(rest))
        link, back = rest.pop((source, destination)), rest.get((destination, source))
        others = {key: value for key, value in link.items() if key not in ("source", "destination")}
        if back is not None and all(back[key] == value for key, value in others.items()):
            del rest[destination, source]
            made.append({"between": [source, destination], **others})
        else:
            made.append(link)
    return made


def _quantity(value: float, kind: str) -> str:
    """Return a number with the largest unit in which it is at least 1 and the same number, else the bare number."""
    for unit in _CHOSEN[kind]:
        factor = UNITS[kind][unit]
        text = f"{value / factor:.12g}"
        if value >= factor and "e" not in text and float(text) * factor == value:
            return format_value(f"{text} {unit}")
    return format_value(value)


def _table(table: str, keys: Keys) -> str:
    lines = []
    for key, value in keys.items():
        if key in _KINDS and isinstance(value, (int, float)):
            lines.append(f"{key} = {_quantity(value, _KINDS[key])}\n")
        elif value is not None:
            lines.append(f"{key} = {format_value(value)}\n")
    return "".join([f"[[{table}]]\n", *lines])
