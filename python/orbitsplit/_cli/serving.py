"""The command that serves a plan to clients: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orbitsplit._io.garbage import no_collections
from orbitsplit._models import lazy_imports
from orbitsplit.runtime import Hosts

from .hosts import open_hosts
from .inputs import RunFiles, api_key_of, check_readable, load_network
from .logs import is_quiet
from .options import (
    AssistantModel,
    AssistantTokens,
    CodebookFile,
    Coordinator,
    CredentialsFile,
    ExactResume,
    LinksFile,
    ModelOfPlan,
    PlanFile,
    Rebalance,
    ReplanNetwork,
    ReplanProfile,
    WeightModels,
    Weights,
    app,
    err,
    progress_bars,
)
from .pipelines import assistant_guesses, open_pipeline
from .progress import ProgressBars


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
    guesses = assistant_guesses(assistant_model, assistant_tokens)
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
    from orbitsplit.serve._server import bound, listen

    options = ServerOptions(
        model_name=name,
        context_tokens=context,
        api_key=api_key,
        max_requests=max_requests,
        num_assistant_tokens=guesses,
    )
    quorum = [node.name for node in load_network(network).nodes] if failover and network is not None else None
    # The port is taken before anything is loaded. Coordinators that stand by leave it: several may share an address.
    listening = None if failover else bound(host, port)
    if listening is not None:
        command.call_on_close(listening.close)
    hosts = open_hosts(command, coordinator, credentials, quorum=quorum)
    with progress_bars() as progress:
        if failover and hosts is not None:
            _stand_by(hosts, progress)
            # From now on clients wait here, and not for another coordinator.
            listening = listen(host, port)
            command.call_on_close(listening.close)
        pipe, _, path = open_pipeline(
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
