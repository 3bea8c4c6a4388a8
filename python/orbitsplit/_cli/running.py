"""Commands that run plans: simulate, run, serve."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._io.garbage import no_collections
from orbitsplit._models import lazy_imports
from orbitsplit._models.model_path import find_model
from orbitsplit.runtime import Hosts
from orbitsplit.runtime._launcher import check_ranks, torchrun_rank
from orbitsplit.runtime._parent import worker_process

from . import views
from .hosts import open_hosts
from .inputs import RunFiles, RunInputs, api_key_of, check_readable, load, load_network, weight_models
from .logs import is_quiet
from .options import (
    AssistantModel,
    AssistantTokens,
    CodebookFile,
    Coordinator,
    CredentialsFile,
    ExactResume,
    FrequencyPenalty,
    Json,
    LinksFile,
    MinNewTokens,
    MinP,
    ModelOfPlan,
    NoRepeatNgramSize,
    Output,
    PlanFile,
    PresencePenalty,
    Rebalance,
    RepetitionPenalty,
    ReplanNetwork,
    ReplanProfile,
    Stop,
    TopK,
    TypicalP,
    WeightModels,
    Weights,
    app,
    err,
    out,
    print_json,
    progress_bars,
)
from .outputs import check_trace, save_trace
from .progress import ProgressBars

# More guesses of a small model are seldom all right.
_ASSISTANT_TOKENS = 8


@app.command()
def simulate(plan: PlanFile, output: Output = None, as_json: Json = False) -> None:
    """Simulate a plan event by event, with the predicted times; -o writes a picture (.png, .svg) or a trace (.json).

    Example: `orbitsplit simulate plan.json -o timeline.png`
    """
    check_trace(output)
    trace = osp.simulate(load(osp.Plan, plan))
    save_trace(trace, output)
    if as_json:
        print_json(trace.to_dict())
    else:
        views.totals(out, trace)


@app.command(name="run")
def run_plan(
    command: typer.Context,
    plan: PlanFile,
    prompt: Annotated[list[str], typer.Option("--prompt", help="Text to continue; repeatable.")],
    model: ModelOfPlan = None,
    codebook: CodebookFile = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate per prompt. Default: as in the plan, 32 if it has none.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature. Default: the model's.")] = None,
    top_k: TopK = None,
    top_p: Annotated[float | None, typer.Option(help="Top-p of sampling. Default: the model's.")] = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    min_new_tokens: MinNewTokens = None,
    stop: Stop = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling. Default: a random one.")] = None,
    prompt_lookup: Annotated[
        int | None,
        typer.Option(help="Most tokens to guess from the text so far, checked with each token. Default: as planned."),
    ] = None,
    assistant_model: AssistantModel = None,
    assistant_tokens: AssistantTokens = None,
    weight_model: WeightModels = None,
    links: LinksFile = None,
    profile: ReplanProfile = None,
    network: ReplanNetwork = None,
    weights: Weights = None,
    exact_resume: ExactResume = True,
    rebalance: Rebalance = None,
    coordinator: Coordinator = None,
    credentials: CredentialsFile = None,
    strict_memory: Annotated[
        bool, typer.Option("--strict-memory", help="Fail if a stage used more memory than its node has.")
    ] = False,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Run a plan, one process per stage; -o writes a picture (.png, .svg) or a trace (.json, .chrome.json).

    The text of one prompt is printed as it appears. With --profile and --network the run resumes after the loss of a
    node or a link. With --coordinator, stages run on the hosts that join there. Started by torchrun, with one process
    per stage, rank k is stage k. ORBITSPLIT_SECRET in the environment authenticates the messages.

    Example: `orbitsplit run plan.json --prompt "The satellite" --new-tokens 16`
    """
    rank = torchrun_rank()
    if rank:
        _follow(rank, model, codebook, weight_models(weight_model or ()))
    if rank == 0 and not (links is None and profile is None and network is None and coordinator is None):
        raise ValueError("--links, --profile, --network and --coordinator are for runs that torchrun has not started")
    check_trace(output)
    check_readable([] if credentials is None else [credentials])
    guesses = _assistant_guesses(assistant_model, assistant_tokens)
    if guesses is not None and prompt_lookup is not None:
        raise ValueError("--prompt-lookup and --assistant-model exclude each other: give one of them")
    files = RunFiles(
        plan=plan,
        model=model,
        codebook=codebook,
        links=links,
        profile=profile,
        network=network,
        weights=weights or (),
        weight_models=weight_model or (),
    )
    inputs = files.load()
    if rank == 0:
        check_ranks(len(inputs.plan.stages))
    count = (inputs.plan.workload.new_tokens or 32) if new_tokens is None else new_tokens
    sampling: dict[str, Any] = {
        "do_sample": sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "min_new_tokens": min_new_tokens,
        "stop_strings": stop,
        "seed": seed,
        "prompt_lookup_num_tokens": prompt_lookup,
        "num_assistant_tokens": guesses,
    }
    hosts = open_hosts(command, coordinator, credentials)
    with progress_bars() as progress:
        pipe, tokenizer, _ = _open(
            inputs,
            progress,
            assistant_model=assistant_model,
            exact_resume=exact_resume,
            rebalance=rebalance,
            strict_memory=strict_memory,
            is_torchrun=rank == 0,
            hosts=hosts,
        )
        with pipe:
            tokens = tokenizer(prompt, return_tensors="pt", padding=True)
            if len(prompt) == 1 and not as_json:
                progress.stop()
                views.begin_text(out, prompt[0])
                sampling["streamer"] = _text_streamer(tokenizer)
            if stop:
                sampling["tokenizer"] = tokenizer
            texts = pipe.generate(tokens.input_ids, tokens.attention_mask, max_new_tokens=count, **sampling)
    continued = tokenizer.batch_decode(texts[:, tokens.input_ids.shape[1] :], skip_special_tokens=True)
    shown = [] if "streamer" in sampling else list(zip(prompt, continued, strict=True))
    _show_run(inputs.plan, pipe, shown, as_json=as_json)
    if pipe.last_run is not None:
        save_trace(pipe.last_run.trace, output)


