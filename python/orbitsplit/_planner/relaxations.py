"""The smallest change of each kind that makes an infeasible problem feasible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import Array

from .certificate import Relaxation
from .problem import Problem, evaluate
from .problem_parts import ExternalLink, Pins, Stage
from .solve import Solution
from .tied_weights import TiedBytes

Solve = Callable[[Problem], Solution]

# Losses within this relative distance count as equal: four times the tolerance of a loss budget.
_SAME_LOSS = 4e-9
# Of links that are missing, as many are named.
_MOST_NAMED = 4


class _OutOfTimeError(Exception):
    """A search was stopped before it was known whether there is a plan."""


def relaxations(
    problem: Problem,
    search: Solve,
    search_best: Solve,
    *,
    more_nodes: Sequence[tuple[int, Solve]] = (),
    tied_bytes: TiedBytes = 0,
) -> tuple[tuple[Relaxation, ...], tuple[str, ...]]:
    """Return the smallest relaxation of each kind, and the kinds for which a search was stopped before it was known.

    `search` may return any plan, `search_best` returns that of smallest latency. `more_nodes` are searches that allow
    more nodes than `search` does, with that number, in increasing order.
    """
    # Feasibility does not depend on the number of micro-batches, and one is the easiest to solve.
    alone = replace(problem, micro_batches=1, groups=None)
    kinds: dict[str, Callable[[], Relaxation]] = {
        "memory": lambda: _memory(alone, search, tied_bytes),
        "loss": lambda: _loss(alone, search),
        "links": lambda: _links(alone, search_best),
    }
    if problem.pins != Pins():
        kinds["pins"] = lambda: _pins(alone, search)
    if more_nodes:
        kinds["nodes"] = lambda: _nodes(alone, more_nodes)
    found, unanswered = [], []
    for kind, least in kinds.items():
        try:
            found.append(least())
        except _OutOfTimeError:
            unanswered.append(kind)
    return tuple(found), tuple(unanswered)


def _plan(problem: Problem, search: Solve) -> Solution | None:
    """Return a plan that respects all limits, None if there is none."""
    best = search(problem)
    if best.status == "unknown":
        raise _OutOfTimeError
    return best if best.stages else None


def _memory(problem: Problem, search: Solve, tied_bytes: TiedBytes) -> Relaxation:
    nodes = range(len(problem.nodes))
    every = _least_memory(problem, search, nodes, tied_bytes)
    if every is None:
        return Relaxation("memory", None, "memory: no amount is enough")
    text = f"memory: {format_bytes(every)} more on every node"
    alone = [(amount, n) for n in nodes if (amount := _least_memory(problem, search, (n,), tied_bytes)) is not None]
    if alone and len(nodes) > 1:
        amount, n = min(alone)
        text += f", or {format_bytes(amount)} more on {problem.nodes[n].name} alone"
    return Relaxation("memory", every, text)


def _least_memory(problem: Problem, search: Solve, grown: Sequence[int], tied_bytes: TiedBytes) -> float | None:
    """Return the least additional bytes on each of some nodes with which a plan fits, None if none do.

    Only amounts at which one more stage fits can make a difference: a binary search over these.
    """
    memory = problem.layer_memory_bytes.reshape(-1, len(problem.layers))  # by weight level
    held = np.concatenate([np.zeros((len(memory), 1)), np.cumsum(memory, axis=1)], axis=1)
    starts, stops = np.triu_indices(held.shape[1], 1)
    stages = np.append((held[:, stops] - held[:, starts]).ravel(), held[:, -1] - tied_bytes)
    room = np.array([problem.nodes[n].memory_bytes - problem.nodes[n].headroom_bytes for n in grown])
    more = np.unique(np.ceil(stages[None, :] - room[:, None]))
    more = more[more > 0]
    if len(more) == 0 or _plan(_with_more_memory(problem, grown, more[-1]), search) is None:
        return None
    low, high = 0, len(more) - 1
    while low < high:
        middle = (low + high) // 2
        if _plan(_with_more_memory(problem, grown, more[middle]), search) is None:
            low = middle + 1
        else:
            high = middle
    return float(more[high])


def _with_more_memory(problem: Problem, grown: Sequence[int], more: float) -> Problem:
    nodes = list(problem.nodes)
    for n in grown:
        nodes[n] = replace(nodes[n], memory_bytes=nodes[n].memory_bytes + float(more))
    return replace(problem, nodes=tuple(nodes))


def _loss(problem: Problem, search: Solve) -> Relaxation:
    least = _plan(replace(problem, loss_budget=None), search)
    if least is None or problem.loss_budget is None:
        return Relaxation("loss", None, "loss: no budget is enough")
    too_little = problem.loss_budget
    # By bisection down to one part in a million, then from each plan to any plan that loses less.
    while True:
        assert least.loss is not None
        middle = (too_little + least.loss) / 2
        budget = middle if least.loss - too_little > 1e-6 * least.loss else least.loss * (1 - _SAME_LOSS)
        better = _plan(replace(problem, loss_budget=max(budget, too_little)), search)
        if better is not None:
            least = better
        elif budget == middle:
            too_little = middle
        else:
            break
    return Relaxation("loss", least.loss, f"loss: a budget of {least.loss:.6g} instead of {problem.loss_budget:.6g}")


def _links(problem: Problem, search_best: Solve) -> Relaxation:
    best = _plan(_counting_missing_links(problem), search_best)
    if best is None:
        return Relaxation("links", None, "links: no number is enough")
    missing = _missing_links(problem, best.stages)
    named = missing if len(missing) <= _MOST_NAMED else [*missing[:_MOST_NAMED], f"{len(missing) - _MOST_NAMED} more"]
    return Relaxation("links", float(len(missing)), "links: " + " and ".join(named))


def _counting_missing_links(problem: Problem) -> Problem:
    """Return the problem with all links, whose plans take one second for each link that was missing.

    With generation, links of the chain count twice and the return once: the plan with the fewest new links in its chain
    is the best, and among these one whose return exists.
    """
    nodes = len(problem.nodes)
    generates = problem.new_tokens >= 2
    instant = np.zeros_like(problem.layer_time_s)
    return replace(
        problem,
        layer_time_s=instant,
        layer_earlier_time_s=None,
        cut_bytes=np.zeros_like(problem.cut_bytes),
        layer_decode_time_s=instant if generates else None,
        stage_overhead_s=None,
        stage_decode_overhead_s=None,
        cut_decode_bytes=np.zeros_like(problem.cut_bytes) if generates else None,
        bandwidth_bytes_per_s=np.ones((nodes, nodes)) - np.eye(nodes),
        latency_s=(problem.bandwidth_bytes_per_s == 0) * 1.0,
        ingress=_counting(problem.ingress),
        egress=_counting(problem.egress),
        new_tokens=2 if generates else 0,
        tokens_per_step=1.0,
        latency_occupies_link=False,
    )


def _counting(link: ExternalLink | None) -> ExternalLink | None:
    if link is None:
        return None
    bandwidth: Array = link.bandwidth_bytes_per_s
    return ExternalLink(bytes=0.0, bandwidth_bytes_per_s=np.ones_like(bandwidth), latency_s=(bandwidth == 0) * 1.0)


def _missing_links(problem: Problem, stages: Sequence[Stage]) -> list[str]:
    """Return in words the links that a plan needs and the problem does not have."""
    names = [node.name for node in problem.nodes]
    first, last = stages[0].node, stages[-1].node
    words = []
    if problem.ingress is not None and problem.ingress.bandwidth_bytes_per_s[first] == 0:
        words.append(f"ingress to {names[first]}")
    bandwidth = problem.bandwidth_bytes_per_s.copy()
    for a, b in pairwise(stage.node for stage in stages):
        if bandwidth[a, b] == 0:
            bandwidth[a, b] = 1
            words.append(f"one from {names[a]} to {names[b]}")
    linked = evaluate(replace(problem, bandwidth_bytes_per_s=bandwidth, ingress=None, egress=None), stages)
    if not linked.is_feasible:  # the new tokens cannot return
        words.append(f"one from {names[last]} back to {names[first]}")
    if problem.egress is not None and problem.egress.bandwidth_bytes_per_s[last] == 0:
        words.append(f"egress from {names[last]}")
    return words


def _nodes(problem: Problem, more_nodes: Sequence[tuple[int, Solve]]) -> Relaxation:
    for count, search in more_nodes:
        if _plan(problem, search) is not None:
            return Relaxation("nodes", float(count), f"nodes: max_nodes {count}")
    return Relaxation("nodes", None, "nodes: no number is enough")


def _pins(problem: Problem, search: Solve) -> Relaxation:
    if _plan(replace(problem, pins=Pins()), search) is None:
        return Relaxation("pins", None, "pins: lifting them is not enough")
    return Relaxation("pins", 1.0, "pins: lifted")
