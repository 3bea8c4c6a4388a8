"""Incumbents for free order, as in cpp/src/planner/orders.cpp: orders of the nodes, each explored as a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ._bounds import least_loss
from ._root import Clock, Incumbent, Root
from ._tables import Options, make_metrics, make_tables

if TYPE_CHECKING:
    from orbitsplit._problem import ExternalLink, Problem


def improve_by_orders(problem: Problem, options: Options, clock: Clock, incumbent: Incumbent) -> Incumbent:
    """Move and swap nodes until neither helps or time is over; without an incumbent look for any first."""
    search = _OrderSearch(problem, options, clock, incumbent)
    search.run()
    return search.incumbent


class _OrderSearch:
    def __init__(self, problem: Problem, options: Options, clock: Clock, incumbent: Incumbent) -> None:
        self.problem = problem
        self.options = options
        self.clock = clock
        self.incumbent = incumbent

    def run(self) -> None:
        if not len(self.incumbent.stages):
            self.find_any()
        if not len(self.incumbent.stages):
            return
        while not self.clock.is_over() and self.improve(self.order_of_incumbent()):
            pass

    def attempt(self, order: list[int]) -> bool:
        """Explore one order; true if it holds a better plan than the incumbent."""
        fixed = _in_order(self.problem, order)
        t = make_tables(fixed, self.options)
        least = least_loss(t)
        if least.root > t.loss_limit:
            return False
        start = Incumbent(self.incumbent.objective_s, self.incumbent.gap)
        found = Root(fixed, t, self.options.objective, make_metrics(t), least, self.clock, start).incumbent
        if not len(found.stages):
            return False
        found.stages[:, 0] = np.array(order, dtype=np.int32)[found.stages[:, 0]]
        self.incumbent = found
        return True

    def find_any(self) -> None:
        nodes = len(self.problem.nodes)
        if self.attempt(list(range(nodes))):
            return
        for first in range(nodes):
            if self.attempt(self.chain_from(first)) or self.clock.is_over():
                return

    def chain_from(self, first: int) -> list[int]:
        """Follow the fastest link to a node not yet in the chain; where none leads on, the next by index."""
        chain = [first]
        rest = [n for n in range(len(self.problem.nodes)) if n != first]
        while rest:
            links = self.problem.bandwidth_bytes_per_s[chain[-1]]
            chain.append(max(rest, key=lambda n: (links[n], -n)))
            rest.remove(chain[-1])
        return chain

    def order_of_incumbent(self) -> list[int]:
        used = self.incumbent.stages[:, 0].tolist()
        return used + [n for n in range(len(self.problem.nodes)) if n not in used]

    def improve(self, order: list[int]) -> bool:
        """Move every node to every other place, then swap every pair, up to the first change that helps."""
        for changed in _neighbours(order):
            if self.attempt(changed):
                return True
            if self.clock.is_over():
                return False
        return False


def _neighbours(order: list[int]) -> Iterator[list[int]]:
    nodes = len(order)
    for origin in range(nodes):
        for to in range(nodes):
            if origin != to:
                moved = order[:origin] + order[origin + 1 :]
                moved.insert(to, order[origin])
                yield moved
    for a in range(nodes):
        for b in range(a + 2, nodes):
            swapped = order.copy()
            swapped[a], swapped[b] = order[b], order[a]
            yield swapped


def _in_order(problem: Problem, order: list[int]) -> Problem:
    """Return the same problem with its nodes renumbered and their order fixed."""
    square = np.ix_(order, order)
    decode = problem.layer_decode_time_s
    pins = problem.pins
    return dataclasses.replace(
        problem,
        order="fixed",
        nodes=tuple(problem.nodes[n] for n in order),
        layer_time_s=problem.layer_time_s[order],
        layer_decode_time_s=None if decode is None else decode[order],
        bandwidth_bytes_per_s=problem.bandwidth_bytes_per_s[square],
        latency_s=problem.latency_s[square],
        ingress=_in_node_order(problem.ingress, order),
        egress=_in_node_order(problem.egress, order),
        pins=dataclasses.replace(
            pins,
            layers={layer: order.index(node) for layer, node in pins.layers.items()},
            required=tuple(order.index(node) for node in pins.required),
            forbidden=tuple(order.index(node) for node in pins.forbidden),
        ),
    )


def _in_node_order(link: ExternalLink | None, order: list[int]) -> ExternalLink | None:
    if link is None:
        return None
    bandwidth, latency = link.bandwidth_bytes_per_s[order], link.latency_s[order]
    return dataclasses.replace(link, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
