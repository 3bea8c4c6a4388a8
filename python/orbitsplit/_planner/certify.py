"""Certificates: binding constraints, alternatives, and the relaxations that make a problem feasible.

Every answer is an evaluation or one more exact search, on a changed problem.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import check_kind

from .baselines import scored, single_node, unsplit_alternative, without_compression
from .certificate import Alternative, Binding, Certificate, Relaxation
from .objective import value_s
from .problem import Problem, evaluate
from .problem_parts import ExternalLink, Pins, Stage
from .relaxations import relaxations
from .restrict import without
from .solve import Solution, SolveKeywords, SolveOptions, solve_options
from .tied_weights import TiedBytes, check_tied_bytes, solve_with_tied_weights, with_tied_weights
from .unsplit import best_unsplit

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A gain below this part of the objective is rounding.
_ROUNDING = 1e-9


def certificate(
    problem: Problem,
    solution: Solution | None = None,
    *,
    tied_bytes: TiedBytes = 0,
    options: SolveOptions | None = None,
    **keywords: Unpack[SolveKeywords],
) -> Certificate:
    """Determine how good a solution is, which constraints bind, and what the alternatives would take.

    A hard limit (memory of a node, loss budget, pins, number of nodes) is binding if lifting it alone gives a better
    plan; a link or a node of the plan is binding if there is a better plan once it is twice as fast. The alternatives
    are the best plans without each node of the plan, without compression and on a single node, and "do not split" (see
    `unsplit`). The certificate of an infeasible problem has instead the smallest relaxation of each kind (memory, loss,
    links, pins, nodes) that makes it feasible.

    Args:
        problem: The problem.
        solution: What `solve` returned for the same options; None: solve first.
        tied_bytes: Bytes of weights that the first and the last layer share; with weight levels a number for each.
        options: As for `solve`, and so are the keywords. `time_limit_s` is that of all searches together, one for each
            answer; what it leaves open is listed in `Certificate.unanswered`.

    Raises:
        ValueError: An option is out of range.
        TypeError: An option has another type.

    >>> print(certificate(Problem.load("problem.json")))       # doctest: +SKIP
    """
    check_kind("problem", problem, Problem)
    if solution is not None:
        check_kind("solution", solution, Solution)
    check_tied_bytes(problem, tied_bytes)
    options = solve_options("certificate", options, {**keywords})
    limit_s = options.time_limit_s
    deadline = math.inf if limit_s is None else time.monotonic() + limit_s
    search = _Search(deadline=deadline, options=options, tied_bytes=tied_bytes, share=0.5)
    solution = search(problem) if solution is None else solution
    known: dict[str, Any] = {
        "status": solution.status,
        "total_s": solution.objective_s,
        "lower_bound_s": solution.lower_bound_s,
        "gap": solution.gap,
        "objective": options.objective,
        "reason": solution.reason,
    }
    if solution.status == "infeasible":
        found, unanswered = _relaxations(problem, search)
        return Certificate(**known, relaxations=found, unanswered=unanswered)
    if solution.objective_s is None:
        return Certificate(**known, unanswered=("binding constraints", "alternatives"))
    # Memory, number of nodes, loss budget, pins, compression; speed, link and absence of each node of the plan.
    most_searches = len(problem.nodes) + 7 + 3 * len(solution.stages)
    findings = _Findings(search, solution.stages, solution.objective_s, most_searches)
    _find_binding_constraints(findings, problem, solution)
    _find_alternatives(findings, problem, solution)
    return Certificate(**known, **findings.parts())


# What a search without time left returns: even the first bounds of many searches together would exceed the limit.
_NOT_SOLVED = Solution(
    status="unknown",
    objective_s=None,
    lower_bound_s=0.0,
    gap=None,
    seconds=0.0,
    loss=None,
    stages=(),
    reason="the time limit was reached",
    labels=0,
)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Solves several problems with the same options until a deadline.

    Each search takes at most a `share` of the time that is left, so that a hard one leaves time for the others.
    """

    deadline: float
    options: SolveOptions
    tied_bytes: TiedBytes
    share: float = 1.0

    def __call__(self, problem: Problem) -> Solution:
        if self.is_over():
            return _NOT_SOLVED
        limit_s = None if self.deadline == math.inf else self.share * max(0.0, self.deadline - time.monotonic())
        options = replace(self.options, time_limit_s=limit_s)
        return solve_with_tied_weights(problem, self.tied_bytes, options=options)[1]

    def is_over(self) -> bool:
        """Return whether there is no time for another search."""
        return time.monotonic() >= self.deadline

    def with_options(self, **changes: Any) -> _Search:
        """Return a search with some options changed."""
        return replace(self, options=replace(self.options, **changes))


def _relaxations(problem: Problem, search: _Search) -> tuple[tuple[Relaxation, ...], tuple[str, ...]]:
    # Whether there is a plan does not depend on the objective, and any plan answers it.
    by_latency = replace(search.with_options(objective="latency"), share=1.0)
    any_plan = by_latency.with_options(gap=0.999)
    max_nodes = search.options.max_nodes
    counts = () if max_nodes is None else range(max_nodes + 1, len(problem.nodes) + 1)
    more_nodes = [(count, any_plan.with_options(max_nodes=count)) for count in counts]
    return relaxations(problem, any_plan, by_latency, more_nodes=more_nodes, tied_bytes=search.tied_bytes)


