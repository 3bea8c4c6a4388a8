"""Transfer of weights before a plan can run: what moves where, over which links, and how long it takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orbitsplit._io.validation import Array

from .problem import Problem
from .problem_parts import Stage
from .shortest_path import shortest_path_to, transmission_s


@dataclass(frozen=True, slots=True)
class Move:
    """A transfer of the weights of consecutive layers.

    Attributes:
        start: Index of the first layer.
        stop: Index after the last layer.
        path: Indices of the nodes from the source, which has the weights, to the destination, which needs them.
        bytes: Size of the weights.
        weight_level: Index of their weight level, None if the problem has no weight levels.
    """

    start: int
    stop: int
    path: tuple[int, ...]
    bytes: float
    weight_level: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON-ready data, without a weight level that it does not have."""
        fields = asdict(self)
        if self.weight_level is None:
            del fields["weight_level"]
        return fields


class Weights:
    """Which nodes have the weights of which layers (`held`, W x N x L), and their bytes (`weight_bytes`, W x L).

    W is the number of weight levels, 1 without any.
    """

    def __init__(self, problem: Problem, held: NDArray[np.bool_], weight_bytes: Array) -> None:
        self._problem = problem
        self._held = held
        self._weight_bytes = weight_bytes
        bandwidth = problem.bandwidth_bytes_per_s.copy()
        for gone in problem.pins.forbidden:
            bandwidth[gone], bandwidth[:, gone] = 0, 0
        self._bandwidth = bandwidth

    def moves(self, stages: Sequence[Stage]) -> tuple[Move, ...]:
        """Return the moves of what each node lacks of its stage, each layer over the shortest path from a source.

        Raises ValueError if no node that has a layer can reach the one that needs it.
        """
        found: list[Move] = []
        for stage in stages:
            level = stage.weight_level or 0
            for layer in range(stage.start, stage.stop):
                if not self._held[level, stage.node, layer]:
                    found.append(self._move(level, layer, stage.node))
        return tuple(_joined(found))

    def seconds(self, moves: Sequence[Move]) -> float:
        """Return how long the moves take: links transmit in parallel, each one its bytes in sequence.

        Weights are sent in pieces small against the whole, so that a relay transmits while it receives; the longest
        propagation along a path is added.
        """
        transmitted: dict[tuple[int, int], float] = defaultdict(float)
        delay = 0.0
        for move in moves:
            for hop in pairwise(move.path):
                transmitted[hop] += move.bytes
            delay = max(delay, sum(float(self._problem.latency_s[hop]) for hop in pairwise(move.path)))
        return delay + max((size / float(self._bandwidth[hop]) for hop, size in transmitted.items()), default=0.0)

    def fetch_s(self) -> Array:
        """Return the seconds to move each layer alone to each node: 0 if it is there, infinite if it cannot.

        The shape is that of the problem's layer_time_s: (N, L), with weight levels (W, N, L).
        """
        seconds = np.zeros(self._held.shape)
        for level, node, layer in np.argwhere(~self._held):
            try:
                seconds[level, node, layer] = self.seconds([self._move(int(level), int(layer), int(node))])
            except ValueError:
                seconds[level, node, layer] = math.inf
        return seconds.reshape(self._problem.layer_time_s.shape)

    def _move(self, level: int, layer: int, node: int) -> Move:
        size = float(self._weight_bytes[level, layer])
        entry = np.where(self._held[level, :, layer], 0.0, math.inf)
        path = shortest_path_to(entry, transmission_s(size, self._bandwidth) + self._problem.latency_s, node)
        if not path:
            names = self._problem.layers, self._problem.nodes[node].name
            fact = f'the weights of layer {layer} ("{names[0][layer]}")'
            if self._problem.weight_levels:
                fact = f'{fact} in "{self._problem.weight_levels[level].name}"'
            if not self._held[level, :, layer].any():
                raise ValueError(f"{fact} are on no remaining node, nor in a store")
            raise ValueError(f'{fact} cannot reach node "{names[1]}" from any node that has them')
        return Move(layer, layer + 1, path, size, level if self._problem.weight_levels else None)


def _joined(moves: Sequence[Move]) -> list[Move]:
    """Join moves of adjacent layers along the same path; what one node gets has one weight level."""
    joined: list[Move] = []
    for move in moves:
        if joined and (joined[-1].stop, joined[-1].path) == (move.start, move.path):
            joined[-1] = replace(joined[-1], stop=move.stop, bytes=joined[-1].bytes + move.bytes)
        else:
            joined.append(move)
    return joined
