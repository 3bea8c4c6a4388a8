"""Commands of the first minutes: init, demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer
from rich.markup import escape

import orbitsplit as osp
from orbitsplit._io.files import write_text
from orbitsplit._io.units import format_bytes, parse_quantity
from orbitsplit._io.validation import quoted
from orbitsplit._models.model_path import find_model

from .inputs import load_network
from .logs import is_quiet
from .options import Json, OutputFolder, PromptTokens, app, err, out, print_json
from .outputs import check_folder, check_writable

Value = TypeVar("Value")
Shape = Literal["all", "chain"]

_MEMORY, _SLOWDOWN, _BANDWIDTH, _LATENCY = "8 GB", 1.0, "100 Mbit/s", "5 ms"


@app.command()
def init(
    nodes: Annotated[
        str | None,
        typer.Option(help='Nodes, "sat-0=8 GB,sat-1=4 GB", names alone, or how many. Default: asked, with the rest.'),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory of nodes that --nodes gives none.")] = _MEMORY,
    slowdown: Annotated[
        float, typer.Option(help="How many times slower the nodes are than the machine that measures the profile.")
    ] = _SLOWDOWN,
    links: Annotated[Shape, typer.Option(help="all: each node with each; chain: each with the next.")] = "all",
    bandwidth: Annotated[str, typer.Option(help="Rate of the links.")] = _BANDWIDTH,
    latency: Annotated[str, typer.Option(help="Latency of the links, one way.")] = _LATENCY,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The network (.toml).")] = Path("network.toml"),
) -> None:
    """Write a network file with comments, to be edited: by asking, or from --nodes without asking.

    Example: `orbitsplit init --nodes "sat-0=8 GB,sat-1=4 GB" --bandwidth "10 Mbit/s" -o network.toml`
    """
    check_writable(output)
    if output.exists() and not force:
        raise ValueError(f"{output} exists already: give another with -o, or --force to replace it")
    if nodes is None:
        network = _asked()
    else:
        given = [_node(text, memory, slowdown) for text in _names(nodes)]
        network = _network(given, links, _rate(bandwidth), _seconds(latency))
    write_text(output, network.to_toml(comments=True))
    name = escape(str(output))
    out.print(f"{name}: {len(network.nodes)} nodes, {len(network.links)} links; edit it, then", highlight=False)
    out.print(f"  orbitsplit plan profile.json --network {name}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Model directory, GGUF file or hub id. Default: Gemma 3 270M.")
    ] = None,
    network: Annotated[
        Path | None, typer.Option(help="Network (TOML). Default: four CubeSats on S-band links.")
    ] = None,
    prompt_tokens: PromptTokens = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 24,
    loss_budget: Annotated[float, typer.Option(help="Largest loss in nats per token.")] = 0.1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure and calibrate again what an earlier demo kept in the cache.")
    ] = False,
    output: OutputFolder = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Plan, compress and run a real language model over four emulated satellites.

    The first time takes minutes: the model is converted, its layers are measured and codecs are fitted to it. All that
    is kept in the cache, and the next time only plans and runs.

    Example: `orbitsplit demo --new-tokens 16`
    """
    check_folder(output)
    if model is not None:
        find_model(model)
    nodes = osp.Network.sample("cubesat_sband") if network is None else load_network(network)
    from .demo import Settings
    from .demo import run as run_demo

    settings = Settings(
        model=model,
        network=nodes,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        loss_budget=loss_budget,
        output=output,
        is_fresh=fresh,
    )
    result = run_demo(settings, err if as_json else out, is_quiet=is_quiet())
    if as_json:
        print_json(result)


def _names(nodes: str) -> list[str]:
    """Return the parts of `--nodes`; a number is as many names."""
    if nodes.strip().isdecimal():
        return [f"node-{k}" for k in range(_count(nodes.strip()))]
    return [part.strip() for part in nodes.split(",") if part.strip()]


def _node(text: str, memory: str, slowdown: float) -> osp.Node:
    """Return the node that NAME or NAME=MEMORY stands for."""
    name, _, own = text.partition("=")
    size = _memory(own.strip() or memory, f"memory of node {quoted(name.strip())}")
    return osp.Node(name.strip(), size, slowdown=slowdown)


def _memory(text: str, where: str = "the memory") -> int:
    return int(parse_quantity(text, "bytes", where))


def _rate(text: str) -> float:
    return parse_quantity(text, "bytes_per_s", "the bandwidth")


def _seconds(text: str) -> float:
    return parse_quantity(text, "seconds", "the latency")


def _network(nodes: Sequence[osp.Node], links: Shape, bytes_per_s: float, latency_s: float) -> osp.Network:
    """Return a network whose links are alike, in both directions."""
    names = [node.name for node in osp.Network("network", tuple(nodes)).nodes]  # which compares the names
    pairs = combinations(names, 2) if links == "all" else pairwise(names)
    both = [ends for a, b in pairs for ends in ((a, b), (b, a))]
    made = tuple(osp.Link(source, destination, bytes_per_s, latency_s) for source, destination in both)
    return osp.Network(f"{len(nodes)} nodes", tuple(nodes), made)


def _asked() -> osp.Network:
    """Return the network that the answers describe. Raises ValueError where nobody can answer."""
    if not sys.stdin.isatty():
        raise ValueError('there is no terminal to ask at: give the nodes, as in --nodes "sat-0=8 GB,sat-1=4 GB"')
    out.print("Enter takes what is in brackets; everything can be edited in the file.", highlight=False)
    count = _ask("How many nodes", "2", _count)
    nodes = []
    for k in range(count):
        name = _ask(f"Name of node {k}", f"node-{k}", lambda text: osp.Node(text, 0, slowdown=1.0).name)
        size = _ask(f"  memory of {name}", _own_memory() if k == 0 else _MEMORY, _memory)
        speed = _ask("  how many times slower than this machine", f"{_SLOWDOWN:g}", _slowdown)
        nodes.append(osp.Node(name, size, slowdown=speed))
    if count == 1:
        return _network(nodes, "all", 1.0, 0.0)
    shape: Shape = _ask("Links: all (each node with each) or chain (each with the next)", "all", _shape)
    return _network(nodes, shape, _ask("  their bandwidth", _BANDWIDTH, _rate), _ask("  latency", _LATENCY, _seconds))


def _ask(question: str, default: str, parsed: Callable[[str], Value]) -> Value:
    """Return the parsed answer to a question, which is asked again after a wrong one."""
    while True:
        answer = typer.prompt(question, default=default)
        try:
            return parsed(answer.strip())
        except ValueError as error:
            out.print(escape(str(error)), highlight=False, soft_wrap=True)


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1000):
        raise ValueError(f"the number of nodes is {quoted(text)}, must be from 1 to 1000")
    return int(text)


def _slowdown(text: str) -> float:
    try:
        return osp.Node("node", 0, slowdown=float(text)).slowdown or _SLOWDOWN
    except ValueError:
        raise ValueError(f"the slowdown is {quoted(text)}, must be a number above 0") from None


def _shape(text: str) -> Shape:
    if text not in ("all", "chain"):
        raise ValueError(f"links are {quoted(text)}, must be all or chain")
    return "all" if text == "all" else "chain"


def _own_memory() -> str:
    """Return the memory of this machine without a gigabyte for all else, in whole gigabytes."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere
        return _MEMORY
    return format_bytes(max(1, int(size / 1e9) - 1) * 1e9)
