"""Processes of our own: they run this very package, whatever lies around, and end with their parent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import orbitsplit
from orbitsplit._models import child_process

_PROBE = """
import importlib.util, json, signal, sys
import orbitsplit
def main(task):
    found = [importlib.util.find_spec(name).origin for name in ("torch", "orbitsplit._models.child_process")]
    print(json.dumps([sys.path, orbitsplit.__file__, *found]), flush=True)
    if task == "wait":
        signal.pause()
"""


@pytest.fixture
def hostile_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory holds a torch.py and an orbitsplit/; elsewhere, on the path, is the probe."""
    hostile, helpful = tmp_path / "hostile", tmp_path / "helpful"
    (hostile / "orbitsplit").mkdir(parents=True)
    helpful.mkdir()
    (hostile / "torch.py").write_text("raise SystemExit(7)")
    (hostile / "orbitsplit" / "__init__.py").write_text("raise SystemExit(7)")
    (helpful / "probe.py").write_text(_PROBE)
    monkeypatch.chdir(hostile)
    # An empty entry means the current directory too, and is easily left by PYTHONPATH=$PYTHONPATH:...
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{helpful}")
    return hostile


def start_probe(task: str) -> subprocess.Popen[bytes]:
    return child_process.start("probe", task, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_what_lies_in_the_current_directory_is_not_imported(hostile_directory: Path) -> None:
    with start_probe("tell") as child:
        assert child.stdout is not None
        output = child.stdout.read()
        assert child.wait() == 0, output
    path, package, torch, module = json.loads(output)
    assert package == orbitsplit.__file__
    assert module == child_process.__file__
    assert str(hostile_directory) not in path
    assert "" not in path
    assert Path(torch).parent != hostile_directory


def test_a_child_ends_when_its_standard_input_closes(hostile_directory: Path) -> None:
    # As it does when the parent is gone.
    with start_probe("wait") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        child.stdin.close()
        assert child.wait() == 1
