"""Equal nodes, recognised once, as in cpp/src/planner/node_classes.hpp, which says what a class bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.time_limit import TimeLimit

from .cost import generates
from .options import Options
from .problem import ExternalLink, Floats, Problem, copy_times_of_nodes
from .root import Incumbent, offer

_MOST_LAYERED_NODES = 256
_MOST_LABELS_OF_CLASSES = 200_000
_MOST_CHAIN_STEPS = 20_000  # when a chain of given classes is looked for

Solve = Callable[[Problem, Options], dict[str, Any]]


class ClassBound(NamedTuple):
    """A lower bound of every plan, and the labels of the search in the layered problem."""

    lower_bound_s: float = 0.0
    labels: int = 0


def bound_by_classes(
    problem: Problem, options: Options, time_limit: TimeLimit, incumbent: Incumbent, solve: Solve
) -> tuple[ClassBound, Incumbent]:
    """Bound plans by walks over classes, and offer a plan along the best one.

    The bound is 0 where no nodes are equal, where there are too many classes, with pins of layers or required nodes,
    and where tokens return to the first node.
    """
    nodes, pins = len(problem.nodes), problem.pins
    positions = min(nodes, len(problem.layers), options.max_nodes or nodes)
    if generates(problem) or pins.layers or pins.required:
        return ClassBound(), incumbent
    classes = node_classes(problem, min(_MOST_LAYERED_NODES // positions, nodes - 1), time_limit)
    if classes is None:
        return ClassBound(), incumbent
    layered = _Layered(problem, classes, positions)
    inner = options._replace(
        max_nodes=None,
        time_limit_s=time_limit.remaining_s(),
        max_labels=min(options.max_labels, _MOST_LABELS_OF_CLASSES),
        max_bytes=max(1, options.max_bytes // 2),
        incumbent=np.empty((0, 5), dtype=np.int32),
    )
    found = solve(layered.problem(), inner)
    chain = layered.chain_of([row[0] for row in found["stages"]])
    if chain:
        rows = np.array(found["stages"], dtype=np.int32)
        rows[:, 0] = chain
        incumbent = offer(problem, options.objective, rows, incumbent)
    bound = 0.0 if found["status"] == "infeasible" else found["lower_bound_s"]
    return ClassBound(bound, found["labels"]), incumbent


def node_classes(problem: Problem, most: int, time_limit: TimeLimit) -> NDArray[np.intp] | None:
    """Return the class of each node, numbered by their first nodes.

    None if there are more than `most` classes, or at the time limit.
    """
    classes = _numbered([_attributes(problem, n) for n in range(len(problem.nodes))])
    count = 0
    while count < classes.max() + 1 <= most:
        count = int(classes.max()) + 1
        keys = []
        for n in range(len(problem.nodes)):
            if time_limit.must_end():
                return None
            keys.append(_signature(problem, n, classes))
            if len(keys) % 64 == 0 and len(set(keys)) > most:
                return None
        finer = _numbered(keys)
        if finer.max() + 1 == count:
            return classes
        classes = finer
    return None


def _numbered(keys: list[Any]) -> NDArray[np.intp]:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def _attributes(problem: Problem, node: int) -> tuple[Any, ...]:
    """Return what a node is, its links left out."""
    of = problem.nodes[node]
    values: list[Any] = [of.memory_bytes - of.headroom_bytes, of.half_duplex, node in problem.pins.forbidden]
    for times in copy_times_of_nodes(problem, [node]).values():
        if times is not None:
            values += times.ravel().tolist()
    for link in (problem.ingress, problem.egress):
        if link is not None:
            values += [float(link.bandwidth_bytes_per_s[node]), float(link.latency_s[node])]
    return tuple(values)


def _signature(problem: Problem, node: int, classes: NDArray[np.intp]) -> tuple[Any, ...]:
    """Return the class of a node and the kinds of its links to each class."""
    others = _others(problem, node)
    kinds = zip(
        classes[others].tolist(),
        problem.bandwidth_bytes_per_s[node, others].tolist(),
        problem.latency_s[node, others].tolist(),
        strict=True,
    )
    return int(classes[node]), tuple(sorted(set(kinds)))


def _others(problem: Problem, node: int) -> NDArray[np.intp]:
    """Return the nodes that a node has a link to."""
    others = np.flatnonzero(problem.bandwidth_bytes_per_s[node] > 0)
    return others[others != node]


class _Layered:
    """The layered problem, and a chain of nodes for a walk in it."""

    def __init__(self, problem: Problem, classes: NDArray[np.intp], positions: int) -> None:
        self._problem = problem
        self._classes = classes
        self._positions = positions
        self._count = int(classes.max()) + 1
        self._first_of = [int(np.argmax(classes == c)) for c in range(self._count)]
        # The best link of a node to each class. Of links of which none is best in both, the best of each bounds both.
        self._bandwidth = np.zeros((self._count, self._count))
        self._latency = np.zeros((self._count, self._count))
        for c, node in enumerate(self._first_of):
            others = _others(problem, node)
            for d in range(self._count):
                to = others[classes[others] == d]
                if len(to):
                    self._bandwidth[c, d] = problem.bandwidth_bytes_per_s[node, to].max()
                    self._latency[c, d] = problem.latency_s[node, to].min()

    def problem(self) -> Problem:
        """Return the layered problem."""
        problem = self._problem
        at = np.tile(self._first_of, self._positions)
        forbidden = tuple(k for k, node in enumerate(at.tolist()) if node in problem.pins.forbidden)
        values = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)} | {
            "order": "fixed",
            "nodes": tuple(problem.nodes[node] for node in at.tolist()),
            **copy_times_of_nodes(problem, at),
            "bandwidth_bytes_per_s": self._links(self._bandwidth),
            "latency_s": self._links(self._latency),
            "ingress": self._first_position(at),
            "egress": None if problem.egress is None else _at_nodes(problem.egress, at),
            "pins": dataclasses.replace(problem.pins, forbidden=forbidden),
        }
        layered: Problem = dataclasses.make_dataclass("LayeredProblem", list(values))(**values)
        return layered

    def _first_position(self, at: NDArray[np.intp]) -> ExternalLink:
        """Return an ingress that has a chain start at the first position."""
        nothing = _ExternalLink(0.0, np.ones(len(self._classes)), np.zeros(len(self._classes)))
        link = _at_nodes(self._problem.ingress or nothing, at)
        is_first = np.arange(len(at)) < self._count
        return dataclasses.replace(link, bandwidth_bytes_per_s=np.where(is_first, link.bandwidth_bytes_per_s, 0.0))

    def chain_of(self, walk: list[int]) -> list[int]:
        """Return a chain of nodes that repeats none for nodes of the layered problem; empty if none was found.

        Of several the one with the smallest first node, then second node, and so on.
        """
        chain: list[int] = []
        self._steps = 0
        return chain if self._extend([at % self._count for at in walk], chain) else []

    def _extend(self, wanted: list[int], chain: list[int]) -> bool:
        if len(chain) == len(wanted):
            return True
        for node in np.flatnonzero(self._classes == wanted[len(chain)]).tolist():
            if not self._may_follow(chain, node):
                continue
            self._steps += 1
            if self._steps > _MOST_CHAIN_STEPS:
                return False
            chain.append(node)
            if self._extend(wanted, chain):
                return True
            chain.pop()
        return False

    def _may_follow(self, chain: list[int], node: int) -> bool:
        if not chain:
            return True
        if node in chain:
            return False
        last, problem = chain[-1], self._problem
        kind = self._classes[last], self._classes[node]
        return bool(
            problem.bandwidth_bytes_per_s[last, node] == self._bandwidth[kind]
            and problem.latency_s[last, node] == self._latency[kind]
        )

    def _links(self, of_classes: Floats) -> Floats:
        """Return the links from each position to the next one."""
        count = self._count
        links = np.zeros((self._positions * count, self._positions * count))
        for position in range(self._positions - 1):
            first = position * count
            links[first : first + count, first + count : first + 2 * count] = of_classes
        return links


@dataclasses.dataclass(frozen=True)
class _ExternalLink:
    bytes: float
    bandwidth_bytes_per_s: Floats
    latency_s: Floats


def _at_nodes(link: ExternalLink, nodes: NDArray[np.intp]) -> _ExternalLink:
    return _ExternalLink(link.bytes, link.bandwidth_bytes_per_s[nodes], link.latency_s[nodes])
