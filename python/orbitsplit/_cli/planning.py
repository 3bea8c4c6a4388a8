"""Commands about models and plans: solve, pareto, profile, calibrate, verify, plan."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import orbitsplit as osp
from orbitsplit._io.units import format_seconds
from orbitsplit._planner.pareto import Over
from orbitsplit._plans.planning import Order

from . import views
from .options import (
    FAILED,
    CodebookFile,
    Json,
    MaxAccuracyDrop,
    MaxNodes,
    Model,
    NetworkFile,
    Objective,
    Output,
    PromptTokens,
    TimeLimit,
    app,
    check_writable,
    err,
    out,
    print_json,
)


@app.command()
def solve(
    problem: Annotated[Path, typer.Argument(help="A planning problem (JSON).")],
    objective: Objective = "latency",
    max_nodes: MaxNodes = None,
    gap: Annotated[float, typer.Option(help="Relative gap that is good enough.")] = 0.0,
    time_limit: TimeLimit = None,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Also list binding constraints and alternatives.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Solve a planning problem exactly.

    Example: `orbitsplit solve problem.json --certificate --time-limit 10`
    """
    loaded = osp.Problem.load(problem)
    solution = osp.solve(loaded, objective=objective, max_nodes=max_nodes, gap=gap, time_limit_s=time_limit)
    certified = None
    if certificate:
        certified = osp.certificate(loaded, solution, objective=objective, max_nodes=max_nodes, time_limit_s=time_limit)
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
    table = Table("stage", "node", "layers", "level of the cut after it")
    for k, stage in enumerate(solution.stages):
        level = "" if stage.level is None else problem.levels[stage.level].name
        table.add_row(str(k), escape(problem.nodes[stage.node].name), f"{stage.start}-{stage.stop - 1}", escape(level))
    out.print(table)


@app.command()
def pareto(
    problem: Annotated[Path, typer.Argument(help="A planning problem (JSON).")],
    over: Annotated[Over, typer.Option(help="The limit to tighten.")] = "loss_budget",
    resolution: Annotated[float, typer.Option(help="Leave out points closer than this part of the limit.")] = 0.0,
    objective: Objective = "latency",
    max_nodes: MaxNodes = None,
    time_limit: TimeLimit = None,
    as_json: Json = False,
) -> None:
    """Show the exact front of delay against the loss budget or the memory of the nodes.

    Example: `orbitsplit pareto problem.json --over memory --resolution 0.05`
    """
    front = osp.pareto(
        osp.Problem.load(problem),
        over,
        resolution=resolution,
        objective=objective,
        max_nodes=max_nodes,
        time_limit_s=time_limit,
    )
    if as_json:
        print_json(front.to_dict())
    else:
        out.print(str(front), highlight=False)


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
        "stages": [{"node": s.node, "start": s.start, "stop": s.stop, "level": s.level} for s in solution.stages],
        "reason": solution.reason,
    }


