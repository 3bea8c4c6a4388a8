"""Commands that work on models and plans: profile, convert, calibrate, verify, plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._io.units import format_bytes
from orbitsplit._io.validation import quoted
from orbitsplit._models.model_path import find_model
from orbitsplit._plans.chunks import ChunkTokens
from orbitsplit._plans.problem_building import Order
from orbitsplit._plans.rows import Rows

from . import views
from .inputs import (
    check_readable,
    load,
    load_network,
    load_optional,
    load_plan,
    model_of,
    replan_within,
    weight_options,
)
from .logs import log
from .options import (
    FAILED,
    Acceptance,
    CodebookFile,
    Json,
    MaxAccuracyDrop,
    MaxNodes,
    Model,
    ModelOfPlan,
    NetworkFile,
    Objective,
    Output,
    PlanFile,
    PromptTokens,
    SearchThreads,
    TimeLimit,
    WeightModels,
    Weights,
    app,
    out,
    print_json,
    progress_bars,
)
from .outputs import check_new_folder, check_writable, save
from .progress import keeps


@app.command()
def profile(
    model: Model,
    prompt_tokens: PromptTokens = 512,
    batch_size: Annotated[int, typer.Option(help="Sequences of each micro-batch.")] = 1,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure the time of each layer, one thread.")
    ] = False,
    device: Annotated[str, typer.Option(help="What is measured: cpu, cuda, cuda:1 or mps.")] = "cpu",
    rows: Annotated[int, typer.Option(help="Most rows of a step that is measured; 1, 2, 4, ... up to it are.")] = 32,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Determine the cost of each layer of a model: memory and FLOP, with --measure also seconds on this machine.

    Example: `orbitsplit profile my-model/ --prompt-tokens 256 --measure -o profile.json`
    """
    check_writable(output)
    find_model(model)
    with progress_bars() as progress:
        result = osp.profile(
            model,
            prompt_tokens=prompt_tokens,
            batch_size=batch_size,
            measure=measure,
            device=device,
            rows=rows,
            progress=progress,
        )
    save(result, output)
    if as_json:
        print_json(result.to_dict())
    else:
        views.profile(out, result)


