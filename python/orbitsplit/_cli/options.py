"""What the commands share: the app, consoles, options, and how results are printed and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import orbitsplit as osp
from orbitsplit._io.files import write_text

# Bad input (a file, a key, a value) exits with 2, as click does for bad arguments; work that failed, with 1.
BAD_INPUT, FAILED = 2, 1

app = typer.Typer(
    name="orbitsplit",
    help="Split a model over several weak machines joined by slow links: plan, compress, run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result to this file.")]
Model = Annotated[str, typer.Argument(help="A model directory, a GGUF file or a hub id.")]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds to search; then the best plan so far.")]
Objective = Annotated[str, typer.Option(help="latency, throughput, time_to_first_token or time_per_token, in seconds.")]
MaxNodes = Annotated[int | None, typer.Option(help="At most so many nodes take part.")]
NetworkFile = Annotated[Path, typer.Option("--network", help="Network file (TOML).")]
CodebookFile = Annotated[Path | None, typer.Option("--codebook", help="Written by `orbitsplit calibrate -o`.")]
MaxAccuracyDrop = Annotated[float | None, typer.Option(help="Drop of accuracy allowed; 0.01 is one point.")]
PromptTokens = Annotated[int, typer.Option(help="Tokens of each prompt.")]
ProfileFile = Annotated[Path | None, typer.Option("--profile", help="Profile to plan again with after a loss.")]
NetworkForLoss = Annotated[Path | None, typer.Option("--network", help="Network to plan again for after a loss.")]
ExactResume = Annotated[
    bool,
    typer.Option(
        "--exact-resume/--quick-resume",
        help="After a loss: replay known tokens one at a time, for the same text, or compute them at once, sooner.",
    ),
]
LinksFile = Annotated[Path | None, typer.Option("--links", help="Link conditions over time (TOML).")]
ModelInstead = Annotated[
    str | None, typer.Option("--model", help="Directory, GGUF file or hub id; default: the plan's.")
]


def print_json(data: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(data, allow_nan=False))


def check_writable(output: Path | None) -> None:
    """Find out before long work, not after it, that its result cannot be written."""
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise ValueError(f"{output} cannot be written: it is a directory, or its folder does not exist")


def check_picture(output: Path | None) -> None:
    """Find out before a long run, not after it, that a picture cannot be drawn."""
    if output is not None and output.suffix != ".json":
        from orbitsplit._plans import timeline

        timeline.check_format(output)


def save_trace(trace: osp.Trace, output: Path | None) -> None:
    """Write a trace as JSON (for trace viewers if the name ends so) or as a picture, where a file is given."""
    if output is None:
        return
    if output.name.endswith(".chrome.json"):
        write_text(output, json.dumps(trace.to_chrome()))
        return
    if output.suffix == ".json":
        trace.save(output)
        return
    from orbitsplit._plans.timeline import timeline

    timeline({output.stem: trace}, output)
