"""Shortest paths in seconds through a network, for data that several nodes may have."""

from __future__ import annotations

import math

import numpy as np

from orbitsplit._io.validation import Array


def shortest_path_to(entry_s: Array, link_s: Array, node: int) -> tuple[int, ...]:
    """Return the nodes of the shortest path to `node`, () if there is none (Dijkstra; ties to the lower index).

    `entry_s` (N,) is when each node has the data without any link, `link_s` (N, N) what each link adds; infinite if a
    node does not have them, or if there is no link.
    """
    distance = entry_s.copy()
    previous = np.full(len(distance), -1)
    is_open = np.ones(len(distance), dtype=bool)
    while True:
        at = int(np.argmin(np.where(is_open, distance, math.inf)))
        if not is_open[at] or distance[at] == math.inf:
            return ()
        if at == node:
            break
        is_open[at] = False
        reached = distance[at] + link_s[at]
        sooner = is_open & (reached < distance)
        distance[sooner] = reached[sooner]
        previous[sooner] = at
    path = [node]
    while previous[path[0]] >= 0:
        path.insert(0, int(previous[path[0]]))
    return tuple(path)


def transmission_s(size_bytes: float, bandwidth_bytes_per_s: Array) -> Array:
    """Return the seconds of transmission over each link, infinite where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bandwidth_bytes_per_s > 0, size_bytes / bandwidth_bytes_per_s, math.inf)