@app.command()
def convert(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the new model.")],
    weights: Annotated[str, typer.Option(help="Format of the weights: int8, int5 or int4.")] = "int8",
    head: Annotated[
        str | None, typer.Option(help="Format of embeddings and head. Default: that of the others.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help='Format of some modules, by a pattern of their names: "*.v_proj=int8"; repeatable.'),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="Text for which errors of int4 and int5 compensate each other; repeatable. Default: none."),
    ] = None,
    int8_rows: Annotated[
        int | None,
        typer.Option(help="Frequent tokens whose rows of a table in int4 are in int8. Default: a 64th of all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model with its weights in 8, 5 or 4 bits, which every command takes as a model.

    Example: `orbitsplit convert my-model/ --weights int8 -o my-model-int8`
    """
    check_new_folder(output)
    check_readable(calibration or [])
    modules = _module_formats(module or [])
    find_model(model)
    with progress_bars() as progress:
        folder = osp.convert(
            model,
            output,
            weights=weights,
            head=head,
            modules=modules,
            calibration=calibration,
            int8_rows=int8_rows,
            progress=progress,
        )
    log.info("wrote %s", folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        print_json({"folder": str(folder), "weight_bytes": size})
    else:
        out.print(f"{folder}: {format_bytes(size)} of weights", highlight=False)


def _module_formats(texts: list[str]) -> dict[str, str]:
    formats = {}
    for text in texts:
        pattern, equals, weight_format = text.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is no PATTERN=FORMAT", param_hint="--module")
        if pattern in formats:
            raise typer.BadParameter(f"{pattern!r} is given twice", param_hint="--module")
        formats[pattern] = weight_format
    return formats


@app.command()
def calibrate(
    model: Model,
    text: Annotated[list[Path], typer.Option("--text", help="Text file to calibrate on; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The codebook (.safetensors).")],
    prompt_tokens: PromptTokens = 512,
    cut: Annotated[
        list[int] | None, typer.Option(help="Number of layers before a cut; repeatable. Default: every cut.")
    ] = None,
    level: Annotated[
        list[float] | None, typer.Option(help="Bits per element of a level; repeatable. Default: six levels.")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="channel, fisher, klt, mask, trained or a fixed codec; repeatable. Default: fisher and klt."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="int8, int5, int4 or a folder of `convert`: measure what layers lose with it; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the division of the text into fitting and measuring.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit codecs to the activations at each cut of a model, and measure the loss that they cause.

    The state is kept in OUTPUT.partial until the command ends; the same command resumes an interrupted calibration.

    Example: `orbitsplit calibrate my-model/ --text corpus.txt -o book.safetensors`
    """
    check_writable(output)
    check_readable(text)
    find_model(model)
    from orbitsplit.calibration import CODECS, LEVELS

    partial = output.with_name(output.name + ".partial")
    keeps(partial, "what was finished, and the same command resumes")
    with progress_bars() as progress:
        book = osp.calibrate(
            model,
            text,
            cuts=cut or "all",
            levels=level or LEVELS,
            codecs=codec or CODECS,
            prompt_tokens=prompt_tokens,
            weights=weights or (),
            seed=seed,
            checkpoint=partial,
            progress=progress,
        )
    save(book, output)
    if as_json:
        print_json(book.to_dict())
    else:
        views.codebook(out, book)


@app.command()
def verify(
    plan: PlanFile,
    text: Annotated[list[Path], typer.Option("--text", help="Held-out text file to measure on; repeatable.")],
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    profile: Annotated[Path | None, typer.Option(help="Profile for a new plan if this one exceeds the limit.")] = None,
    network: Annotated[Path | None, typer.Option(help="Network for a new plan if this one exceeds the limit.")] = None,
    weights: Weights = None,
    model: ModelOfPlan = None,
    weight_model: WeightModels = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure the loss and the accuracy drop of a plan on held-out text, and tighten the plan to its limit.

    Measured are the codecs at its cuts and the weights of its stages together. With --profile and --network (and
    --weights) a tighter plan is computed, otherwise better levels are used at the same cuts. -o writes the plan that
    keeps the limit. The exit code is 1 if none does.

    Example: `orbitsplit verify plan.json --text held-out.txt --max-accuracy-drop 0.01 -o verified.json`
    """
    check_writable(output)
    check_readable(text)
    loaded = load_plan(plan, weight_model or (), weights or ())
    book = load_optional(osp.Codebook, codebook)
    replan = replan_within(loaded, book, profile, network, weights or (), weight_model or ())
    name = model_of(loaded, model)
    with progress_bars() as progress:
        checked = osp.verify(
            loaded,
            name,
            text,
            codebook=book,
            max_accuracy_drop=max_accuracy_drop,
            replan=replan,
            progress=progress,
        )
    save(checked.plan, output)
    if as_json:
        print_json(checked.to_dict())
    else:
        out.print(escape(str(checked)), highlight=False, soft_wrap=True)
    if not checked.is_within:
        sys.exit(FAILED)


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(help="Profile, written by `orbitsplit profile -o`.")],
    network: NetworkFile,
    codebook: CodebookFile = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    loss_budget: Annotated[
        float, typer.Option(help="Largest loss in nats per token; 0: codecs are lossless, inf: no limit.")
    ] = 0.0,
    micro_batches: Annotated[int, typer.Option(help="Micro-batches in the pipeline.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per sequence.")] = 0,
    order: Annotated[Order, typer.Option(help="free: nodes in any order; fixed: as in the network file.")] = "free",
    pin: Annotated[
        list[str] | None,
        typer.Option("--pin", help="Layers that a node must run: 'sat-1=layer 3,layer 4'; 'sat-1=': any."),
    ] = None,
    weights: Weights = None,
    chunk_tokens: Annotated[
        str,
        typer.Option(
            help="Length of chunks of prompts in tokens; auto: the best measured one; none: prompts as a whole."
        ),
    ] = "auto",
    rows: Annotated[
        str | None,
        typer.Option(
            help="Rows of each micro-batch, which then hold the sequences of all; auto: what is best. "
            "Default: those of the profile."
        ),
    ] = None,
    acceptance: Acceptance = 0.0,
    arrivals_per_s: Annotated[
        float | None,
        typer.Option(
            help="Requests arrive independently at this rate, and as many are in flight as there are micro-batches "
            "(times rows) at most. Default: all prompts are there at once."
        ),
    ] = None,
    draft_tokens: Annotated[
        str, typer.Option(help="Guesses that go along with each token; auto: what is best; none: none.")
    ] = "auto",
    objective: Objective = "latency",
    max_nodes: MaxNodes = None,
    time_limit: TimeLimit = None,
    threads: SearchThreads = 1,
    explain: Annotated[bool, typer.Option("--explain", help="Also show binding constraints and alternatives.")] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Choose cuts, nodes, their order, the codec at each cut and the weights of each stage, together.

    Example: `orbitsplit plan profile.json --network leo.toml --codebook book.safetensors --max-accuracy-drop 0.01`
    """
    check_writable(output)
    loaded = load(osp.ModelProfile, profile)
    book = load_optional(osp.Codebook, codebook)
    nodes = load_network(network)
    workload = osp.Workload(
        micro_batches=micro_batches,
        prompt_tokens=loaded.prompt_tokens,
        new_tokens=new_tokens,
        batch_size=loaded.batch_size,
        acceptance=acceptance,
        arrivals_per_s=arrivals_per_s,
    )
    with progress_bars() as progress:
        progress("searching for the best plan", None)
        result = osp.plan(
            loaded,
            nodes,
            workload,
            codebook=book,
            loss_budget=loss_budget,
            max_accuracy_drop=max_accuracy_drop,
            order=order,
            pins=_pins(pin or []),
            weights=weight_options(weights or [], book),
            chunk_tokens=_count_or_auto("--chunk-tokens", chunk_tokens, "tokens"),
            draft_tokens=_count_or_auto("--draft-tokens", draft_tokens, "guesses"),
            rows=_rows(rows),
            objective=objective,
            max_nodes=max_nodes,
            time_limit_s=time_limit,
            threads=threads,
            explain=explain,
        )
    save(result, output)
    if as_json:
        print_json(result.to_dict())
        return
    views.plan(out, result, book)
    text = result.explain() if explain else "\n".join(result.summary())
    if text:
        out.print(escape(text), highlight=False, soft_wrap=True)


def _rows(text: str | None) -> Rows:
    """Return the rows that `--rows` gives."""
    if text is None or text == "auto":
        return None if text is None else "auto"
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"--rows is {quoted(text)}, expected a number of rows or auto")
    return int(text)


def _count_or_auto(option: str, text: str, what: str) -> ChunkTokens:
    """Return what an option gives that is a number of something, auto or none."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{option} is {quoted(text)}, expected a number of {what}, auto or none")
    return int(text)


def _pins(texts: list[str]) -> dict[str, list[str | int]]:
    """Return the pins that `--pin` gives: layers by name, or by index where all are digits."""
    pins: dict[str, list[str | int]] = {}
    for text in texts:
        node, is_pin, layers = text.partition("=")
        if not is_pin:
            raise ValueError(f"--pin is {quoted(text)}, expected NODE=LAYER,LAYER")
        named = [layer.strip() for layer in layers.split(",") if layer.strip()]
        pins.setdefault(node.strip(), []).extend(int(layer) if layer.isdecimal() else layer for layer in named)
    return pins
