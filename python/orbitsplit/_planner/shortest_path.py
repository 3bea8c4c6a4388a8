"""The quickest way through a network, for data that several nodes may have."""

from __future__ import annotations

import math

import numpy as np

from orbitsplit._io.validation import Array


def shortest_path_to(entry_s: Array, link_s: Array, node: int) -> tuple[int, ...]:
    """Return the nodes of the quickest way to `node`, () where there is none (Dijkstra; ties to the lower index).

    `entry_s` (N,) has the seconds at which the data are at each node before any link, `link_s` (N, N) those that
    each link adds; infinite where there is nothing.
    """
    distance = entry_s.copy()
    before = np.full(len(distance), -1)
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
        before[sooner] = at
    path = [node]
    while before[path[0]] >= 0:
        path.insert(0, int(before[path[0]]))
    return tuple(path)


def transmission_s(size_bytes: float, bandwidth_bytes_per_s: Array) -> Array:
    """Return the seconds to send over each link, infinite where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bandwidth_bytes_per_s > 0, size_bytes / bandwidth_bytes_per_s, math.inf)
