"""Commands that write a problem, and show a plan, without a search: problem, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._plans.planning import levels_and_budget
from orbitsplit._plans.problem_building import Order

from . import views
from .inputs import load, load_network, load_optional
from .options import CodebookFile, Json, MaxAccuracyDrop, NetworkFile, PlanFile, app, out, print_json
from .outputs import check_writable, save


@app.command()
def problem(
    profile: Annotated[Path, typer.Argument(help="Profile, written by `orbitsplit profile -o`.")],
    network: NetworkFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The problem (.json).")],
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    loss_budget: Annotated[float, typer.Option(help="Largest loss in nats per token; inf: no limit.")] = 0.0,
    micro_batches: Annotated[int, typer.Option(help="Micro-batches in the pipeline.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per sequence.")] = 0,
    order: Annotated[Order, typer.Option(help="free: nodes in any order; fixed: as in the network file.")] = "free",
    as_json: Json = False,
) -> None:
    """Write the planning problem of a model on a network, which `solve` and `pareto` take.

    Example: `orbitsplit problem profile.json --network network.toml --new-tokens 32 -o problem.json`
    """
    check_writable(output)
    loaded = load(osp.ModelProfile, profile)
    book = load_optional(osp.Codebook, codebook)
    levels, budget = levels_and_budget(loaded, None, book, loss_budget, max_accuracy_drop)
    made = osp.build_problem(
        loaded,
        load_network(network),
        osp.Workload(
            micro_batches=micro_batches,
            prompt_tokens=loaded.prompt_tokens,
            new_tokens=new_tokens,
            batch_size=loaded.batch_size,
        ),
        levels=levels,
        loss_budget=budget,
        order=order,
    )
    save(made, output)
    if as_json:
        print_json(made.to_dict())
    else:
        size = f"{len(made.layers)} layers, {len(made.nodes)} nodes, {len(made.levels)} levels"
        out.print(f"{escape(str(output))}: {size}", highlight=False)


@app.command()
def explain(plan: PlanFile, codebook: CodebookFile = None, as_json: Json = False) -> None:
    """Show a saved plan: stages, times and memory, bottlenecks, and the certificate that `plan --explain` added.

    Example: `orbitsplit explain plan.json`
    """
    loaded = load(osp.Plan, plan)
    book = load_optional(osp.Codebook, codebook)
    if book is not None and loaded.codebook != book.hex_id:
        raise ValueError(f"the plan has codebook {loaded.codebook}, {codebook} is codebook {book.hex_id}")
    if as_json:
        print_json(loaded.to_dict())
        return
    if loaded.prediction is not None:
        views.plan(out, loaded, book)
    out.print(escape(loaded.explain()), highlight=False, soft_wrap=True)
