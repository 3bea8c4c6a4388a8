"""The command that trades one aim for another: pareto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import orbitsplit as osp
from orbitsplit._io.files import write_text
from orbitsplit._io.validation import quoted
from orbitsplit._plans.fronts import Over

from .inputs import load, load_network, load_optional
from .options import (
    Acceptance,
    CodebookFile,
    Json,
    MaxAccuracyDrop,
    MaxNodes,
    Objective,
    SearchThreads,
    TimeLimit,
    app,
    out,
    print_json,
    progress_bars,
)
from .outputs import check_writable

# Of each search that only a page needs.
_REPORT_LIMIT_S = 30.0


@app.command()
def pareto(
    problem: Annotated[Path, typer.Argument(help="Planning problem (JSON); with --over latency a profile.")],
    over: Annotated[Over, typer.Option(help="The limit to tighten, or latency: time per token.")] = "loss_budget",
    resolution: Annotated[
        float, typer.Option(help="Smallest distance between points, as a fraction of the limit or the throughput.")
    ] = 0.0,
    objective: Objective = "latency",
    network: Annotated[Path | None, typer.Option(help="Network (TOML), with --over latency.")] = None,
    sequences: Annotated[int, typer.Option(help="Most sequences in flight, with --over latency.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per sequence, with --over latency.")] = 32,
    acceptance: Acceptance = 0.0,
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    max_nodes: MaxNodes = None,
    time_limit: TimeLimit = None,
    threads: SearchThreads = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the front: as a page to click on (.html) or JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the exact Pareto front of delay against the loss budget or the memory of the nodes.

    With --over latency it is that of the time per token against the tokens per second of all sequences in flight.

    Example: `orbitsplit pareto problem.json --over memory --resolution 0.05`
    """
    check_writable(output)
    if output is not None and output.suffix not in (".html", ".json"):
        raise ValueError(f"{output} ends in {quoted(output.suffix)}, a front ends in .html or .json")
    shown: list[Any] = []
    search: dict[str, Any] = {
        "resolution": resolution,
        "max_nodes": max_nodes,
        "time_limit_s": time_limit,
        "threads": threads,
    }
    front: osp.ParetoFront | osp.LatencyFront
    if over == "latency":
        if network is None:
            raise ValueError("--over latency needs --network")
        profiled = load(osp.ModelProfile, problem)
        of_latency: dict[str, Any] = {
            "network": load_network(network),
            "workload": osp.Workload(
                micro_batches=sequences,
                prompt_tokens=profiled.prompt_tokens,
                new_tokens=new_tokens,
                acceptance=acceptance,
            ),
            "codebook": load_optional(osp.Codebook, codebook),
            "max_accuracy_drop": max_accuracy_drop,
        }
        with progress_bars() as progress:
            progress("searching for the front", None)
            front = osp.pareto(profiled, over, **of_latency, **search)
    else:
        if network is not None:
            raise ValueError(f"--network is for --over latency, not for --over {over}")
        shown = [load(osp.Problem, problem)]
        with progress_bars() as progress:
            progress("searching for the front", None)
            front = osp.pareto(shown[0], over, objective=objective, **search)
    if output is not None and output.suffix == ".html":
        limit_s = _REPORT_LIMIT_S if time_limit is None else time_limit
        with progress_bars() as progress:
            progress("drawing the page", None)
            osp.report(front, *shown, path=output, objective=objective, time_limit_s=limit_s)
    elif output is not None:
        write_text(output, json.dumps(front.to_dict(), indent=1) + "\n")
    if as_json:
        print_json(front.to_dict())
    else:
        out.print(str(front), highlight=False)