@dataclass
class _Findings:
    """The answers so far, about a plan of `stages` that takes `total_s`."""

    search: _Search
    stages: tuple[Stage, ...]
    total_s: float
    searches_left: int
    binding: list[Binding] = field(default_factory=list)
    slack: list[str] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, Any]:
        """Return the fields of a certificate, the most expensive constraint first."""
        binding = sorted(self.binding, key=lambda found: found.total_s)
        return {
            "binding": tuple(binding),
            "slack": tuple(self.slack),
            "alternatives": tuple(self.alternatives),
            "unanswered": tuple(self.unanswered),
        }

    def relax(self, constraint: str, relaxed: str, problem: Problem, search: _Search | None = None) -> None:
        """Record whether the relaxed problem, or a relaxed search, has a better plan."""
        best = self._solve(problem, search or self.search)
        threshold = self.total_s * (1 - _ROUNDING)
        # The same plan may be better already, and a search that was stopped may not have found it.
        least_s = min(self._unchanged_s(problem), math.inf if best.objective_s is None else best.objective_s)
        if least_s < threshold:
            self.binding.append(Binding(constraint, relaxed, least_s, best.status == "optimal"))
        elif best.lower_bound_s is not None and best.lower_bound_s >= threshold:
            self.slack.append(constraint)
        else:
            self.unanswered.append(constraint)

    def restrict(self, name: str, problem: Problem) -> None:
        """Record the best plan of a restricted problem."""
        best = self._solve(problem, self.search)
        if best.status == "unknown":
            self.unanswered.append(name)
        elif best.status == "infeasible":
            self.alternatives.append(Alternative(name, None, best.reason or ""))
        else:
            self.alternatives.append(Alternative(name, best.objective_s, "", is_proven=best.status == "optimal"))

    def _unchanged_s(self, problem: Problem) -> float:
        whole = with_tied_weights(problem, self.search.tied_bytes) if len(self.stages) == 1 else problem
        return value_s(evaluate(whole, self.stages), self.search.options.objective)

    def _solve(self, problem: Problem, search: _Search) -> Solution:
        share = 1 / max(1, self.searches_left)
        self.searches_left -= 1
        return replace(search, share=share)(problem)


def _find_binding_constraints(findings: _Findings, problem: Problem, solution: Solution) -> None:
    _find_binding_memory(findings, problem, solution.stages)
    if problem.loss_budget is not None:
        findings.relax("loss budget", "lifted", replace(problem, loss_budget=None))
    if problem.pins != Pins():
        findings.relax("pins", "lifted", replace(problem, pins=Pins()))
    if findings.search.options.max_nodes is not None:
        findings.relax("number of nodes", "lifted", problem, findings.search.with_options(max_nodes=None))
    for constraint, faster in _faster(problem, [stage.node for stage in solution.stages]):
        findings.relax(constraint, "twice as fast", faster)


def _find_binding_memory(findings: _Findings, problem: Problem, stages: Sequence[Stage]) -> None:
    names = [f"memory of {node.name}" for node in problem.nodes]
    if len(names) > 1:
        # If lifting all of them together gains nothing, none of them is binding.
        findings.relax("memory of all nodes", "lifted", _with_memory(problem, range(len(names))))
        if "memory of all nodes" in findings.slack:
            return
    for node, name in enumerate(names):
        lighter = "".join(_lighter(problem, stage) for stage in stages if stage.node == node)
        findings.relax(name, f"lifted{lighter}", _with_memory(problem, (node,)))


def _lighter(problem: Problem, stage: Stage) -> str:
    """Return in words what the lightest weight level of a stage would save and lose, "" if it has that."""
    if problem.weight_loss is None or stage.weight_level is None:
        return ""
    losses = problem.weight_loss[:, stage.start : stage.stop].sum(axis=1)
    sizes = problem.layer_memory_bytes[:, stage.start : stage.stop].sum(axis=1)
    lightest = int(np.argmin(np.where(np.isfinite(losses), sizes, math.inf)))
    saved = float(sizes[stage.weight_level] - sizes[lightest])
    if saved <= 0:
        return ""
    more = losses[lightest] - losses[stage.weight_level]
    name = problem.weight_levels[lightest].name
    return f"; {name} there would save {format_bytes(saved)} and add {more:.3g} to the loss"


def _with_memory(problem: Problem, lifted: Sequence[int]) -> Problem:
    """Return the problem with memory for all layers on each of some nodes."""
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
        of_layers = dict.fromkeys(("layer_time_s", "layer_earlier_time_s", "layer_decode_time_s"), np.s_[..., n, :])
        of_stages = dict.fromkeys(("stage_overhead_s", "stage_decode_overhead_s"), np.s_[..., n])
        for key, own in (of_layers | of_stages).items():
            seconds = getattr(problem, key)
            if seconds is not None:
                times[key] = seconds.copy()
                times[key][own] /= 2
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


def _find_alternatives(findings: _Findings, problem: Problem, solution: Solution) -> None:
    pins, objective, tied_bytes = problem.pins, findings.search.options.objective, findings.search.tied_bytes
    for node in [stage.node for stage in solution.stages] if len(problem.nodes) > 1 else ():
        name = f"without {problem.nodes[node].name}"
        if node in pins.required or node in pins.layers.values():
            findings.alternatives.append(Alternative(name, None, "the pins require it"))
        else:
            findings.restrict(name, without(problem, nodes=(node,)))
    findings.restrict("without compression", without_compression(problem))
    whole = with_tied_weights(problem, tied_bytes)
    alone = scored(whole, "on a single node", single_node(whole, objective=objective), objective)
    whole_on_one = unsplit_alternative(problem, best_unsplit(problem, objective=objective, tied_bytes=tied_bytes))
    findings.alternatives += [alone, replace(whole_on_one, name=f"do not split: {whole_on_one.name}")]
