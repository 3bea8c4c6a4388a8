"""The examples of --help run as they are, in a folder with the files that they name."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

import orbitsplit as osp
from orbitsplit.__main__ import main
from orbitsplit._cli.main import app


def examples(group: typer.Typer, *names: str) -> dict[str, str]:
    """Return the example of each command, by the command's name."""
    found = {}
    for command in group.registered_commands:
        assert command.callback is not None
        name = " ".join((*names, command.name or command.callback.__name__))
        (found[name],) = re.findall(r"^ *Example: `(.*)`$", command.callback.__doc__ or "", re.MULTILINE)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found |= examples(inner.typer_instance, *names, str(inner.name))
    return found


EXAMPLES = examples(app)
OUTPUTS = {
    "init": "network.toml",
    "problem": "problem.json",
    "profile": "profile.json",
    "convert": "my-model-int8",
    "calibrate": "book.safetensors",
    "verify": "verified.json",
    "simulate": "timeline.png",
    "leo": "network.toml",
    "schema": "network.schema.json",
    "report": "report.html",
    "fly": "flight.json",
}
# The others serve until a signal, ask another process, need the real model, or take a minute.
IN_PROCESS = sorted(EXAMPLES.keys() - {"serve", "top", "node", "nodes", "demo", "fly", "bench paper"})


def make_quick(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce what a command does by default, which other tests do in full."""
    if command == "calibrate":
        monkeypatch.setattr("orbitsplit.calibration.CODECS", ("klt", "int8"))
        monkeypatch.setattr("orbitsplit.calibration.LEVELS", (4.0,))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", IN_PROCESS)
def test_an_example_runs(
    command: str, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(EXAMPLES[command])
    assert " ".join(words[: 1 + len(command.split())]) == f"orbitsplit {command}"
    output = OUTPUTS.get(command)
    assert (output is not None) == ("-o" in words)
    if output is not None:
        (inputs / output).unlink(missing_ok=True)
    make_quick(command, monkeypatch)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert printed.out
    assert output is None or (inputs / output).stat().st_size > 0


@pytest.mark.parametrize("command", sorted(EXAMPLES.keys() - set(IN_PROCESS)))
def test_the_other_examples_are_understood(
    command: str, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the work itself, of which `test_cli.py`, `test_hosts.py`, `test_demo.py` and others have tests."""
    called = []
    monkeypatch.setattr("orbitsplit._cli.serving.open_pipeline", lambda *_arguments, **_options: called.append("serve"))
    monkeypatch.setattr("orbitsplit._cli.live.loads", lambda *_arguments, **_options: called.append("top") or [])
    monkeypatch.setattr("orbitsplit._cli.hosts.NodeAgent", lambda *_arguments: called.append("node"))
    fleet_status = "orbitsplit.runtime._parent.fleet_status.FleetStatus.of"
    monkeypatch.setattr(fleet_status, lambda *_arguments, **_options: called.append("nodes"))
    monkeypatch.setattr("orbitsplit._cli.demo.run", lambda *_arguments, **_options: called.append("demo"))
    monkeypatch.setattr(osp, "bench_paper", lambda *_arguments, **_options: called.append("bench paper"))
    monkeypatch.setattr("orbitsplit.flight.fly", lambda *_arguments, **_options: called.append("fly"))
    (inputs / "fleet.pem").write_text("credentials")
    monkeypatch.setattr(sys, "argv", shlex.split(EXAMPLES[command]))
    with pytest.raises((SystemExit, AttributeError)):  # there is no result
        main()
    assert called == [command], capsys.readouterr().err
