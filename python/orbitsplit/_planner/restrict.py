"""A problem without some of its nodes and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orbitsplit._io.validation import check_kind, index_of, quoted, tuple_of

from .problem import Problem
from .problem_parts import Pins


def without(
    problem: Problem, *, nodes: Sequence[int | str] = (), links: Sequence[tuple[int | str, int | str]] = ()
) -> Problem:
    """Return the problem in which some nodes are forbidden and some links, given as (source, destination), are missing.

    Nodes are given by name or index and keep their indices; pins to them are dropped.

    Raises:
        ValueError: There is no such node.
        TypeError: An argument has another type.

    >>> left = without(problem, nodes=["sat-1"], links=[("sat-0", "sat-2")])    # doctest: +SKIP
    """
    check_kind("problem", problem, Problem)
    names = [node.name for node in problem.nodes]

    def index(key: str, node: int | str) -> int:
        found = index_of(key, node, names)
        if not 0 <= found < len(names):
            raise ValueError(f"{key} is {found}, the nodes are 0 to {len(names) - 1}")
        return found

    gone = {index(f"nodes[{i}]", node) for i, node in enumerate(tuple_of("nodes", nodes))}
    bandwidth = problem.bandwidth_bytes_per_s.copy()
    for i, link in enumerate(tuple_of("links", links)):
        if len(ends := tuple_of(f"links[{i}]", link)) != 2:
            raise ValueError(f"links[{i}] is {quoted(link)}, must be a pair (source, destination)")
        source, destination = ends
        bandwidth[index(f"links[{i}]: the source", source), index(f"links[{i}]: the destination", destination)] = 0
    pins = Pins(
        layers={layer: node for layer, node in problem.pins.layers.items() if node not in gone},
        required=tuple(node for node in problem.pins.required if node not in gone),
        forbidden=tuple(sorted({*problem.pins.forbidden, *gone})),
    )
    return replace(problem, bandwidth_bytes_per_s=bandwidth, pins=pins)
