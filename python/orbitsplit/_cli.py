"""The command line: parses, calls one public function, prints. Whatever it can do, the Python API can."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

import orbitsplit as osp

from ._units import format_bytes, format_seconds

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
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Output = Annotated[Optional[Path], typer.Option("--output", "-o", help="Also write the result to this file.")]
Model = Annotated[str, typer.Argument(help="A model directory, a GGUF file or a hub id.")]
