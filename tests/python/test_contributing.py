"""What contributors are told and given: commit subjects, pinned tools, and a guide whose paths and sessions exist."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tools import commit_subject

ROOT = Path(__file__).parents[2]


def check(subject: str, folder: Path) -> int:
    path = folder / "message"
    path.write_text(f"\n# a comment of git's\n{subject}\n\nA body of any length. {'x' * 100}\n", encoding="utf-8")
    return commit_subject.main([str(path)])


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
def test_a_subject_with_a_kind_and_at_most_72_characters_passes(
    subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(subject, tmp_path) == 0
    assert capsys.readouterr().err == ""


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
def test_another_subject_is_refused_with_the_reason(
    subject: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(subject, tmp_path) == 1
    assert reason in capsys.readouterr().err


def test_subjects_of_a_log_are_checked_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("feat: one\nanother\nfix: three\n"))
    assert commit_subject.main([]) == 1
    assert re.findall(r'subject "(.*)":', capsys.readouterr().err) == ["another"]


def test_hooks_use_the_versions_that_the_checks_use() -> None:
    pinned = dict(re.findall(r"^([a-z-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    used = [(name, version) for name, version in re.findall(r"([a-z-]+)==([0-9.]+)", hooks) if name in pinned]
    assert {name for name, _ in used} == {"ruff", "clang-format", "codespell"}
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
