"""A problem after nodes or links are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orbitsplit._io.validation import index_of

from .problem import Pins, Problem


def without(
    problem: Problem, *, nodes: Sequence[int | str] = (), links: Sequence[tuple[int | str, int | str]] = ()
) -> Problem:
    """Return the problem in which some nodes take no part and some links (from, to) do not exist.

    Nodes are given by name or index and keep their indices; pins that ask for them are dropped. Raises ValueError
    for one that does not exist.
    """
    names = [node.name for node in problem.nodes]

    def index(key: str, node: int | str) -> int:
        found = index_of(key, node, names)
        if not 0 <= found < len(names):
            raise ValueError(f"{key} is {found}, the nodes are 0 to {len(names) - 1}")
        return found

    gone = {index(f"nodes[{i}]", node) for i, node in enumerate(nodes)}
    bandwidth = problem.bandwidth_bytes_per_s.copy()
    for i, (a, b) in enumerate(links):
        bandwidth[index(f"links[{i}]: the first node", a), index(f"links[{i}]: the second node", b)] = 0
    pins = Pins(
        layers={layer: node for layer, node in problem.pins.layers.items() if node not in gone},
        required=tuple(node for node in problem.pins.required if node not in gone),
        forbidden=tuple(sorted({*problem.pins.forbidden, *gone})),
    )
    return replace(problem, bandwidth_bytes_per_s=bandwidth, pins=pins)
