"""A file that cannot be used is named at once: by every command, for every file, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from orbitsplit._cli.main import app

# Valid arguments of each command: those with a file or a model, and what else it requires.
PLAN, TEXT, MODEL = ("plan.json",), ("--text", "corpus.txt"), ("my-model",)
AFTER_A_LOSS = {"profile": ("--profile", "profile.json"), "network": ("--network", "network.toml")}
RUN = {"plan": PLAN, "model": ("--model", "./my-model"), "codebook": ("--codebook", "book.safetensors"),
       "links": ("--links", "links.toml"), "credentials": ("--credentials", "held-out.txt"),
       **AFTER_A_LOSS}  # fmt: skip
COMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "solve": {"problem": ("problem.json",)},
    "pareto": {"problem": ("profile.json",), "network": AFTER_A_LOSS["network"], "codebook": RUN["codebook"],
               "output": ("-o", "out.json"), "": ("--over", "latency")},
    "profile": {"model": MODEL, "output": ("-o", "out.json")},
    "convert": {"model": MODEL, "calibration": ("--calibration", "corpus.txt"), "output": ("-o", "out")},
    "calibrate": {"model": MODEL, "text": TEXT, "output": ("-o", "out.safetensors")},
    "verify": {"plan": PLAN, "text": TEXT, "codebook": RUN["codebook"], **AFTER_A_LOSS, "model": RUN["model"],
               "output": ("-o", "out.json")},
    "plan": {"profile": ("profile.json",), "network": AFTER_A_LOSS["network"], "codebook": RUN["codebook"],
             "output": ("-o", "out.json")},
    "problem": {"profile": ("profile.json",), "network": AFTER_A_LOSS["network"], "codebook": RUN["codebook"],
                "output": ("-o", "out.json")},
    "explain": {"plan": PLAN, "codebook": RUN["codebook"]},
    "export": {"plan": PLAN, "model": RUN["model"], "": ("--for", "torch")},
    "schema": {"": ("plan",), "output": ("-o", "out.json")},
    "report": {"": PLAN, "output": ("-o", "out.html")},
    "simulate": {"plan": PLAN, "output": ("-o", "out.json")},
    "run": {**RUN, "output": ("-o", "out.json"), "": ("--prompt", "x")},
    "serve": {**RUN, "api_key_file": ("--api-key-file", "held-out.txt"),
              "ssl_certfile": ("--ssl-certfile", "corpus.txt"), "ssl_keyfile": ("--ssl-keyfile", "corpus.txt")},
    "top": {"": ()},
    "init": {"output": ("-o", "out.toml"), "": ("--nodes", "2")},
    "credentials": {"file": ("fleet.pem",)},
    "node": {"model": RUN["model"], "credentials": RUN["credentials"], "": ("--coordinator", "127.0.0.1:1")},
    "nodes": {"credentials": RUN["credentials"], "": ("--coordinator", "127.0.0.1:1")},
    "demo": {"model": RUN["model"], "network": AFTER_A_LOSS["network"], "output": ("-o", "out")},
    "leo": {"scenario": ("paper",), "output": ("-o", "out.toml")},
    "fly": {"scenario": ("paper",), "model": ("--model", "./my-model"), "profile": AFTER_A_LOSS["profile"],
            "output": ("-o", "out.json")},
    "bench paper": {"scenario": ("--scenario", "paper"), "output": ("-o", "out")},
}  # fmt: skip
# Commands and parameters that take a name where there is no file of it, and what a path looks like there.
NAMES = {"model": "./missing", "scenario": "missing.toml"}
DOCUMENTS = ("problem", "plan", "profile", "network", "codebook", "links")


@dataclass(frozen=True)
class Case:
    """A command line with one file at fault."""

    command: str
    parameter: str
    fault: str
    named: str

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        given = COMMANDS[self.command]
        words = list(self.command.split())
        for name, values in given.items():
            words += (*values[:-1], self.named) if name == self.parameter else values
        return words

    def __str__(self) -> str:
        return f"{self.command}, {self.parameter} is {self.fault}"


def _cases() -> list[Case]:
    cases = []
    for command, given in COMMANDS.items():
        for parameter in filter(None, given):
            missing = "no-folder/out.json" if parameter in ("output", "file") else NAMES.get(parameter, "missing.json")
            if command in ("demo", "bench paper", "convert") and parameter == "output":
                missing = "problem.json/out"
            cases.append(Case(command, parameter, "missing", missing))
            if parameter in DOCUMENTS:
                cases.append(Case(command, parameter, "a folder", "my-model"))
                cases.append(Case(command, parameter, "of another kind", "corpus.txt"))
            if parameter in ("text", "calibration"):
                cases.append(Case(command, parameter, "a folder", "my-model"))
            if parameter == "model":
                cases.append(Case(command, parameter, "of another kind", "corpus.txt"))
                cases.append(Case(command, parameter, "a missing GGUF file", "missing.gguf"))
                cases.append(Case(command, parameter, "a missing path", "models/of/mine"))
    return cases


CASES = _cases()
SCRIPT = """
import contextlib, io, json, sys, traceback
from orbitsplit.__main__ import main

answers = []
for arguments in json.load(sys.stdin):
    sys.argv = ["orbitsplit", *arguments]
    code, printed = 0, io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
    answers.append([code, printed.getvalue(), sorted({"torch", "transformers"} & set(sys.modules))])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(input_files: Path) -> dict[Case, tuple[int, str, list[str]]]:
    """Return exit code, standard error and expensive modules of every case, in one process without torch."""
    lines = json.dumps([case.arguments for case in CASES])
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, cwd=input_files, input=lines, capture_output=True, text=True, timeout=240, check=True)
    return {case: tuple(answer) for case, answer in zip(CASES, json.loads(run.stdout), strict=True)}  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_at_fault_is_named_before_torch_is_imported(
    case: Case, answers: dict[Case, tuple[int, str, list[str]]]
) -> None:
    # `orbitsplit run missing.json` took 14 seconds to say so.
    code, printed, expensive = answers[case]
    assert code == 2, printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert case.named.removeprefix("./") in printed
    assert expensive == []


def path_parameters(group: typer.Typer, *names: str) -> dict[str, set[str]]:
    """Return, for each command by its name, the parameters that are paths or models."""
    found = {}
    for command in group.registered_commands:
        assert command.callback is not None
        name = " ".join((*names, command.name or command.callback.__name__))
        kinds = typing.get_type_hints(command.callback)
        found[name] = {key for key, kind in kinds.items() if "Path" in str(kind) or key in NAMES}
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found |= path_parameters(inner.typer_instance, *names, str(inner.name))
    return found


def test_the_cases_are_every_command_and_every_file() -> None:
    expected = path_parameters(app)
    expected["bench paper"].remove("model")  # one of the paper's, by its name
    assert {name: {parameter for parameter in given if parameter} for name, given in COMMANDS.items()} == expected
