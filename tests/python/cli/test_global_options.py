"""Options of every command: --version, -v and -vv, --quiet; those of `serve` are tested where it runs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from orbitsplit.__main__ import main

COMMANDS: dict[str, tuple[str, ...]] = {
    "solve": ("problem.json",),
    "pareto": ("problem.json",),
    "profile": ("my-model", "-o", "made.json"),
    "plan": ("profile.json", "--network", "network.toml", "-o", "made.json"),
    "simulate": ("plan.json", "-o", "made.json"),
    "leo": ("paper", "--hours", "1", "-o", "made.toml"),
}


def orbitsplit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orbitsplit", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_version(tmp_path: Path) -> None:
    ended = orbitsplit(tmp_path, "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"orbitsplit {version('orbitsplit')}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_logs_to_standard_error_with_v_and_more_with_vv(
    command: str, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {word for word in COMMANDS[command] if (inputs / word).is_file()} or {"paper"} & {*COMMANDS[command]}
    for option in ((), ("-v",), ("-vv",)):
        monkeypatch.setattr(sys, "argv", ["orbitsplit", *option, command, *COMMANDS[command]])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed, log = capsys.readouterr()
        assert "orbitsplit.cli" not in printed
        assert ("DEBUG orbitsplit.cli: orbitsplit " in log) == (option == ("-vv",))
        if command != "profile":  # whose model transformers reads
            assert all((f"INFO orbitsplit.cli: read {name}" in log) == bool(option) for name in names)
        made = next((word for word in COMMANDS[command] if word.startswith("made")), None)
        assert made is None or (f"INFO orbitsplit.cli: wrote {made}" in log) == bool(option)


def test_vv_has_the_traceback_of_an_error_and_others_do_not(tmp_path: Path) -> None:
    for option, expected in (((), False), (("-v",), False), (("-vv",), True)):
        ended = orbitsplit(tmp_path, *option, "solve", "missing.json")
        assert ended.returncode == 2
        assert ended.stderr.endswith("error: missing.json: No such file or directory\n")
        assert ("Traceback" in ended.stderr) == expected


def test_verbose_and_quiet_exclude_each_other(tmp_path: Path) -> None:
    ended = orbitsplit(tmp_path, "-v", "--quiet", "solve", "missing.json")
    assert (ended.returncode, ended.stderr) == (2, "error: --verbose and --quiet exclude each other\n")


def test_a_program_that_uses_the_library_configures_its_own_log() -> None:
    # A library configures no handler that prints: its own loggers have the null handler, the root has none.
    code = (
        "import logging, orbitsplit as osp, orbitsplit.serve\n"
        "print([type(h).__name__ for n in ('', 'orbitsplit') for h in logging.getLogger(n).handlers])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert ended.stdout == "['NullHandler']\n"
