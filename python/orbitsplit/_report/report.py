"""`report`: what the library knows of plans, traces, problems and constellations, on one page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orbitsplit._io.units import format_seconds
from orbitsplit._io.validation import check_number, quoted
from orbitsplit._network.network import Network
from orbitsplit._planner.baselines import alternatives as baselines
from orbitsplit._planner.baselines import heuristic_baselines
from orbitsplit._planner.certify import certificate
from orbitsplit._planner.pareto import ParetoFront
from orbitsplit._planner.pareto import pareto as pareto_of_problem
from orbitsplit._planner.problem import Problem
from orbitsplit._planner.solve import SolveOptions, solve
from orbitsplit._plans.fronts import LatencyFront
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.simulate import simulate
from orbitsplit._plans.trace import Trace

from .chain import Chain, chain_of_plan, chain_of_problem
from .comparisons import alternatives_figure, binding_figure, latency_front, problem_front
from .networks import network_figure
from .page import Page, Section
from .stages import chain_figure, memory_figure, time_figures
from .timelines import timeline_figures


def report(
    *documents: Any,
    path: str | Path,
    title: str | None = None,
    hours: float = 24.0,
    objective: str = "latency",
    time_limit_s: float = 30.0,
) -> Path:
    """Write what the documents hold as one HTML file, which needs no network and opens in any browser.

    Documents of one kind with another complete each other: a plan and the trace of its run share a time axis, a
    scenario and a plan in time share a page. A problem is solved first, and its Pareto front computed.

    Args:
        documents: `Plan`, `Trace`, `Problem`, `Network`, `ParetoFront`, `LatencyFront`, `leo.Scenario` or
            `leo.TimedPlan`, or paths of files that hold one (fronts have no files); at most one of each kind.
        path: The file, replaced if it is there.
        title: Title of the page. Default: what the first document is called.
        hours: Hours of contacts of a scenario, from its epoch.
        objective: What the plan of a problem minimises, as for `solve`.
        time_limit_s: Seconds for the searches of a problem: the plan, its certificate, and the front, each.

    Example:
        >>> report(plan, run.trace, path="report.html")              # doctest: +SKIP

    Raises:
        ValueError: No document, two of a kind, or a number is out of range; what a file holds is something else.
        TypeError: A document is of another type.
        ImportError: The extra `report` is not installed.
    """
    found = _by_kind(documents)
    for name, value in (("hours", hours), ("time_limit_s", time_limit_s)):
        check_number(name, value)
    if not 0 < hours <= 24 * 30:
        raise ValueError(f"hours is {hours:g}, must be over 0 and at most 720")
    page = Page()
    _add_plan(page, found.get("Plan"), found.get("Network"))
    _add_traces(page, found.get("Plan"), found.get("Trace"))
    _add_problem(page, found.get("Problem"), objective, time_limit_s, has_front="ParetoFront" in found)
    for kind in ("ParetoFront", "LatencyFront"):
        _add_front(page, found.get(kind), found.get("Problem"))
    if "Plan" not in found:
        _add_network(page, found.get("Network"), None)
    if "Scenario" in found or "TimedPlan" in found:
        from .constellations import add_scenario, add_timed_plan

        add_timed_plan(page, found.get("TimedPlan"), has_plan="Plan" in found)
        add_scenario(page, found.get("Scenario"), hours)
    page.title = title or page.title or "orbitsplit"
    page.write(path)
    return Path(path)


def _by_kind(documents: Sequence[Any]) -> dict[str, Any]:
    """Return the documents by the name of their class, those in files read."""
    if not documents:
        raise ValueError("a report needs at least one document: a plan, trace, problem, network or scenario")
    found: dict[str, Any] = {}
    for given in documents:
        document = given
        if isinstance(given, (str, Path)):
            from .documents import open_document

            document = open_document(given)
        kind = type(document).__name__
        if kind not in _KINDS or not type(document).__module__.startswith("orbitsplit."):
            raise TypeError(f"a document is {quoted(document)}, must be one of {', '.join(_KINDS)}, or a path")
        if kind in found:
            raise ValueError(f"two documents are of kind {kind}, a report has at most one of each")
        found[kind] = document
    return found


_MINIMISED: dict[str, str] = {
    "latency": "delay of the plan",
    "throughput": "between two micro-batches",
    "time_to_first_token": "to the first token",
    "time_per_token": "for each token",
}
_KINDS = ("Plan", "Trace", "Problem", "Network", "ParetoFront", "LatencyFront", "Scenario", "TimedPlan")


def _add_plan(page: Page, plan: Plan | None, network: Network | None) -> None:
    if plan is None:
        return
    page.title = page.title or f"Plan of {plan.model or 'a model'} on {_count(len(plan.stages), 'node')}"
    load = plan.workload
    most = _count(load.sequences, "sequence")
    rate = load.arrivals_per_s
    page.subtitle = (
        f"{most if rate is None else f'{rate:g} requests per second, at most {load.sequences} in flight,'} "
        f"of {load.prompt_tokens} prompt tokens, "
        f"{load.new_tokens} new tokens each; {plan.dtype}"
    )
    known = plan.prediction
    if known is not None:
        page.cards += [
            (f"predicted, {known.objective.replace('_', ' ')}", format_seconds(known.total_s)),
            ("of which prefill", format_seconds(known.prefill_s)),
        ]
        if known.in_flight is not None:
            page.cards.append(("requests in flight", f"{known.in_flight:.3g}"))
        if load.new_tokens:
            page.cards.append(("per token step", format_seconds(known.token_step_s)))
        page.cards += [
            (known.status, f"gap {100 * known.gap:.2g} %"),
            ("loss, nats per token", f"{known.loss:.3g}"),
        ]
    chain = chain_of_plan(plan)
    _add_chain(page, chain)
    _add_network(page, network, chain)
    if plan.certificate is not None and plan.certificate.total_s:
        figures = [
            alternatives_figure(
                plan.certificate.total_s, plan.certificate.lower_bound_s, plan.certificate.alternatives
            ),
            binding_figure(plan.certificate),
        ]
        _add_certificate(page, figures, str(plan.certificate).partition("\n")[0])


def _add_chain(page: Page, chain: Chain) -> None:
    figures = [chain_figure(chain)]
    if chain.memory_bytes:
        figures.append(memory_figure(chain))
    if chain.stage_s:
        figures += time_figures(chain)
    page.sections.append(
        Section(
            title="Stages",
            text="Which node runs which layers, how fast the links between them are, and how each activation is "
            "encoded. The longest occupancy sets the pace.",
            figures=figures,
        )
    )


def _add_network(page: Page, network: Network | None, chain: Chain | None) -> None:
    if network is None:
        return
    page.title = page.title or f"Network {network.name}"
    used = () if chain is None else chain.nodes
    page.sections.append(
        Section(
            title="Network",
            text=f"{_count(len(network.nodes), 'node')}, {_count(len(network.links), 'directed link')}"
            + ("; the stages of the plan are joined in vermilion." if used else "."),
            figures=[network_figure(network, used)],
        )
    )


def _add_certificate(page: Page, figures: Sequence[Any | None], text: str) -> None:
    drawn = [figure for figure in figures if figure is not None]
    if drawn:
        page.sections.append(Section(title="How good it is", text=text, figures=drawn))


def _add_traces(page: Page, plan: Plan | None, trace: Trace | None) -> None:
    traces = {}
    if plan is not None and plan.prediction is not None:
        traces["predicted"] = simulate(plan)
    if trace is not None:
        page.title = page.title or f"Trace of a run on {_count(len(trace.nodes), 'node')}"
        traces["measured"] = trace
        page.cards.append(("measured", format_seconds(trace.stop_s)))
    if not traces:
        return
    page.sections.append(
        Section(
            title="Timeline",
            text="A row for each node and each link. Drag to zoom; all timelines follow. White is waiting.",
            figures=timeline_figures(traces),
            head=["node", *(f"{title}: {kind}" for title in traces for kind in ("compute", "send", "wait"))]
            if trace is not None
            else (),
            rows=_totals(traces) if trace is not None else (),
        )
    )


def _totals(traces: dict[str, Trace]) -> list[list[str]]:
    totals = [trace.totals() for trace in traces.values()]
    nodes = list(dict.fromkeys(node for each in totals for node in each))
    return [
        [
            node,
            *(
                format_seconds(each[node][kind]) if node in each else ""
                for each in totals
                for kind in ("compute", "send", "wait")
            ),
        ]
        for node in nodes
    ]


def _add_problem(page: Page, problem: Problem | None, objective: str, time_limit_s: float, *, has_front: bool) -> None:
    if problem is None:
        return
    size = f"{len(problem.layers)} layers, {_count(len(problem.nodes), 'node')}, {len(problem.levels)} levels"
    page.title = page.title or f"Problem {problem.name or ''}: {size}"
    page.subtitle = page.subtitle or size
    options = SolveOptions(objective=objective, time_limit_s=time_limit_s)
    solution = solve(problem, options=options)
    if solution.objective_s is None or solution.gap is None:
        page.cards.append((solution.status, "no plan"))
        page.sections.append(Section(title="No plan", text=str(solution.reason)))
        return
    page.cards += [
        (_MINIMISED[objective], format_seconds(solution.objective_s)),
        (solution.status, f"gap {100 * solution.gap:.2g} %"),
        ("loss", f"{solution.loss:.3g}"),
        ("found in", format_seconds(solution.seconds)),
    ]
    _add_chain(page, chain_of_problem(problem, solution.stages))
    certified = certificate(problem, solution, options=options)
    known = baselines(problem) if objective == "latency" else heuristic_baselines(problem, objective)
    others = [*certified.alternatives, *known]
    others = list({other.name: other for other in others}.values())
    figures = [
        alternatives_figure(solution.objective_s, certified.lower_bound_s, others),
        binding_figure(certified),
    ]
    _add_certificate(page, figures, str(certified).partition("\n")[0])
    if not has_front and problem.loss_budget != 0 and len(problem.levels) > 1:
        _add_front(page, pareto_of_problem(problem, options=options), problem)


def _add_front(page: Page, front: ParetoFront | LatencyFront | None, problem: Problem | None) -> None:
    if front is None:
        return
    if not front.points:
        page.sections.append(Section(title="Trade-off", text="No plan was found."))
        return
    if isinstance(front, ParetoFront):
        if problem is None:
            raise ValueError("a ParetoFront has indices of nodes: give its Problem too")
        drawn = problem_front(front, problem)
    else:
        drawn = latency_front(front)
    page.title = page.title or "Pareto front"
    note = "" if front.is_complete else " A limit ended the search: there may be plans beyond the ends."
    page.sections.append(Section(title="Trade-off", text=f"No plan is better in both.{note}", figures=[drawn]))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
