"""k-cycle elimination in networks too large for visited sets, as in cpp/src/planner/k_cycle.hpp, which explains it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orbitsplit._numba.time_limit import TimeLimit

from .cost_to_go import bounds_through
from .metrics import Metric
from .root import Root
from .tables import Floats, Ints, Tables

Flags = NDArray[np.bool_]


class _Links(NamedTuple):
    """The links between kept vertices: both ends, and the links' numbers in the tables."""

    source: Ints
    destination: Ints
    number: Ints


def promising_vertices(t: Tables, metrics: list[Metric], root: Root, time_limit: TimeLimit) -> Flags:
    """Return by vertex whether a plan that improves on the incumbent may pass it, as far as the intervals tell."""
    # A better plan is in some interval of every metric, and that interval's bounds on its vertices hold for it.
    is_kept = np.ones(len(t.node_of), dtype=np.bool_)
    for metric, intervals in zip(metrics, root.intervals, strict=True):
        least = np.full(len(t.node_of), math.inf)
        for interval in intervals:
            bound: Floats = np.zeros(len(t.node_of))
            for r in interval.relaxations:
                sums = bounds_through(t, metric, r, time_limit)
                bound = np.maximum(bound, sums - r.multiplier * t.loss_limit + interval.low)
            least = np.minimum(least, bound)
        is_kept &= least < root.incumbent.cutoff()
    return is_kept


def extended_link_count(t: Tables, is_kept: Flags) -> float:
    """Return the number of links between vertices after `extend_vertices`."""
    ends = _kept_links(t, is_kept).destination
    return float((1 + t.neighbour_start[ends + 1] - t.neighbour_start[ends]).sum())


def extend_vertices(t: Tables, is_kept: Flags) -> Tables:
    """Return the tables with k increased by one for the kept vertices and without the others.

    A vertex that remembers k nodes becomes one for each outgoing link, and remains for chains of exactly k stages.
    """
    links = _kept_links(t, is_kept)
    is_longer = t.remembered[links.source] == t.k_cycle
    longer_source, longer_destination = links.source[is_longer], links.destination[is_longer]
    same = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
    longer = np.full(len(t.neighbour), -1)
    longer[links.number[is_longer]] = int(is_kept.sum()) + np.arange(len(longer_destination))
    kept = np.flatnonzero(is_kept)
    vertex = np.concatenate([kept, longer_destination])
    remembered = np.concatenate([t.remembered[kept], np.full(len(longer_destination), t.k_cycle + 1)])
    oldest = np.concatenate([t.oldest[kept], t.oldest[longer_source]])
    counts = (t.neighbour_start[1:] - t.neighbour_start[:-1])[vertex]
    source = np.repeat(np.arange(len(vertex)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.repeat(t.neighbour_start[vertex], counts) + within
    neighbour = np.where(t.remembered[vertex[source]] == t.k_cycle, longer[index], same[t.neighbour[index]])
    repeats = (remembered[source] > t.k_cycle) & (t.node_of[t.neighbour[index]] == oldest[source])
    stays = (neighbour >= 0) & ~repeats
    source, neighbour, index = source[stays], neighbour[stays], index[stays]
    return t._replace(
        k_cycle=t.k_cycle + 1,
        node_of=t.node_of[vertex],
        remembered=remembered,
        oldest=oldest,
        start_vertex=np.where(t.start_vertex >= 0, same[t.start_vertex], -1),
        neighbour_start=np.searchsorted(source, np.arange(len(vertex) + 1)).astype(np.int64),
        neighbour=neighbour,
        bandwidth=t.bandwidth[index],
        s_per_byte=t.s_per_byte[index],
        latency=t.latency[index],
    )


def _kept_links(t: Tables, is_kept: Flags) -> _Links:
    source = np.repeat(np.arange(len(t.node_of)), np.diff(t.neighbour_start))
    index = np.flatnonzero(is_kept[source] & is_kept[t.neighbour])
    return _Links(source[index], t.neighbour[index], index)