@app.command()
def serve(
    command: typer.Context,
    plan: PlanFile,
    model: ModelOfPlan = None,
    codebook: CodebookFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model for clients. Default: the last part of its path.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ORBITSPLIT_API_KEY", help="Key that clients must send. Default: none.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must send, instead of --api-key.")
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) with which the server speaks HTTPS.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="Private key (PEM) of the certificate. Default: in the same file.")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Form of the log; json: one object a line, for programs.")
    ] = "text",
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens of a prompt and its answer. Default: as many as the plan reserves memory for."),
    ] = None,
    max_requests: Annotated[int, typer.Option(help="Most choices that run or wait; more are refused.")] = 256,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Most choices that run at once. Default: as memory allows, up to 64."),
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of different choices in one forward. Default: 32."),
    ] = None,
    prefix_cache: Annotated[
        int,
        typer.Option(min=0, help="Tokens of ended choices that are kept for prompts that begin alike."),
    ] = 4096,
    assistant_model: AssistantModel = None,
    assistant_tokens: AssistantTokens = None,
    weight_model: WeightModels = None,
    links: LinksFile = None,
    profile: ReplanProfile = None,
    network: ReplanNetwork = None,
    weights: Weights = None,
    exact_resume: ExactResume = True,
    rebalance: Rebalance = None,
    coordinator: Coordinator = None,
    credentials: CredentialsFile = None,
    failover: Annotated[
        bool,
        typer.Option(
            "--failover",
            help="Be one of several coordinators with the same plan: serve once a majority of the hosts of --network"
            " has joined this one, and take over the requests of the last one.",
        ),
    ] = False,
) -> None:
    """Serve a plan to OpenAI clients: completions, chats, responses and embeddings, streaming or not.

    With --failover it listens for clients once it serves, so that they reach that one of the coordinators which does.

    Example: `orbitsplit serve plan.json --port 8000`
    """
    guesses = _assistant_guesses(assistant_model, assistant_tokens)
    api_key = api_key_of(api_key, api_key_file)
    check_readable([file for file in (ssl_certfile, ssl_keyfile, credentials) if file is not None])
    files = RunFiles(
        plan=plan,
        model=model,
        codebook=codebook,
        links=links,
        profile=profile,
        network=network,
        weights=weights or (),
        weight_models=weight_model or (),
    )
    inputs = files.load()
    if failover and (coordinator is None or network is None):
        raise ValueError("--failover needs --coordinator, and --profile and --network to plan with the hosts left")
    from orbitsplit.serve import ServerOptions, serve_model
    from orbitsplit.serve._server import listen

    options = ServerOptions(
        model_name=name,
        context_tokens=context,
        api_key=api_key,
        max_requests=max_requests,
        num_assistant_tokens=guesses,
    )
    quorum = [node.name for node in load_network(network).nodes] if failover and network is not None else None
    hosts = open_hosts(command, coordinator, credentials, quorum=quorum)
    listening = None
    with progress_bars() as progress:
        if failover and hosts is not None:
            _stand_by(hosts, progress)
            # From now on clients wait here, and not for another coordinator.
            listening = listen(host, port)
            command.call_on_close(listening.close)
        pipe, _, path = _open(
            inputs,
            progress,
            hosts=hosts,
            assistant_model=assistant_model,
            exact_resume=exact_resume,
            rebalance=rebalance,
            most_groups=max_batch,
            max_batch_tokens=max_batch_tokens,
            prefix_cache_tokens=prefix_cache,
        )
    with pipe:
        serve_model(
            pipe,
            path,
            host,
            port,
            options=options,
            log_level="error" if is_quiet() else "info",
            log_format=log_format,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
            listening=listening,
            # In JSON the log has the address.
            on_start=None if log_format == "json" else lambda url: err.print(f"serving at {url}/v1", highlight=False),
        )


