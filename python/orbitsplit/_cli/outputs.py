"""Output files of the commands: whether they can be written, found out before long work, and how they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import orbitsplit as osp
from orbitsplit._io.files import write_text

from .logs import log


class Savable(Protocol):
    """An object that is written to a file."""

    def save(self, path: Path, /) -> None:
        """Write it."""


def check_writable(output: Path | None) -> None:
    """Raise ValueError for a file that cannot be written."""
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise ValueError(f"{output} cannot be written: it is a directory, or its folder does not exist")


def check_folder(output: Path) -> None:
    """Raise ValueError for a folder that can neither be used nor created."""
    if any(part.exists() and not part.is_dir() for part in (output, *output.parents)):
        raise ValueError(f"{output} is not a folder, or is in something that is not one")


def check_new_folder(output: Path) -> None:
    """Raise ValueError for a folder that is there already, or cannot be created."""
    check_folder(output)
    if output.exists():
        raise ValueError(f"{output} exists already")


def check_trace(output: Path | None) -> None:
    """Raise ValueError for a trace or a picture that cannot be written."""
    check_writable(output)
    if output is not None and output.suffix != ".json":
        from orbitsplit._plans import timeline

        timeline.check_format(output)


def save(result: Savable, output: Path | None) -> None:
    """Write a result if a file is given."""
    if output is not None:
        result.save(output)
        log.info("wrote %s", output)


def save_trace(trace: osp.Trace, output: Path | None) -> None:
    """Write a trace as JSON (.chrome.json: for trace viewers) or as a picture, if a file is given."""
    if output is None:
        return
    if output.name.endswith(".chrome.json"):
        write_text(output, json.dumps(trace.to_chrome()))
    elif output.suffix == ".json":
        trace.save(output)
    else:
        from orbitsplit._plans.timeline import timeline

        timeline({output.stem: trace}, output)
    log.info("wrote %s", output)
