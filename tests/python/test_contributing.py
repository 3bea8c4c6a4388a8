"""What contributors are told and given: commit subjects, pinned tools, and a guide whose paths and sessions exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "commit_subject.py"


def check(subject: str, path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(f"\n# a comment of git's\n{subject}\n\nA body of any length. {'x' * 100}\n", encoding="utf-8")
    return subprocess.run([sys.executable, TOOL, path], capture_output=True, text=True)


@pytest.mark.parametrize(
    "subject",
    [
        "feat: codec for sparse rows",
        "ci: one job for each session of nox",
        "fix: " + "x" * 67,
        'Revert "feat: codec for sparse rows"',
        "Merge branch 'main' into codecs",
        "fixup! feat: " + "x" * 72,
    ],
)
def test_a_subject_with_a_kind_and_at_most_72_characters_passes(subject: str, tmp_path: Path) -> None:
    done = check(subject, tmp_path / "message")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("fix: " + "x" * 68, "73 characters, the limit is 72"),
        ("codec for sparse rows", "must begin with one of feat, fix, perf"),
        ("feature: codec for sparse rows", "must begin"),
        ("feat:codec for sparse rows", "must begin"),
        ("feat: ", "must begin"),
        ("feat(codec): sparse rows", "must begin"),
        ("", "must begin"),
    ],
)
def test_another_subject_is_refused_with_the_reason(subject: str, reason: str, tmp_path: Path) -> None:
    done = check(subject, tmp_path / "message")
    assert done.returncode == 1
    assert reason in done.stderr


def test_subjects_of_a_log_are_checked_line_by_line() -> None:
    log = "feat: one\nanother\nfix: three\n"
    done = subprocess.run([sys.executable, TOOL], input=log, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.findall(r'subject "(.*)":', done.stderr) == ["another"]


def test_hooks_use_the_versions_that_the_checks_use() -> None:
    pinned = dict(re.findall(r"^([a-z-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    used = re.findall(r"([a-z-]+)==([0-9.]+)", hooks)
    assert {name for name, _ in used} >= {"ruff", "clang-format", "codespell"}
    assert used == [(name, pinned[name]) for name, _ in used]


def guide() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_paths_of_the_guide_exist() -> None:
    suffixes = r"(?:/|\.py|\.pyi|\.[ch]pp|\.toml|\.txt|\.md|\.json|\.yaml|/run)"
    roots = r"(?:python|cpp|tests|benches|docs|examples|tools|\.github)"
    paths = set(re.findall(rf"`({roots}/[^`*<\s]*{suffixes})`", guide()))
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_guide_has_all_sessions_of_nox_and_no_others() -> None:
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.M)
    table = guide().split("## What is checked")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == sessions
