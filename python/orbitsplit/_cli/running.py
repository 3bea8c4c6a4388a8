"""Commands that run plans: simulate, run, serve, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import orbitsplit as osp

from . import views
from .options import (
    CodebookFile,
    Json,
    LinksFile,
    ModelInstead,
    NetworkForLoss,
    Output,
    ProfileFile,
    PromptTokens,
    app,
    check_picture,
    check_writable,
    err,
    out,
    print_json,
    save_trace,
)


@app.command()
def simulate(
    plan: Annotated[Path, typer.Argument(help="A plan written by `orbitsplit plan -o`.")],
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Simulate a plan's prediction event by event; -o writes a picture (.png, .svg) or a trace (.json).

    Example: `orbitsplit simulate plan.json -o timeline.png`
    """
    trace = osp.simulate(osp.Plan.load(plan))
    save_trace(trace, output)
    if as_json:
        print_json(trace.to_dict())
    else:
        views.totals(out, trace)


@app.command(name="run")
def run_plan(
    plan: Annotated[Path, typer.Argument(help="A plan written by `orbitsplit plan -o`.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="Text to continue; may be given again.")],
    model: ModelInstead = None,
    codebook: CodebookFile = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate per prompt; default: the plan's, 32 if it has none.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of sampling; default: the model's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    links: LinksFile = None,
    profile: ProfileFile = None,
    network: NetworkForLoss = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Run a plan, one process per stage; -o writes a picture (.png, .svg) or a trace (.json, .chrome.json).

    With --profile and --network it goes on after the loss of a node or a link. Started by torchrun, with one process
    for each stage, rank k is stage k; ORBITSPLIT_SECRET in the environment authenticates the messages.

    Example: `orbitsplit run plan.json --prompt "The satellite" --new-tokens 16`
    """
    from orbitsplit.runtime import _torchrun as torchrun

    rank = torchrun.torchrun_rank()
    if rank:
        torchrun.run_worker(rank, model=model, codebook=codebook)
    loaded = osp.Plan.load(plan)
    check_writable(output)
    check_picture(output)
    sampling: dict[str, Any] = {"do_sample": sample, "temperature": temperature, "top_p": top_p, "seed": seed}
    with views.Report(err) as report:
        pipe, tokenizer = _open(
            loaded, model, codebook, links, _replanning(codebook, profile, network), report, is_torchrun=rank == 0
        )
        count = (loaded.workload.new_tokens or 32) if new_tokens is None else new_tokens
        with pipe:
            inputs = tokenizer(prompt, return_tensors="pt", padding=True)
            tokens = pipe.generate(inputs.input_ids, inputs.attention_mask, max_new_tokens=count, **sampling)
    texts = tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    _show_run(loaded, pipe, list(zip(prompt, texts, strict=True)), as_json=as_json)
    if pipe.last_run is not None:
        save_trace(pipe.last_run.trace, output)


@app.command()
def serve(
    plan: Annotated[Path, typer.Argument(help="A plan written by `orbitsplit plan -o`.")],
    model: ModelInstead = None,
    codebook: CodebookFile = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: its last part.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="ORBITSPLIT_API_KEY", help="Clients must send it.")] = None,
    max_requests: Annotated[int, typer.Option(help="Requests that may wait or run; more are sent away.")] = 256,
    links: LinksFile = None,
    profile: ProfileFile = None,
    network: NetworkForLoss = None,
) -> None:
    """Serve a plan to OpenAI clients: /v1/completions and /v1/chat/completions, streaming or not.

    Example: `orbitsplit serve plan.json --port 8000`
    """
    from orbitsplit.serve import serve_model

    loaded = osp.Plan.load(plan)
    with views.Report(err) as report:
        pipe, _ = _open(loaded, model, codebook, links, _replanning(codebook, profile, network), report)
    with pipe:
        serve_model(
            pipe,
            _path(loaded, model, None),
            host,
            port,
            model_name=name,
            api_key=api_key,
            max_requests=max_requests,
            on_start=lambda url: err.print(f"serving at {url}/v1", highlight=False),
        )


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Model directory, GGUF file or hub id; default: Gemma 3 270M.")
    ] = None,
    network: Annotated[Path | None, typer.Option(help="Network file; default: four CubeSats.")] = None,
    prompt_tokens: PromptTokens = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 24,
    loss_budget: Annotated[float, typer.Option(help="Nats per token that compression may cost.")] = 0.1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for plan, trace and timeline.")] = Path(
        "demo-output"
    ),
    as_json: Json = False,
) -> None:
    """Plan, compress and run a real language model over four emulated satellites.

    Example: `orbitsplit demo --new-tokens 16`
    """
    from .demo import Settings
    from .demo import run as run_demo

    settings = Settings(
        model=model,
        network=network,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        loss_budget=loss_budget,
        output=output,
    )
    result = run_demo(settings, err if as_json else out)
    if as_json:
        print_json(result)


def _path(plan: osp.Plan, model: str | None, report: views.Report | None) -> Path | str:
    from orbitsplit._models.source import open_model

    named = model if model is not None else plan.model
    if named is None:
        raise ValueError("the plan names no model: give one with --model")
    return open_model(named, progress=report)


def _open(
    plan: osp.Plan,
    model: str | None,
    codebook: Path | None,
    links: Path | None,
    replan: Any,
    report: views.Report,
    *,
    is_torchrun: bool = False,
) -> tuple[osp.Pipeline, Any]:
    """Start the pipeline of a plan; return it and the model's tokenizer."""
    from orbitsplit._models.source import load_tokenizer

    if is_torchrun and (links is not None or replan is not None):
        raise ValueError("--links, --profile and --network are for runs whose processes are all on this machine")
    path = _path(plan, model, report)
    tokenizer = load_tokenizer(path)
    deployment = None
    if is_torchrun:
        from orbitsplit.runtime import _torchrun as torchrun

        deployment = torchrun.deploy(plan)
    pipe = osp.Pipeline(
        plan,
        path,
        codebook=codebook,
        conditions=None if links is None else osp.LinkConditions.load(links),
        replan=replan,
        progress=report,
        deployment=deployment,
    )
    return pipe, tokenizer


def _replanning(codebook: Path | None, profile: Path | None, network: Path | None) -> Any:
    """Return what plans again after a loss, None where profile and network are not given."""
    if profile is None and network is None:
        return None
    if profile is None or network is None:
        raise ValueError("to go on after a loss, give --profile and --network")
    book = None if codebook is None else osp.Codebook.load(codebook)
    return osp.replanner(osp.ModelProfile.load(profile), osp.Network.load(network), codebook=book)


def _show_run(plan: osp.Plan, pipe: osp.Pipeline, texts: list[tuple[str, str]], *, as_json: bool) -> None:
    measured = pipe.last_run
    if as_json:
        recoveries = [recovery.to_dict() for recovery in pipe.recoveries]
        run = None if measured is None else {**measured.to_dict(), "predicted_and_measured": measured.against(plan)}
        print_json({"texts": [text for _, text in texts], "run": run, "recoveries": recoveries})
        return
    for recovery in pipe.recoveries:
        out.print(f"lost: {escape(str(recovery))}", highlight=False, soft_wrap=True)
    views.texts(out, texts)
    if measured is not None:
        views.run(out, measured)
        if not pipe.recoveries:
            views.prediction(out, plan, measured)
