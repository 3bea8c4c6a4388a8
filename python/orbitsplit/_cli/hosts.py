"""Commands of runs over several hosts: credentials, node, nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from orbitsplit._models.model_path import find_model
from orbitsplit.runtime import FleetStatus, Hosts
from orbitsplit.runtime._messages import tls_channel
from orbitsplit.runtime._node.agent import NodeAgent, OwnFiles

from . import views
from .inputs import check_readable, weight_models
from .logs import is_quiet
from .options import Json, WeightModels, app, err, out, print_json
from .outputs import check_writable

# Variables with the number of a process among those that torchrun, Slurm or an indexed Kubernetes job has started.
_RANKS = ("RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX")


@app.command()
def credentials(file: Annotated[Path, typer.Argument(help="File to write; every host needs a copy of it.")]) -> None:
    """Make the credentials that a coordinator and its hosts share: a private key and its certificate.

    Example: `orbitsplit credentials fleet.pem`
    """
    check_writable(file)
    tls_channel.create_credentials(file)
    out.print(f"wrote {escape(str(file))}: whoever has a copy can join", highlight=False, soft_wrap=True)


@app.command()
def node(
    coordinator: Annotated[
        str,
        typer.Option(
            envvar="ORBITSPLIT_COORDINATOR",
            help="HOST:PORT that `run` or `serve` has as its --coordinator; of several with --failover all, as"
            " HOST:PORT,HOST:PORT, the first one first.",
        ),
    ],
    credentials: Annotated[
        Path, typer.Option(envvar="ORBITSPLIT_CREDENTIALS", help="File of `orbitsplit credentials`.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            envvar="ORBITSPLIT_NODE",
            help="Node of plans that this host is; {rank} is the number of this process under torchrun, Slurm and"
            " Kubernetes. Default: the host's name.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model directory here. Default: where the coordinator has it.")
    ] = None,
    weight_model: WeightModels = None,
    once: Annotated[
        bool, typer.Option("--once", help="End with the first coordinator, instead of waiting on.")
    ] = False,
) -> None:
    """Offer this host to a coordinator, as a node of its plans; runs until it is ended.

    It starts and ends the processes of the node's stages, and joins again when the coordinator has ended or was lost.

    Example: `orbitsplit node --coordinator 10.0.0.1:29400 --credentials fleet.pem --name sat-1`
    """
    check_readable([credentials])
    if model is not None:
        find_model(model)
    chosen = name_of(name)
    agent = NodeAgent(coordinator, chosen, credentials, OwnFiles(model, weight_models(weight_model or ())))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: agent.stop())

    def show(where: str) -> None:
        if not is_quiet():
            err.print(f"node {chosen} has joined {where}", highlight=False, soft_wrap=True)

    agent.run(once=once, on_join=show)


@app.command()
def nodes(
    coordinator: Annotated[
        str, typer.Option(envvar="ORBITSPLIT_COORDINATOR", help="HOST:PORT of a running `run` or `serve`.")
    ],
    credentials: Annotated[
        Path, typer.Option(envvar="ORBITSPLIT_CREDENTIALS", help="File of `orbitsplit credentials`.")
    ],
    as_json: Json = False,
) -> None:
    """List the hosts of a coordinator: their stages and memory, rates of links, and why a spare is left alone.

    Example: `orbitsplit nodes --coordinator 10.0.0.1:29400 --credentials fleet.pem`
    """
    check_readable([credentials])
    found = FleetStatus.of(coordinator, credentials=credentials)
    if as_json:
        print_json(found.to_dict())
    else:
        views.fleet(out, found)


def open_hosts(
    command: typer.Context, coordinator: str | None, credentials: Path | None, *, quorum: Iterable[str] | None = None
) -> Hosts | None:
    """Return the hosts that join at an address of this machine, until the command ends; None without one.

    With a `quorum` it is one of several coordinators.
    """
    if coordinator is None:
        return None
    if credentials is None:
        raise ValueError("--coordinator needs --credentials, the file that its hosts have as well")
    hosts = Hosts(coordinator, credentials=credentials, quorum=quorum)
    command.call_on_close(hosts.close)
    return hosts


def name_of(name: str | None) -> str:
    """Return the name of a node: with the rank in place of {rank}, by default that of this machine.

    Raises ValueError if there is no rank.
    """
    if name is None:
        return socket.gethostname()
    if "{rank}" not in name:
        return name
    rank = next((os.environ[variable] for variable in _RANKS if variable in os.environ), None)
    if rank is None:
        raise ValueError(f"--name is {name!r}, and no launcher has set a rank: none of {', '.join(_RANKS)} is there")
    return name.replace("{rank}", rank)
