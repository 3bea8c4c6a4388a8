"""Programs of examples/ end with success and print what they promise. Run by `nox -s examples`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orbitsplit.runtime._emulation.namespaces import why_unavailable

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WHY_NOT = why_unavailable()

# What each program prints, beside its exit status.
PROMISES = {
    "calibrate_and_verify.py": ["with the codebook: sat-0 layers 0-", "-fisher", "within the limit"],
    "cpp_embedding": ["optimal: ", "sat-2 runs layers", "int8: ", "damaged frame refused"],
    "flight": ["frame of ", "refused a message of 100 bytes", "3 messages, 2 refused"],
    "day_in_orbit.py": ["sat-0 passes munich", "plan_in_time: ", "wait_for_pass: ", "requested at 06:00"],
    "plan_from_profile.py": ["16.1 GB of weights", "gap 0 %", "uniform", "it is equal: True"],
    "four_hosts": ["killing all processes of sat-1", "resumed after", "that of one process: True"],
    "run_and_recover.py": ["killing process", "killed by signal 9", "that of one process: True"],
    "serve_client.py": ["models: ['tiny']", "it is the same text: True", "exit status 0"],
}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_has_its_promise_and_its_line_in_the_list() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found == set(PROMISES)
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = [f"{name}/run" if (EXAMPLES / name / "run").exists() else name for name in sorted(found)]
    assert [name for name in programs if f"[{name}]({name})" not in listed] == []


@pytest.mark.parametrize("name", [name for name in sorted(PROMISES) if name.endswith(".py")])
def test_a_python_example_keeps_its_promise(name: str) -> None:
    said = run(sys.executable, EXAMPLES / name)
    print(said)
    assert [promise for promise in PROMISES[name] if promise not in said] == []


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_the_example_of_four_hosts_keeps_its_promise() -> None:
    said = run(sys.executable, EXAMPLES / "four_hosts" / "run")
    print(said)
    assert [promise for promise in PROMISES["four_hosts"] if promise not in said] == []


@pytest.mark.parametrize("name", [name for name in sorted(PROMISES) if (EXAMPLES / name / "CMakeLists.txt").exists()])
def test_a_cpp_example_keeps_its_promise(name: str, tmp_path: Path) -> None:
    run("cmake", "-S", EXAMPLES / name, "-B", tmp_path)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    said = run(tmp_path / name)
    assert [promise for promise in PROMISES[name] if promise not in said] == []
