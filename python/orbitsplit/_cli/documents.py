"""Commands about files: problem, explain, export, schema, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._io.files import write_text
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import quoted
from orbitsplit._models.model_path import find_model
from orbitsplit._plans.export import Engine
from orbitsplit._plans.planning import levels_and_budget
from orbitsplit._plans.problem_building import Order

from . import views
from .inputs import load, load_network, load_optional
from .options import (
    CodebookFile,
    Json,
    MaxAccuracyDrop,
    ModelOfPlan,
    NetworkFile,
    Output,
    PlanFile,
    app,
    err,
    out,
    print_json,
    progress_bars,
)
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


@app.command()
def export(
    plan: PlanFile,
    engine: Annotated[Engine, typer.Option("--for", help="The engine that is to run the plan.")],
    model: ModelOfPlan = None,
    device: Annotated[
        list[str] | None, typer.Option(help="The engine's name of the device of a stage, in order; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a plan as settings of accelerate, vLLM, llama.cpp or torch, and what these cannot do.

    Example: `orbitsplit export plan.json --for vllm`
    """
    devices = [int(name) if name.isdecimal() else name for name in device] if device else None
    loaded = load(osp.Plan, plan)
    if model is not None:
        find_model(model)
    made = loaded.export(engine, model=model, devices=devices)
    if as_json:
        print_json(made.to_dict())
        return
    print(made.text)
    for note in made.not_exported:
        err.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="plan, problem, profile, network, trace, codebook or scenario.")],
    output: Output = None,
) -> None:
    """Print the JSON Schema of a kind of file, with which editors complete and check network.toml.

    Example: `orbitsplit schema network -o network.schema.json`
    """
    check_writable(output)
    text = json.dumps(osp.schema(name), indent=1, ensure_ascii=False)
    if output is None:
        print(text)
    else:
        write_text(output, text + "\n")
        out.print(f"{escape(str(output))}: the schema of {name} files", highlight=False)


@app.command()
def report(
    documents: Annotated[
        list[str],
        typer.Argument(help="Plan, trace, problem, network, scenario or plan in time: files, or names of scenarios."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page (.html).")],
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: what the first file is.")] = None,
    hours: Annotated[float, typer.Option(help="Hours of contacts of a scenario, from its epoch.")] = 24.0,
    time_limit: Annotated[float, typer.Option(help="Seconds for each search of a problem.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Write plans, runs, problems and constellations as one page for a browser, which works offline.

    Example: `orbitsplit report plan.json -o report.html`
    """
    if output.suffix.lower() != ".html":
        raise ValueError(f"{output} ends in {quoted(output.suffix)}, a report ends in .html")
    check_writable(output)
    with progress_bars() as progress:
        progress("drawing the page", None)
        osp.report(*documents, path=output, title=title, hours=hours, time_limit_s=time_limit)
    size = output.stat().st_size
    if as_json:
        print_json({"file": str(output), "bytes": size})
    else:
        out.print(f"{escape(str(output))}: {format_bytes(size)}, open it in a browser", highlight=False)
