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


GUIDES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "contributing").glob("*.md"))]
SUFFIX = r"\.(?:py|pyi|[ch]pp|toml|md|txt|json|yml)"
WORD = re.compile(r"[A-Za-z_]\w*")
# Given as examples of what to write, or made by building.
EXAMPLES = {"new_codec", "bench_NOUN.py", "problem.json", "build/site", "build/dev"}


def in_code_style(text: str) -> list[str]:
    """Return what a page gives in code style outside of its code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def paths_in(text: str) -> list[str]:
    """Return the paths and names of files that a text gives."""
    return [given for given in in_code_style(text) if re.fullmatch(rf"[\w.-]*/[\w./-]*|[\w-]+{SUFFIX}", given)]


def names_in(text: str) -> set[str]:
    """Return the words of names in code: of `_make`, `Plan.uncompressed` and `calibrate(codecs=...)`."""
    given = [name for name in in_code_style(text) if re.fullmatch(r"_?[A-Za-z][\w.]*(\(.*\))?", name)]
    return {word for name in given if not re.search(SUFFIX + "$", name) for word in WORD.findall(name)} - EXAMPLES


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Return the paths of the files of the repository, from its root."""
    folders = ("benches", "cpp", "docs", "examples", "python", "tests", "tools")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT).as_posix() for path in (*found, *ROOT.iterdir()) if path.is_file()]


@pytest.fixture(scope="module")
def words(files: list[str]) -> dict[str, set[str]]:
    """Return the words of each file of code but this one, by its path."""
    code = [
        path for path in files if re.search(r"\.(py|[ch]pp|toml|yml|yaml|txt)$", path) and ROOT / path != Path(__file__)
    ]
    return {path: set(WORD.findall((ROOT / path).read_text(encoding="utf-8"))) for path in code}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_paths_of_the_guides_exist(page: Path, files: list[str]) -> None:
    given = set(paths_in(page.read_text(encoding="utf-8"))) - EXAMPLES
    assert len(given) > (100 if page.name == "CONTRIBUTING.md" else 5)
    # A bare name is that of a file somewhere; folders such as `neon/` are those of the kernels.
    names = {Path(path).name for path in files}
    roots = (ROOT, ROOT / "cpp/src/codec/kernels")
    found = {path for path in given if path in names or any((root / path).exists() for root in roots)}
    assert given - found == set()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_names_of_the_guides_are_in_the_code(page: Path, words: dict[str, set[str]]) -> None:
    given = names_in(page.read_text(encoding="utf-8"))
    assert len(given) > (100 if page.name == "CONTRIBUTING.md" else 2)
    assert given - set().union(*words.values()) == set()


def rows(page: Path) -> list[tuple[str, str]]:
    """Return the rows of a guide's tables of files: the files, of an empty cell those above, and what to do there."""
    found: list[tuple[str, str]] = []
    for files, what in re.findall(r"^\| (.*?) ?\| (.*) \|$", page.read_text(encoding="utf-8"), re.M):
        found.append((files or found[-1][0], what))
    return [(files, what) for files, what in found if any(path.endswith((".py", "pp")) for path in paths_in(files))]


@pytest.mark.parametrize("page", [GUIDES[0], ROOT / "docs/contributing/add_a_codec.md"], ids=lambda page: page.name)
def test_names_are_in_the_files_that_the_guides_give_for_them(page: Path, words: dict[str, set[str]]) -> None:
    assert len(rows(page)) > (80 if page == GUIDES[0] else 15)
    wrong = {}
    for files, what in rows(page):
        there = [words.get(path, set()) for path in (*paths_in(files), *paths_in(what))]
        if missing := names_in(what) - set().union(*there):
            wrong[files] = missing
    assert wrong == {}


def test_the_guide_has_all_sessions_of_nox_and_no_others() -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"^@nox\.session.*\n(?:@.*\n)*def (\w+)", noxfile, re.M)
    table = guide().split("## What is checked")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == sessions