@app.command()
def profile(
    model: Model,
    prompt_tokens: PromptTokens = 512,
    measure: Annotated[bool, typer.Option("--measure", help="Also measure seconds per layer, one thread.")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Say what each layer of a model costs: memory, work, and with --measure seconds on this machine.

    Example: `orbitsplit profile my-model/ --prompt-tokens 256 --measure -o profile.json`
    """
    with views.Report(err) as report:
        result = osp.profile(model, prompt_tokens=prompt_tokens, measure=measure, progress=report)
    if output is not None:
        result.save(output)
    if as_json:
        print_json(result.to_dict())
    else:
        views.profile(out, result)


@app.command()
def calibrate(
    model: Model,
    text: Annotated[list[Path], typer.Option("--text", help="Text file to calibrate on; may be given again.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The codebook (.safetensors).")],
    prompt_tokens: PromptTokens = 512,
    cut: Annotated[
        list[int] | None, typer.Option(help="Layers before a cut; may be given again. Default: all.")
    ] = None,
    level: Annotated[
        list[float] | None, typer.Option(help="Bits per element of a level; may be given again. Default: six of them.")
    ] = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="channel, fisher, klt, mask, trained or a fixed codec; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws which passages are fitted to and which measured on.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit codecs to what each cut of a model sends, and measure what they cost.

    Interrupted, it goes on when the same command is given again: until it ends, its state is in OUTPUT.partial.

    Example: `orbitsplit calibrate my-model/ --text corpus.txt -o book.safetensors`
    """
    from orbitsplit.calibration import CODECS, LEVELS

    check_writable(output)
    with views.Report(err) as report:
        book = osp.calibrate(
            model,
            text,
            cuts=cut or "all",
            levels=level or LEVELS,
            codecs=codec or CODECS,
            prompt_tokens=prompt_tokens,
            seed=seed,
            checkpoint=output.with_name(output.name + ".partial"),
            progress=report,
        )
    book.save(output)
    if as_json:
        print_json(book.to_dict())
    else:
        views.codebook(out, book)


@app.command()
def verify(
    plan: Annotated[Path, typer.Argument(help="A plan written by `orbitsplit plan -o`.")],
    text: Annotated[list[Path], typer.Option("--text", help="Held-out text file to measure on; may be given again.")],
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    profile: Annotated[Path | None, typer.Option(help="Profile to plan again with, where the limit is broken.")] = None,
    network: Annotated[Path | None, typer.Option(help="Network to plan again for.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory, GGUF file or hub id; default: the plan's.")
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure what a plan's codecs cost on other text; -o writes the plan, tightened until the limit is kept.

    Tightening makes a new plan with --profile and --network; without, it takes better levels at the plan's cuts.

    Example: `orbitsplit verify plan.json --text held-out.txt --codebook book.safetensors -o verified.json`
    """
    check_writable(output)
    loaded = osp.Plan.load(plan)
    named = model if model is not None else loaded.model
    if named is None:
        raise ValueError("the plan names no model: give one with --model")
    book = None if codebook is None else osp.Codebook.load(codebook)
    with views.Report(err) as report:
        checked = osp.verify(
            loaded,
            named,
            text,
            codebook=book,
            max_accuracy_drop=max_accuracy_drop,
            replan=_planning_again(loaded, book, profile, network),
            progress=report,
        )
    if output is not None:
        checked.plan.save(output)
    if as_json:
        print_json(checked.to_dict())
    else:
        out.print(escape(str(checked)), highlight=False, soft_wrap=True)
    if not checked.is_within:
        sys.exit(FAILED)


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(help="A profile written by `orbitsplit profile -o`.")],
    network: NetworkFile,
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    loss_budget: Annotated[
        float, typer.Option(help="Nats per token that compression may cost; 0: nothing is lost, inf: no limit.")
    ] = 0.0,
    micro_batches: Annotated[int, typer.Option(help="Micro-batches in the chain.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per sequence.")] = 0,
    order: Annotated[Order, typer.Option(help="free: any order of nodes; fixed: as in the network file.")] = "free",
    objective: Objective = "latency",
    max_nodes: MaxNodes = None,
    time_limit: TimeLimit = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also list binding constraints and alternatives.")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Decide cuts, nodes, their order and the codec at each cut.

    Example: `orbitsplit plan profile.json --network leo.toml --codebook book.safetensors --max-accuracy-drop 0.01`
    """
    loaded = osp.ModelProfile.load(profile)
    result = osp.plan(
        loaded,
        _network(network),
        osp.Workload(
            micro_batches=micro_batches,
            prompt_tokens=loaded.prompt_tokens,
            new_tokens=new_tokens,
            batch_size=loaded.batch_size,
        ),
        codebook=None if codebook is None else osp.Codebook.load(codebook),
        loss_budget=loss_budget,
        max_accuracy_drop=max_accuracy_drop,
        order=order,
        objective=objective,
        max_nodes=max_nodes,
        time_limit_s=time_limit,
        explain=explain,
    )
    if output is not None:
        result.save(output)
    if as_json:
        print_json(result.to_dict())
    else:
        views.plan(out, result)
    if explain and not as_json:
        out.print(escape(result.explain()), highlight=False, soft_wrap=True)


def _planning_again(
    plan: osp.Plan, book: osp.Codebook | None, profile: Path | None, network: Path | None
) -> Callable[[float], osp.Plan] | None:
    """Return what plans for the same workload within a loss budget, None where profile and network are not given."""
    if profile is None and network is None:
        return None
    if profile is None or network is None or book is None:
        raise ValueError("to plan again, give --profile, --network and --codebook")
    of_model, nodes = osp.ModelProfile.load(profile), _network(network)
    objective = "latency" if plan.prediction is None else plan.prediction.objective
    return lambda budget: osp.plan(
        of_model, nodes, plan.workload, codebook=book, loss_budget=budget, objective=objective
    )


def _network(path: Path) -> osp.Network:
    """Return the network of a file; where there is none, say what writes one if a scenario was meant."""
    try:
        return osp.Network.load(path)
    except FileNotFoundError:
        # Looked up as a file, because orbitsplit.leo needs sgp4.
        scenarios = resources.files("orbitsplit") / "leo" / "scenarios"
        if path.name != str(path) or not (scenarios / f"{path}.toml").is_file():
            raise
        raise ValueError(
            f"there is no network file {str(path)!r}; `orbitsplit leo {path} -o FILE` writes the network"
            " of the scenario of this name"
        ) from None
