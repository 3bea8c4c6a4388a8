"""The command that works on planning problems: solve."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import orbitsplit as osp
from orbitsplit._io.units import format_seconds

from .inputs import load
from .options import (
    Json,
    MaxNodes,
    Objective,
    ProblemFile,
    SearchThreads,
    TimeLimit,
    app,
    out,
    print_json,
    progress_bars,
)


@app.command()
def solve(
    problem: ProblemFile,
    objective: Objective = "latency",
    max_nodes: MaxNodes = None,
    gap: Annotated[float, typer.Option(help="Relative gap at which the search stops.")] = 0.0,
    time_limit: TimeLimit = None,
    threads: SearchThreads = 1,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Also show binding constraints and alternatives.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Solve a planning problem to proven optimality, or until a limit is reached.

    Example: `orbitsplit solve problem.json --certificate --time-limit 10`
    """
    loaded = load(osp.Problem, problem)
    limits: dict[str, Any] = {"max_nodes": max_nodes, "time_limit_s": time_limit, "threads": threads}
    certified = None
    with progress_bars() as progress:
        progress("searching for the best plan", None)
        solution = osp.solve(loaded, objective=objective, gap=gap, **limits)
        if certificate:
            progress("searching for alternatives", None)
            certified = osp.certificate(loaded, solution, objective=objective, **limits)
    if as_json:
        record = _solution_record(solution)
        print_json(record if certified is None else {**record, "certificate": certified.to_dict()})
        return
    _show_solution(loaded, solution)
    if certified is not None:
        out.print(escape(str(certified)), highlight=False, soft_wrap=True)


def _show_solution(problem: osp.Problem, solution: osp.Solution) -> None:
    if solution.objective_s is None or solution.gap is None:
        out.print(f"[bold]{solution.status}[/]: {escape(str(solution.reason))}", highlight=False)
        return
    budget = "" if problem.loss_budget is None else f" of {problem.loss_budget:.4g}"
    out.print(
        f"[bold]{solution.status}[/]: {format_seconds(solution.objective_s)}, proven gap {100 * solution.gap:.2g} %, "
        f"loss {solution.loss:.4g}{budget}, found in {format_seconds(solution.seconds)}",
        highlight=False,
    )
    table = Table("stage", "node", "layers", "level of the cut after it", *(["weights"] * bool(problem.weight_levels)))
    for k, stage in enumerate(solution.stages):
        cells = [problem.nodes[stage.node].name, f"{stage.start}-{stage.stop - 1}"]
        cells.append("" if stage.level is None else problem.levels[stage.level].name)
        if stage.weight_level is not None:
            cells.append(problem.weight_levels[stage.weight_level].name)
        table.add_row(str(k), *map(escape, cells))
    out.print(table)


def _solution_record(solution: osp.Solution) -> dict[str, Any]:
    def finite(number: float | None) -> float | None:
        return number if number is not None and math.isfinite(number) else None

    return {
        "status": solution.status,
        "objective_s": finite(solution.objective_s),
        "lower_bound_s": finite(solution.lower_bound_s),
        "gap": finite(solution.gap),
        "seconds": solution.seconds,
        "loss": finite(solution.loss),
        "stages": [stage.to_dict() for stage in solution.stages],
        "reason": solution.reason,
    }
