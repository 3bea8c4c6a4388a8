"""Why a problem has no plan, with the sentences of cpp/src/planner/infeasible.cpp."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from orbitsplit._numba.text import number, size
from orbitsplit._numba.time_limit import TimeLimit

from .cost import by_weight_level, usable_memory_bytes
from .cost_to_go import Relaxation, least_loss
from .options import Options
from .problem import Problem
from .tables import Tables, make_tables

Solve = Callable[["Problem"], dict[str, Any]]


def explain_infeasible(
    problem: Problem, t: Tables, least: Relaxation, options: Options, time_limit: TimeLimit, solve: Solve
) -> str:
    """Return why no plan exists, in one sentence with the numbers. Only called if none does."""
    reason = trivially_infeasible(problem)
    if reason:
        return reason
    if least.root == math.inf:
        if not problem.levels and t.nodes > 1 and t.most_stages > 1:
            return "no node alone may run every layer, and levels is empty: a cut between two stages needs a level"
        reason = _explain_levels(problem, options, time_limit)
        reason = reason or _explain_weight_levels(problem, options, time_limit)
        if not reason and not _lacks_links(t):
            reason = _explain_memory(problem, t, options, time_limit)
        return reason or _explain_links(problem, options, t)
    budget = problem.loss_budget or 0.0
    if least.root > t.loss_limit:
        reached = f"{'' if _is_exact(t) else 'at least '}{number(least.root, budget)}"
        return f"the smallest loss any plan that fits reaches is {reached}, the budget is {number(budget, least.root)}"
    if t.needs_return and solve(dataclasses.replace(problem, new_tokens=0))["stages"]:
        return "no plan that fits can return its tokens from the last node to the first: links lead one way only"
    limits = "memory, links and pins"
    if problem.loss_budget is not None:
        limits += f" and a loss budget of {number(budget)}"
    if options.max_nodes is not None:
        return f"no chain of {_at_most(options)}linked nodes keeps {limits} together"
    return f"no plan keeps {limits} together"


def _at_most(options: Options) -> str:
    return "" if options.max_nodes is None else f"at most {options.max_nodes} "


def _usable(problem: Problem) -> list[float]:
    """Return the usable memory of the nodes that are not forbidden."""
    nodes = enumerate(problem.nodes)
    return [usable_memory_bytes(node) for n, node in nodes if n not in problem.pins.forbidden]


def trivially_infeasible(problem: Problem) -> str:
    """Return why no plan exists if sums of memory already show it, else ""."""
    return _explain_layer(problem) or _explain_total(problem)


def _least_memory_bytes(problem: Problem) -> list[float]:
    """Return the least memory of each layer at the weight levels that it has, infinite if it has none."""
    memory = by_weight_level(problem, problem.layer_memory_bytes)
    if problem.weight_loss is not None:
        memory = np.where(problem.weight_loss < math.inf, memory, math.inf)
    least: list[float] = memory.min(axis=0).tolist()
    return least


def _most_memory_bytes(problem: Problem) -> float:
    """Return the most that all layers need at any weight level."""
    return float(np.cumsum(by_weight_level(problem, problem.layer_memory_bytes), axis=1)[:, -1].max())


def _explain_layer(problem: Problem) -> str:
    if not _usable(problem):
        return "every node is forbidden"
    largest = max(_usable(problem))
    for i, need in enumerate(_least_memory_bytes(problem)):
        name = f'layer {i} ("{problem.layers[i]}")'
        if need == math.inf:
            return f"{name} does not have any weight level"
        fact = f"{name} needs"
        if need > largest:
            return f"{fact} {size(need, largest)}, the largest node has {size(largest, need)}"
        if i in problem.pins.layers:
            node = problem.nodes[problem.pins.layers[i]]
            usable = usable_memory_bytes(node)
            if need > usable:
                pinned = f'node "{node.name}" to which it is pinned has {size(usable, need)}'
                return f"{fact} {size(need, usable)}, {pinned}"
    return ""


def _explain_total(problem: Problem) -> str:
    need = held = 0.0
    for layer in _least_memory_bytes(problem):
        need += layer
    for usable in _usable(problem):
        held += usable
    if need <= held * (1 + 1e-12):  # equal up to rounding
        return ""
    return f"the layers need {size(need, held)} together, the nodes hold {size(held, need)}"


def _is_exact(t: Tables) -> bool:
    """Return whether no node can repeat in relaxed plans: then memory, links and loss of some plan are theirs."""
    return not t.is_free or t.ng_size == t.nodes


def _least_loss_with(problem: Problem, options: Options, time_limit: TimeLimit, relief_bytes: float) -> float:
    return least_loss(make_tables(problem, options, time_limit, relief_bytes), time_limit).root


def _fits_without(problem: Problem, losses: str, options: Options, time_limit: TimeLimit) -> bool:
    """Return whether plans would fit if none of these losses, `loss` or `weight_loss`, were infinite (some are)."""
    values = getattr(problem, losses)
    if values is None or not np.isinf(values).any():
        return False
    lossless = dataclasses.replace(problem, **{losses: np.zeros_like(values)})
    return _least_loss_with(lossless, options, time_limit, 0.0) != math.inf and not time_limit.is_reached()


def _explain_levels(problem: Problem, options: Options, time_limit: TimeLimit) -> str:
    """Return that plans would fit if all cuts had all levels, or ""."""
    if not _fits_without(problem, "loss", options, time_limit):
        return ""
    return (
        "no plan that fits has a level at each of its cuts: a cut does not have the levels whose loss is infinite there"
    )


def _explain_weight_levels(problem: Problem, options: Options, time_limit: TimeLimit) -> str:
    """Return that plans would fit if all layers had all weight levels, or ""."""
    if not _fits_without(problem, "weight_loss", options, time_limit):
        return ""
    return (
        "no plan that fits has a weight level for each of its stages: a layer does not have the weight levels whose "
        "loss is infinite there"
    )


def _explain_memory(problem: Problem, t: Tables, options: Options, time_limit: TimeLimit) -> str:
    """Return the least additional memory on every node with which some chain holds the layers, or ""."""
    fact = f"no chain of {_at_most(options)}linked nodes holds the layers in their order"
    enough = _most_memory_bytes(problem)
    if _least_loss_with(problem, options, time_limit, enough) == math.inf:
        return ""
    too_little = 0.0
    while enough - too_little > max(1.0, 1e-9 * enough):
        middle = too_little + (enough - too_little) / 2
        is_enough = _least_loss_with(problem, options, time_limit, middle) < math.inf
        if time_limit.is_reached():
            return fact
        if is_enough:
            enough = middle
        else:
            too_little = middle
    more = f"{size(math.ceil(enough))} more on every node"
    more = f"{more} would" if _is_exact(t) else f"it takes at least {more}"
    return f"{fact}; {more}"


def _lacks_links(t: Tables) -> bool:
    """Return whether there are no links at all although a plan could use one."""
    return t.nodes > 1 and not len(t.neighbour) and t.most_stages > 1


def _explain_links(problem: Problem, options: Options, t: Tables) -> str:
    if not t.can_start.any():
        return "no node may be first: ingress reaches none that the pins allow"
    if not t.can_end.any():
        return "no node may be last: egress leaves none that the pins allow"
    if _lacks_links(t):
        return "no link joins any two nodes that may follow each other, and no node alone may run every layer"
    chain = f"no chain of {_at_most(options)}linked nodes"
    return f"{chain} joins those that ingress, egress and pins ask for, whatever their memory"
