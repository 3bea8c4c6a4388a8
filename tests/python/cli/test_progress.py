"""What the command line shows where there is no terminal: of long work, and of long names."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli import progress
from tests.support.small_inputs import PROBLEM


def shown(*steps: tuple[str, float | None, float], is_visible: bool = True) -> list[str]:
    """Return the lines of steps, each with its fraction and the seconds that it takes."""
    text = io.StringIO()
    with progress.ProgressBars(Console(file=text, width=80), is_visible=is_visible) as shown:
        for step, fraction, seconds in steps:
            shown(step, fraction)
            time.sleep(seconds)
    return text.getvalue().splitlines()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_FIRST_LINE_S", 0.1), ("_LINE_EVERY_S", 0.3), ("_LOOKED_AT_EVERY_S", 0.01)):
        monkeypatch.setattr(progress, name, seconds)


def test_work_that_is_done_within_seconds_shows_nothing() -> None:
    assert shown(("a", 0.5, 0.0), ("b", 1.0, 0.0)) == []


@pytest.mark.usefixtures("quick")
def test_a_step_has_lines_at_intervals_whether_it_reports_or_not() -> None:
    first, *others = shown(("[a], batch 1 of 4", 0.25, 1.0))
    assert re.fullmatch(r"\[a\], batch 1 of 4: 25%, 1\d\d ms", first)
    assert 1 <= len(others) <= 3  # of a busy machine fewer
    assert all(line.startswith("[a], batch 1 of 4: 25%, ") for line in others)


@pytest.mark.usefixtures("quick")
def test_each_step_that_takes_seconds_has_a_line() -> None:
    lines = shown(("a, 1", 0.25, 0.25), ("b", 0.5, 0.0), ("c", None, 0.25))
    assert [line.split(":")[0] for line in lines] == ["a, 1", "c"]
    assert re.fullmatch(r"c: \d+ ms", lines[1])


@pytest.mark.usefixtures("quick")
def test_a_line_says_about_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "left" not in shown(("a", 0.0, 0.0), ("a", 0.001, 0.2))[0]  # too little is done
    monkeypatch.setattr(progress, "_KNOWN_AFTER_S", 0.0)
    *_, line = shown(("a", 0.0, 0.02), ("a", 0.01, 0.02), ("b", 0.5, 0.25))
    assert re.fullmatch(r"b: 50%, \d+ ms, about 0 s left", line)
    assert progress._rounded(89.4) == "89 s"
    assert progress._rounded(1190.0) == "20 min"


@pytest.mark.usefixtures("quick")
def test_progress_shows_nothing_where_errors_alone_are_asked_for() -> None:
    assert shown(("a", 0.5, 0.25), is_visible=False) == []


def test_bars_of_other_libraries_are_off_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # A transcript of the demo had a line of "Loading weights" with hundreds of carriage returns.
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(sys, "argv", ["orbitsplit", "schema", "plan"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_interrupt_says_in_one_line_what_was_kept(
    is_kept: bool, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrate(*_: object, checkpoint: Path, **__: object) -> osp.Codebook:
        if is_kept:
            checkpoint.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "_kept", [])
    monkeypatch.setattr(osp, "calibrate", calibrate)
    command = ["orbitsplit", "calibrate", "my-model/", "--text", "corpus.txt", "-o", "new.safetensors"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    (inputs / "new.safetensors.partial").unlink(missing_ok=True)
    assert ended.value.code == 130
    kept = "new.safetensors.partial has what was finished, and the same command resumes"
    assert capsys.readouterr().err == f"interrupted: {kept if is_kept else 'nothing was kept'}\n"


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