def _stand_by(hosts: Hosts, progress: ProgressBars) -> None:
    """Wait until this coordinator works, with what takes seconds to import already there."""
    lazy_imports.install()
    with no_collections():
        from orbitsplit._models import source  # noqa: F401
        from orbitsplit.runtime import Pipeline  # noqa: F401
    hosts.wait_for_majority(on_poll=lambda: progress("standing by", 0.0))


def _assistant_guesses(model: str | None, tokens: int | None) -> int | None:
    """Return how many tokens an assistant guesses at most, None without one. Raises ValueError where it is missing."""
    if model is None:
        if tokens is not None:
            raise ValueError("--assistant-tokens needs --assistant-model")
        return None
    find_model(model)
    return _ASSISTANT_TOKENS if tokens is None else tokens


def _follow(rank: int, model: str | None, codebook: Path | None, models: dict[str, str]) -> None:
    """Serve as the worker of a stage; does not return."""
    if model is not None:
        find_model(model)
    check_readable([] if codebook is None else [codebook])
    lazy_imports.install()
    from orbitsplit.runtime import _torchrun as torchrun

    torchrun.run_worker(rank, model=model, codebook=codebook, weight_models=models)


def _open(
    inputs: RunInputs,
    progress: ProgressBars,
    *,
    is_torchrun: bool = False,
    **options: Any,
) -> tuple[osp.Pipeline, Any, Path | str]:
    """Start the pipeline of a plan; return it, the model's tokenizer and the model's directory or hub id.

    `options` are further arguments of `Pipeline`.
    """
    progress("importing torch and transformers", 0.0)
    lazy_imports.install()
    if not is_torchrun and options["hosts"] is None:
        worker_process.prepare(inputs.model)
    with no_collections():
        from orbitsplit._models.source import load_tokenizer, open_model
        from orbitsplit.runtime import Pipeline

    path = open_model(inputs.model, progress=progress)
    deployment = None
    if is_torchrun:
        from orbitsplit.runtime import _torchrun as torchrun

        deployment = torchrun.deploy(inputs.plan)
    with ThreadPoolExecutor(1) as loading:
        tokenizer = loading.submit(load_tokenizer, path)  # large ones take as long as the stages
        pipe = Pipeline(
            inputs.plan,
            path,
            codebook=inputs.codebook,
            conditions=inputs.conditions,
            replan=inputs.replan,
            progress=progress,
            deployment=deployment,
            **options,
        )
        try:
            return pipe, tokenizer.result(), path
        except BaseException:
            pipe.close()
            raise


def _text_streamer(tokenizer: Any) -> Any:
    """Return a streamer of transformers that prints the text of one prompt as it appears, whole words at a time."""
    from transformers.generation.streamers import TextStreamer

    def show(text: str, stream_end: bool = False) -> None:
        end = "\n" if stream_end else ""
        out.print(text, end=end, style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = show
    return streamer


def _show_run(plan: osp.Plan, pipe: osp.Pipeline, texts: list[tuple[str, str]], *, as_json: bool) -> None:
    measured = pipe.last_run
    if as_json:
        changes = {
            "recoveries": [recovery.to_dict() for recovery in pipe.recoveries],
            "migrations": [migration.to_dict() for migration in pipe.migrations],
        }
        run = None if measured is None else {**measured.to_dict(), "predicted_and_measured": measured.against(plan)}
        print_json({"texts": [text for _, text in texts], "run": run, **changes})
        return
    for recovery in pipe.recoveries:
        out.print(f"recovered: {escape(str(recovery))}", highlight=False, soft_wrap=True)
    for migration in pipe.migrations:
        out.print(f"migrated: {escape(str(migration))}", highlight=False, soft_wrap=True)
    views.texts(out, texts)
    if measured is not None:
        views.run(out, measured)
        if not pipe.recoveries:
            views.prediction(out, plan, measured)
