"""Incumbents for free order by local search over orders of the nodes, as in cpp/src/planner/order_search.hpp."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from orbitsplit._numba.time_limit import TimeLimit

from .cost_to_go import least_loss
from .metrics import make_metrics
from .options import Options
from .problem import ExternalLink, Problem, copy_times_of_nodes
from .root import Incumbent, RootExplorer
from .tables import make_tables


def improve_by_orders(
    problem: Problem, options: Options, time_limit: TimeLimit, most_orders: int, incumbent: Incumbent
) -> Incumbent:
    """Improve the incumbent by moving and swapping nodes until neither helps, `most_orders` were tried or time is over.

    Without an incumbent it first looks for one: by index, then along the fastest links.
    """
    search = _OrderSearch(problem, options, time_limit, incumbent)
    search.run(most_orders)
    return search.incumbent


def improve_by_chains(problem: Problem, options: Options, time_limit: TimeLimit, incumbent: Incumbent) -> Incumbent:
    """Improve the incumbent along links: its chain loses, gains or exchanges a node. Needs an incumbent."""
    search = _ChainSearch(problem, options, time_limit, incumbent)
    search.run()
    return search.incumbent


class _Attempts:
    """Tries orders of all nodes, or of some, against an incumbent."""

    def __init__(self, problem: Problem, options: Options, time_limit: TimeLimit, incumbent: Incumbent) -> None:
        self.problem = problem
        self.options = options
        self.time_limit = time_limit
        self.incumbent = incumbent

    def attempt(self, order: list[int]) -> bool:
        """Explore one order; true if it holds a better plan than the incumbent."""
        fixed = _in_order(self.problem, order)
        t = make_tables(fixed, self.options, self.time_limit)
        least = least_loss(t, self.time_limit)
        if least.root > t.loss_limit:
            return False
        half = self.options.max_bytes // 2
        start = Incumbent(self.incumbent.objective_s, self.incumbent.gap)
        metrics = make_metrics(t, self.time_limit)
        found = RootExplorer(fixed, t, self.options.objective, metrics, least, self.time_limit, start, half).incumbent
        if not len(found.stages):
            return False
        found.stages[:, 0] = np.array(order, dtype=np.int32)[found.stages[:, 0]]
        self.incumbent = found
        return True


class _OrderSearch(_Attempts):
    def run(self, most_orders: int) -> None:
        self.orders_left = most_orders
        if not len(self.incumbent.stages):
            self.find_any()
        if not len(self.incumbent.stages):
            return
        while not self.is_over() and self.improve(self.order_of_incumbent()):
            pass

    def is_over(self) -> bool:
        """Count one more order; return whether that is too many or time is over."""
        self.orders_left -= 1
        return self.orders_left < 0 or self.time_limit.is_reached()

    def find_any(self) -> None:
        nodes = len(self.problem.nodes)
        if self.attempt(list(range(nodes))):
            return
        for first in range(nodes):
            if self.attempt(self.chain_from(first)) or self.time_limit.is_reached():
                return

    def chain_from(self, first: int) -> list[int]:
        """Follow the fastest link to a node that is not in the chain; without such a link, the next node by index."""
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
        """Move every node to every other position, then swap every pair, until a change helps."""
        for changed in _neighbours(order):
            if self.attempt(changed):
                return True
            if self.is_over():
                return False
        return False


class _ChainSearch(_Attempts):
    """Changes of a chain by one node, along links."""

    def __init__(self, problem: Problem, options: Options, time_limit: TimeLimit, incumbent: Incumbent) -> None:
        super().__init__(problem, options, time_limit, incumbent)
        nodes, pins = len(problem.nodes), problem.pins
        self.most = min(nodes, len(problem.layers), options.max_nodes or nodes)
        self.must_stay = {*pins.required, *pins.layers.values()}
        allowed = ~np.isin(np.arange(nodes), pins.forbidden)
        self.is_link = (problem.bandwidth_bytes_per_s > 0) & allowed & allowed[:, np.newaxis]
        np.fill_diagonal(self.is_link, False)

    def run(self) -> None:
        while len(self.incumbent.stages) and not self.time_limit.is_reached() and self.improve():
            pass

    def improve(self) -> bool:
        """Try all changes until one helps."""
        chain = self.incumbent.stages[:, 0].tolist()
        return any(self.joined(*parts) for parts in self.changes(chain))

    def changes(self, chain: list[int]) -> Iterator[tuple[list[int], list[int], list[int]]]:
        for at in range(len(chain) + 1):
            for dropped in (0, 1):
                if at + dropped > len(chain) or (dropped and chain[at] in self.must_stay):
                    continue
                left, right = chain[:at], chain[at + dropped :]
                if dropped:
                    yield left, [], right
                candidates = self.after(left[-1]) if left else self.before(right[0]) if right else []
                yield from ((left, [node], right) for node in candidates if node not in chain)
        if len(chain) < 2:
            return
        if chain[0] not in self.must_stay:
            yield from ((chain[1:], [node], []) for node in self.after(chain[-1]) if node not in chain)
        if chain[-1] not in self.must_stay:
            yield from (([], [node], chain[:-1]) for node in self.before(chain[0]) if node not in chain)

    def after(self, node: int) -> list[int]:
        found: list[int] = np.flatnonzero(self.is_link[node]).tolist()
        return found

    def before(self, node: int) -> list[int]:
        found: list[int] = np.flatnonzero(self.is_link[:, node]).tolist()
        return found

    def joined(self, left: list[int], middle: list[int], right: list[int]) -> bool:
        """Try a chain of three parts if its parts are linked; true if it holds a better plan."""
        chain = left + middle + right
        if not all(self.is_link[a, b] for a, b in itertools.pairwise(chain)):
            return False
        if not chain or len(chain) > self.most or self.time_limit.is_reached():
            return False
        return self.attempt(chain)


def _neighbours(order: list[int]) -> Iterator[list[int]]:
    nodes = len(order)
    for source in range(nodes):
        for destination in range(nodes):
            if source != destination:
                moved = order[:source] + order[source + 1 :]
                moved.insert(destination, order[source])
                yield moved
    for a in range(nodes):
        for b in range(a + 2, nodes):
            swapped = order.copy()
            swapped[a], swapped[b] = order[b], order[a]
            yield swapped


def _in_order(problem: Problem, order: list[int]) -> Problem:
    """Return the same problem with only these nodes, in this order. Nodes that pins require must be among them."""
    square = np.ix_(order, order)
    pins = problem.pins
    return dataclasses.replace(
        problem,
        order="fixed",
        nodes=tuple(problem.nodes[n] for n in order),
        **copy_times_of_nodes(problem, order),
        bandwidth_bytes_per_s=problem.bandwidth_bytes_per_s[square],
        latency_s=problem.latency_s[square],
        ingress=_in_node_order(problem.ingress, order),
        egress=_in_node_order(problem.egress, order),
        pins=dataclasses.replace(
            pins,
            layers={layer: order.index(node) for layer, node in pins.layers.items()},
            required=tuple(order.index(node) for node in pins.required),
            forbidden=tuple(order.index(node) for node in pins.forbidden if node in order),
        ),
    )


def _in_node_order(link: ExternalLink | None, order: list[int]) -> ExternalLink | None:
    if link is None:
        return None
    bandwidth, latency = link.bandwidth_bytes_per_s[order], link.latency_s[order]
    return dataclasses.replace(link, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
