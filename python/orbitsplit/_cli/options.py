"""What the commands share: the app and its global options, consoles, options of several commands, printing."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

import orbitsplit as osp

from . import logs, views
from .progress import ProgressBars, interrupted

# Invalid input (a file, a key, a value) exits with 2, as click does for invalid arguments; work that failed, with 1.
BAD_INPUT, FAILED = 2, 1

# What a shell takes for a command that Ctrl-C ended.
_INTERRUPTED = 130


class _Commands(TyperGroup):
    """The commands; Ctrl-C ends them with one line that says what was kept."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # of typer's own copy of click
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print(escape(interrupted()), highlight=False, soft_wrap=True)
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="orbitsplit",
    cls=_Commands,
    help="Split a model over several weak machines joined by slow links: plan, compress, run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
out = views.open_console()
err = views.open_console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result to this file.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; created if it is absent.")]
ProblemFile = Annotated[Path, typer.Argument(help="Planning problem (JSON).")]
PlanFile = Annotated[Path, typer.Argument(help="Plan, written by `orbitsplit plan -o`.")]
Model = Annotated[str, typer.Argument(help="Model directory, GGUF file or hub id.")]
ModelOfPlan = Annotated[
    str | None, typer.Option("--model", help="Model directory, GGUF file or hub id. Default: the plan's model.")
]
TimeLimit = Annotated[
    float | None, typer.Option(help="Seconds after which the search returns the best plan found. Default: no limit.")
]
SearchThreads = Annotated[
    int, typer.Option("--threads", help="Threads of a search in free order; the plan is the same with any number.")
]
Objective = Annotated[
    str, typer.Option(help="What to minimise: latency, throughput, time_to_first_token or time_per_token.")
]
MaxNodes = Annotated[int | None, typer.Option(help="Largest number of nodes to use. Default: no limit.")]
NetworkFile = Annotated[Path, typer.Option("--network", help="Network (TOML).")]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights", help="Weights that stages may have: int8=PROFILE.json; losses are the codebook's. Repeatable."
    ),
]
WeightModels = Annotated[
    list[str] | None,
    typer.Option(
        "--weight-model",
        help="Model of weights of the plan: int8=MODEL. Default: the plan's weight_models. Repeatable.",
    ),
]
Acceptance = Annotated[
    float, typer.Option(help="Probability that a guessed token is right if those before it were; 0: no guesses.")
]
CodebookFile = Annotated[
    Path | None, typer.Option("--codebook", help="Codebook, written by `orbitsplit calibrate -o`.")
]
MaxAccuracyDrop = Annotated[float | None, typer.Option(help="Largest drop in accuracy; 0.01 is one percentage point.")]
PromptTokens = Annotated[int, typer.Option(help="Tokens of each prompt.")]
ReplanProfile = Annotated[
    Path | None, typer.Option("--profile", help="Profile for a new plan after a node or a link is lost.")
]
ReplanNetwork = Annotated[
    Path | None, typer.Option("--network", help="Network for a new plan after a node or a link is lost.")
]
ExactResume = Annotated[
    bool,
    typer.Option(
        "--exact-resume/--quick-resume",
        help="After a loss: replay known tokens one at a time, for the same text, or compute them at once, sooner.",
    ),
]
Rebalance = Annotated[
    bool | None,
    typer.Option(
        "--rebalance/--no-rebalance",
        help="With --profile and --network: go over to a better plan when a host joins or measured times drift, if it"
        " pays. Default: with --coordinator.",
    ),
]
AssistantModel = Annotated[
    str | None,
    typer.Option(
        "--assistant-model",
        help="Small model of the same vocabulary that guesses tokens, checked with each one: directory, GGUF file or"
        " hub id. Default: none.",
    ),
]
AssistantTokens = Annotated[
    int | None,
    typer.Option("--assistant-tokens", min=1, max=32, help="Most tokens that the assistant guesses. Default: 8."),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        help="HOST:PORT of this machine, where hosts join (`orbitsplit node`) that run the stages. Default: they run"
        " here.",
    ),
]
CredentialsFile = Annotated[
    Path | None,
    typer.Option(
        "--credentials", envvar="ORBITSPLIT_CREDENTIALS", help="File of `orbitsplit credentials`, for --coordinator."
    ),
]
# Settings of generation, named as in transformers' generate. Without one, that of the model's generation config holds.
TopK = Annotated[int | None, typer.Option(min=0, help="Top-k of sampling. Default: the model's.")]
MinP = Annotated[float | None, typer.Option(min=0, max=1, help="Least probability, relative to the likeliest token's.")]
TypicalP = Annotated[float | None, typer.Option(min=0, max=1, help="Typical-p of sampling.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option(min=0, help="Logits of tokens of prompt and text are divided by it; 1: none.")
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtracted from the logits of tokens that were generated, as OpenAI defines it.")
]
FrequencyPenalty = Annotated[float | None, typer.Option(help="The same for each time that a token was generated.")]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option(min=0, help="No sequence of so many tokens comes twice; 0: off.")
]
MinNewTokens = Annotated[int | None, typer.Option(min=0, help="Tokens to generate before the text may end.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the text of a prompt; repeatable.")]
LinksFile = Annotated[Path | None, typer.Option("--links", help="Conditions of the links over time (TOML).")]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"orbitsplit {osp.__version__}")
        raise typer.Exit


@app.callback()
def configure(
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, show_default=False, help="Log more to standard error; -vv: most."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log errors only, and draw no progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Configure what all commands do."""
    if verbose and quiet:
        raise ValueError("--verbose and --quiet exclude each other")
    logs.configure(verbosity=verbose, is_quiet=quiet)
    if quiet or not err.is_terminal:
        # Bars of the libraries of models are one long line in a log file; our own lines say what is under way.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logs.log.debug("orbitsplit %s, Python %s", osp.__version__, platform.python_version())


def progress_bars() -> ProgressBars:
    """Return progress bars on standard error, which stay invisible with --quiet."""
    return ProgressBars(err, is_visible=not logs.is_quiet())


def print_json(data: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(data, allow_nan=False))
