"""Places that remember more of the chain before them, as in cpp/src/planner/places.hpp."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cost_to_go import through
from .root import Explorer
from .tables import Floats, Ints, Metric, Tables

Flags = NDArray[np.bool_]


class _Links(NamedTuple):
    """The links between old places that both stay: where from, where to, and their numbers."""

    origin: Ints
    to: Ints
    number: Ints


def hopeful_places(t: Tables, metrics: list[Metric], root: Explorer) -> Flags:
    """Return which places some plan that beats the incumbent may go through, as far as the intervals tell."""
    is_kept = np.ones(len(t.node_of), dtype=np.bool_)
    for metric, intervals in zip(metrics, root.intervals, strict=True):
        least = np.full(len(t.node_of), math.inf)
        for interval in intervals:
            bound: Floats = np.zeros(len(t.node_of))
            for r in interval.relaxations:
                bound = np.maximum(bound, through(t, metric, r) - r.price * t.loss_limit + interval.low)
            least = np.minimum(least, bound)
        is_kept &= least < root.incumbent.cutoff()
    return is_kept


def lengthened_links(t: Tables, is_kept: Flags) -> float:
    """Count the links over which one may go on once every kept place remembers one more node."""
    to = _kept_links(t, is_kept).to
    return float((1 + t.neighbour_start[to + 1] - t.neighbour_start[to]).sum())


def lengthen(t: Tables, is_kept: Flags) -> Tables:
    """Leave out the other places and let the kept ones remember one more node."""
    links = _kept_links(t, is_kept)
    is_longer = t.remembered[links.origin] == t.memory
    longer_origin, longer_to = links.origin[is_longer], links.to[is_longer]
    same = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
    longer = np.full(len(t.neighbour), -1)
    longer[links.number[is_longer]] = int(is_kept.sum()) + np.arange(len(longer_to))
    kept = np.flatnonzero(is_kept)
    place = np.concatenate([kept, longer_to])
    remembered = np.concatenate([t.remembered[kept], np.full(len(longer_to), t.memory + 1)])
    oldest = np.concatenate([t.oldest[kept], t.oldest[longer_origin]])
    counts = (t.neighbour_start[1:] - t.neighbour_start[:-1])[place]
    origin = np.repeat(np.arange(len(place)), counts)
    within = np.arange(len(origin)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.repeat(t.neighbour_start[place], counts) + within
    to = np.where(t.remembered[place[origin]] == t.memory, longer[index], same[t.neighbour[index]])
    repeats = (remembered[origin] > t.memory) & (t.node_of[t.neighbour[index]] == oldest[origin])
    stays = (to >= 0) & ~repeats
    origin, to, index = origin[stays], to[stays], index[stays]
    return t._replace(
        memory=t.memory + 1,
        node_of=t.node_of[place],
        remembered=remembered,
        oldest=oldest,
        start_place=np.where(t.start_place >= 0, same[t.start_place], -1),
        neighbour_start=np.searchsorted(origin, np.arange(len(place) + 1)).astype(np.int64),
        neighbour=to,
        bandwidth=t.bandwidth[index],
        pace=t.pace[index],
        latency=t.latency[index],
    )


def _kept_links(t: Tables, is_kept: Flags) -> _Links:
    origin = np.repeat(np.arange(len(t.node_of)), np.diff(t.neighbour_start))
    index = np.flatnonzero(is_kept[origin] & is_kept[t.neighbour])
    return _Links(origin[index], t.neighbour[index], index)
