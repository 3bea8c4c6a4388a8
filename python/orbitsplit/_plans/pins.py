"""Pins of a plan, by names: the layers that must run on a node, from the network file and from the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orbitsplit._io.validation import check_is_integer, listed, quoted
from orbitsplit._network.network import Network
from orbitsplit._planner.problem import Problem

# The layers, by name or index, that each of these nodes must run; a node without layers must run at least one.
LayerPins = Mapping[str, Sequence[str | int]]

# The number of pins that a message names.
_MOST_NAMED = 4


def check_pins(pins: LayerPins, nodes: Sequence[str]) -> None:
    """Raise TypeError or ValueError, naming the pin, for what is no mapping from these nodes to lists of layers."""
    if not isinstance(pins, Mapping):
        raise TypeError(f"pins is {type(pins).__name__}, must be a mapping from nodes to lists of layers")
    for node, layers in pins.items():
        if node not in nodes:
            raise ValueError(f"pins name node {quoted(node)}; the nodes are {listed(nodes)}")
        if isinstance(layers, (str, bytes)) or not isinstance(layers, Sequence):
            raise TypeError(f"pins of node {quoted(node)} are {quoted(layers)}, must be a list of layers")


def pins_of(pins: LayerPins | None, network: Network, layers: Sequence[str]) -> dict[str, Any] | None:
    """Return the pins of a problem with these layers, None without any.

    The pins of the network hold for the nodes that `pins` does not name.

    Raises:
        TypeError: A pin is of another type.
        ValueError: There is no such node or layer, or a layer is pinned to two nodes; the message names it.
    """
    nodes = [node.name for node in network.nodes]
    given = {} if pins is None else pins
    check_pins(given, nodes)
    named = {**dict(network.pins), **given}
    if not named:
        return None
    node_of: dict[int, str] = {}
    for node, pinned in named.items():
        for layer in pinned:
            index = _index_of(layer, node, layers)
            if node_of.setdefault(index, node) != node:
                raise ValueError(
                    f"layer {quoted(layers[index])} is pinned to two nodes, {quoted(node_of[index])} and {quoted(node)}"
                )
    required = [node for node, pinned in named.items() if not pinned]
    return {"layers": {str(index): node for index, node in node_of.items()}, "required": required}


def without_nodes(pins: LayerPins, nodes: Sequence[str]) -> LayerPins:
    """Return the pins of all other nodes."""
    return {node: layers for node, layers in pins.items() if node not in nodes}


def describe_pins(problem: Problem) -> list[str]:
    """Return a sentence on the pins of a problem, as part of an error; [] without any."""
    texts = [
        f"{quoted(problem.layers[k])} on {quoted(problem.nodes[n].name)}"
        for k, n in sorted(problem.pins.layers.items())
    ]
    texts += [f"a stage on {quoted(problem.nodes[n].name)}" for n in problem.pins.required]
    if not texts:
        return []
    more = f" and {len(texts) - _MOST_NAMED} others" if len(texts) > _MOST_NAMED else ""
    return [f"the pins ask for {', '.join(texts[:_MOST_NAMED])}{more}"]


def _index_of(layer: str | int, node: str, layers: Sequence[str]) -> int:
    if isinstance(layer, str):
        if layers.count(layer) != 1:
            raise ValueError(f"node {quoted(node)} is pinned to layer {quoted(layer)}; the layers are {listed(layers)}")
        return layers.index(layer)
    check_is_integer(f"a layer pinned to node {quoted(node)}", layer)
    if not 0 <= layer < len(layers):
        raise ValueError(f"node {quoted(node)} is pinned to layer {layer}, must be from 0 to {len(layers) - 1}")
    return int(layer)
