"""Why a plan is no better: what each constraint costs, what other plans would take, what would make one feasible.

Every answer is an evaluation or one more exact search, on a changed problem.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

from ._baselines import on_one_node, scored, single_node, without_compression
from ._certificate import Alternative, Binding, Certificate
from ._one_copy import solve_with_one_copy, with_one_copy
from ._problem import ExternalLink, Pins, Problem, Solution
from ._relaxing import Solve, relaxations
from ._unsplit import best_unsplit
from ._without import without

# A gain below this part of the objective is rounding.
_ROUNDING = 1e-9


def certificate(
    problem: Problem, solution: Solution | None = None, *, tied_bytes: float = 0, time_limit_s: float | None = None
) -> Certificate:
    """Say how good a solution is, which constraints bind, and what the alternatives would take.

    `solution` is what `solve` returned, None to solve first. A hard limit (memory of a node, loss budget, pins)
    binds if lifting it alone gives a better plan; a link or a node of the plan binds if there is a better plan
    once it is twice as fast. The alternatives are the best plans without each node of the plan, without
    compression and on a single node, and "do not split" (see `unsplit`). For an infeasible problem the
    certificate has instead the least memory, loss or links that would make it feasible. `tied_bytes` are weights
    that first and last layer share.

    Each answer takes a search; after `time_limit_s` for all of them together, the rest is left unanswered.

    >>> print(certificate(Problem.load("problem.json")))       # doctest: +SKIP
    """
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    search = partial(_solve_until, deadline, tied_bytes)
    solution = search(problem) if solution is None else solution
    known: dict[str, Any] = {
        "status": solution.status,
        "total_s": solution.objective_s,
        "lower_bound_s": solution.lower_bound_s,
        "gap": solution.gap,
        "reason": solution.reason,
    }
    if solution.status == "infeasible":
        found, unanswered = relaxations(problem, search, tied_bytes=tied_bytes)
        return Certificate(**known, relaxations=found, unanswered=unanswered)
    if solution.objective_s is None:
        return Certificate(**known, unanswered=("everything else",))
    findings = _Findings(search, solution.objective_s)
    _find_what_binds(findings, problem, solution)
    _find_alternatives(findings, problem, solution, tied_bytes)
    return Certificate(**known, **findings.parts())


def _solve_until(deadline: float, tied_bytes: float, problem: Problem) -> Solution:
    limit = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    return solve_with_one_copy(problem, tied_bytes, time_limit_s=limit)[1]


@dataclass
class _Findings:
    """Answers as they come in, about a plan of `total_s`."""

    search: Solve
    total_s: float
    binding: list[Binding] = field(default_factory=list)
    slack: list[str] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, Any]:
        """Return the fields of a certificate, the dearest constraint first."""
        binding = sorted(self.binding, key=lambda found: found.total_s)
        return {
            "binding": tuple(binding),
            "slack": tuple(self.slack),
            "alternatives": tuple(self.alternatives),
            "unanswered": tuple(self.unanswered),
        }

    def relax(self, constraint: str, relaxed: str, problem: Problem) -> None:
        """Note whether the relaxed problem has a better plan."""
        best = self.search(problem)
        threshold = self.total_s * (1 - _ROUNDING)
        if best.objective_s is not None and best.objective_s < threshold:
            self.binding.append(Binding(constraint, relaxed, best.objective_s, best.status == "optimal"))
        elif best.lower_bound_s is not None and best.lower_bound_s >= threshold:
            self.slack.append(constraint)
        else:
            self.unanswered.append(constraint)

    def restrict(self, name: str, problem: Problem) -> None:
        """Note the best plan of a restricted problem."""
        best = self.search(problem)
        if best.status == "unknown":
            self.unanswered.append(name)
        else:
            self.alternatives.append(Alternative(name, best.objective_s, best.reason or ""))


def _find_what_binds(findings: _Findings, problem: Problem, solution: Solution) -> None:
    _find_binding_memory(findings, problem)
    if problem.loss_budget is not None:
        findings.relax("loss budget", "lifted", replace(problem, loss_budget=None))
    if problem.pins != Pins():
        findings.relax("pins", "lifted", replace(problem, pins=Pins()))
    for constraint, faster in _faster(problem, [stage.node for stage in solution.stages]):
        findings.relax(constraint, "twice as fast", faster)


def _find_binding_memory(findings: _Findings, problem: Problem) -> None:
    names = [f"memory of {node.name}" for node in problem.nodes]
    if len(names) > 1:
        # Where lifting all of them together gains nothing, none of them does.
        findings.relax("memory of all nodes", "lifted", _with_memory(problem, range(len(names))))
        if "memory of all nodes" in findings.slack:
            return
    for node, name in enumerate(names):
        findings.relax(name, "lifted", _with_memory(problem, (node,)))


def _with_memory(problem: Problem, lifted: Sequence[int]) -> Problem:
    """Return the problem with room for every layer on each of some nodes."""
    everything = math.ceil(problem.layer_memory_bytes.sum() * (1 + _ROUNDING))
    nodes = list(problem.nodes)
    for n in lifted:
        nodes[n] = replace(nodes[n], memory_bytes=max(nodes[n].memory_bytes, nodes[n].headroom_bytes + everything))
    return replace(problem, nodes=tuple(nodes))


def _faster(problem: Problem, chain: Sequence[int]) -> Iterator[tuple[str, Problem]]:
    """Yield the nodes and links that a plan uses, each with the problem in which it takes half the time."""
    names = [node.name for node in problem.nodes]
    for n in chain:
        times = {}
        for key in ("layer_time_s", "layer_decode_time_s"):
            seconds = getattr(problem, key)
            if seconds is not None:
                times[key] = seconds.copy()
                times[key][n] /= 2
        yield f"speed of {names[n]}", replace(problem, **times)
    for a, b in pairwise(chain):
        bandwidth, latency = problem.bandwidth_bytes_per_s.copy(), problem.latency_s.copy()
        bandwidth[a, b] *= 2
        latency[a, b] /= 2
        yield f"link {names[a]} -> {names[b]}", replace(problem, bandwidth_bytes_per_s=bandwidth, latency_s=latency)
    if problem.ingress is not None:
        yield f"ingress to {names[chain[0]]}", replace(problem, ingress=_faster_at(problem.ingress, chain[0]))
    if problem.egress is not None:
        yield f"egress from {names[chain[-1]]}", replace(problem, egress=_faster_at(problem.egress, chain[-1]))


def _faster_at(link: ExternalLink, node: int) -> ExternalLink:
    bandwidth, latency = link.bandwidth_bytes_per_s.copy(), link.latency_s.copy()
    bandwidth[node] *= 2
    latency[node] /= 2
    return replace(link, bandwidth_bytes_per_s=bandwidth, latency_s=latency)


def _find_alternatives(findings: _Findings, problem: Problem, solution: Solution, tied_bytes: float) -> None:
    pins = problem.pins
    for node in [stage.node for stage in solution.stages] if len(problem.nodes) > 1 else ():
        name = f"without {problem.nodes[node].name}"
        if node in pins.required or node in pins.layers.values():
            findings.alternatives.append(Alternative(name, None, "the pins ask for it"))
        else:
            findings.restrict(name, without(problem, nodes=(node,)))
    findings.restrict("without compression", without_compression(problem))
    alone = scored(with_one_copy(problem, tied_bytes), "on a single node", single_node(problem))
    way = on_one_node(problem, best_unsplit(problem, tied_bytes=tied_bytes).node, tied_bytes)
    findings.alternatives += [alone, replace(way, name=f"do not split: {way.name}")]
