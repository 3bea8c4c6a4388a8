"""Commands that run plans: simulate, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._models import lazy_imports
from orbitsplit._models.model_path import find_model
from orbitsplit.runtime._launcher import check_ranks, torchrun_rank

from . import views
from .hosts import open_hosts
from .inputs import RunFiles, check_readable, load, weight_models
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
    out,
    print_json,
    progress_bars,
)
from .outputs import check_trace, save_trace
from .pipelines import assistant_guesses, open_pipeline


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
    guesses = assistant_guesses(assistant_model, assistant_tokens)
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
        pipe, tokenizer, _ = open_pipeline(
            inputs,
            progress,
            assistant_model=assistant_model,
            exact_resume=exact_resume,
            rebalance=rebalance,
            strict_memory=strict_memory,
            is_torchrun=rank == 0,
            generation={"max_new_tokens": count, **sampling},
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
    # With an encoder, texts begin with the decoder's start and not with the prompt.
    start = 0 if pipe.has_encoder else tokens.input_ids.shape[1]
    continued = tokenizer.batch_decode(texts[:, start:], skip_special_tokens=True)
    shown = [] if "streamer" in sampling else list(zip(prompt, continued, strict=True))
    _show_run(inputs.plan, pipe, shown, as_json=as_json)
    if pipe.last_run is not None:
        save_trace(pipe.last_run.trace, output)


def _follow(rank: int, model: str | None, codebook: Path | None, models: dict[str, str]) -> None:
    """Serve as the worker of a stage; does not return."""
    if model is not None:
        find_model(model)
    check_readable([] if codebook is None else [codebook])
    lazy_imports.install()
    from orbitsplit.runtime import _torchrun as torchrun

    torchrun.run_worker(rank, model=model, codebook=codebook, weight_models=models)


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
