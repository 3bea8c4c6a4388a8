"""What the command line shows where there is no terminal: of long work, and of long names."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orbitsplit._cli import views
from tests.support.small_inputs import PROBLEM


def shown(*, is_visible: bool = True) -> str:
    text = io.StringIO()
    with views.ProgressBars(Console(file=text, width=80), is_visible=is_visible) as progress:
        for step, fraction in (("[a], batch 1 of 4", 0.25), ("b", 1.0)):
            progress(step, fraction)
    return text.getvalue()


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown() == ""  # work that is done within seconds
    monkeypatch.setattr(views, "_LINE_EVERY_S", 0.0)
    assert shown() == "[a], batch 1 of 4: 25%\nb: 100%\n"


def test_progress_shows_nothing_where_errors_alone_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_LINE_EVERY_S", 0.0)
    assert shown(is_visible=False) == ""


@pytest.mark.parametrize("columns", [None, "60"])
def test_no_name_is_cut_where_there_is_no_terminal(columns: str | None, tmp_path: Path) -> None:
    # rich takes 80 columns for the width of a pipe, and cuts names to fit.
    names = [f"a-node-in-the-third-plane-of-the-constellation-{number}" for number in range(2)]
    levels = [{**level, "name": f"{level['name']}-of-a-level-with-quite-a-long-name"} for level in PROBLEM["levels"]]
    nodes = [{**node, "name": name} for node, name in zip(PROBLEM["nodes"], names, strict=True)]
    (tmp_path / "problem.json").write_text(json.dumps({**PROBLEM, "nodes": nodes, "levels": levels}))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env |= {} if columns is None else {"COLUMNS": columns}
    command = [sys.executable, "-m", "orbitsplit", "solve", "problem.json"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert [name in ended.stdout for name in names] == [columns is None] * 2
    assert ("\u2026" in ended.stdout) == (columns is not None)
