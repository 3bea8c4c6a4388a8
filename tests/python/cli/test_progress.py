"""What the command line shows where there is no terminal: of long work, and of long names."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli import progress
from tests.support.small_inputs import PROBLEM


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in the place of a clock that goes on while a busy machine holds a thread up."""
    now_s = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    return now_s


def shown(clock: list[float], *steps: tuple[str, float | None, float], is_visible: bool = True) -> list[str]:
    """Return the lines of steps, each with its fraction and the seconds that it takes; no thread looks at them."""
    text = io.StringIO()
    bars = progress.ProgressBars(Console(file=text, width=80), is_visible=is_visible)
    for step, fraction, seconds in steps:
        bars(step, fraction)
        for _ in range(round(seconds / progress._LOOKED_AT_EVERY_S)):
            clock[0] += progress._LOOKED_AT_EVERY_S
            if bars._lines is not None:
                bars._lines.look()
    return text.getvalue().splitlines()


def test_work_that_is_done_within_seconds_shows_nothing(clock: list[float]) -> None:
    assert shown(clock, ("a", 0.5, 1.6), ("b", 1.0, 1.6)) == []


def test_a_step_has_lines_at_intervals(clock: list[float]) -> None:
    assert shown(clock, ("[a], batch 1 of 4", 0.25, 30.0)) == [
        f"[a], batch 1 of 4: 25%, {seconds}" for seconds in ("2 s", "12 s", "22 s")
    ]


def test_a_step_that_reports_nothing_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_LINE_S", "_LINE_EVERY_S", "_LOOKED_AT_EVERY_S"):
        monkeypatch.setattr(progress, name, 0.01)
    text, deadline_s = io.StringIO(), time.monotonic() + 60.0
    with progress.ProgressBars(Console(file=text, width=80)) as bars:
        bars("a", 0.25)
        while len(text.getvalue().splitlines()) < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert all(line.startswith("a: 25%, ") for line in text.getvalue().splitlines())


def test_each_step_that_takes_seconds_has_a_line(clock: list[float]) -> None:
    lines = shown(clock, ("a, 1", 0.25, 5.0), ("b", 0.5, 1.0), ("c", None, 5.0))
    assert lines == ["a, 1: 25%, 2 s", "c: 2 s"]


def test_a_line_says_about_how_long_the_rest_takes(clock: list[float]) -> None:
    assert "left" not in shown(clock, ("a", 0.0, 5.0), ("a", 0.001, 10.0))[-1]  # too little is done
    *_, line = shown(clock, ("a", 0.0, 4.0), ("a", 0.25, 4.0), ("b", 0.5, 2.0))
    assert line == "b: 50%, 2 s, about 6 s left"
    assert progress._rounded(89.4) == "89 s"
    assert progress._rounded(1190.0) == "20 min"


def test_a_line_says_nothing_of_the_rest_where_nothing_is_reported_for_long(clock: list[float]) -> None:
    lines = shown(clock, ("a", 0.0, 10.0), ("a", 0.5, 25.0))
    assert [line.rpartition(", ")[2] for line in lines[1:]] == ["about 8 s left", "22 s", "32 s"]


def test_progress_shows_nothing_where_errors_alone_are_asked_for(clock: list[float]) -> None:
    assert shown(clock, ("a", 0.5, 30.0), is_visible=False) == []


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
