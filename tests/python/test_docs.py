"""The documentation says what is so: its examples run, its references are complete, its commands exist."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import orbitsplit as osp
from orbitsplit._backend import load_backend
from orbitsplit._cli.main import app
from tests.support.doc_pages import DOCS, PAGES, ROOT, blocks_of, execute, give_files, is_as_shown

# Where the names of the Python reference are, and the pages that have it.
NAMESPACES = (
    "orbitsplit",
    "orbitsplit.leo",
    "orbitsplit.flight",
    "orbitsplit.runtime",
    "orbitsplit.serve",
    "orbitsplit.calibration",
)
REFERENCE = DOCS / "reference" / "python"

EXECUTED = [page for page in PAGES if any(block.mark == "executed" for block in blocks_of(page))]


def _uri(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch):
    """Import a module of docs/generate."""
    monkeypatch.syspath_prepend(str(DOCS / "generate"))
    yield importlib.import_module
    for name in ("cli_reference", "cpp_reference", "docstrings", "root_pages"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", EXECUTED, ids=_uri)
def test_the_examples_print_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    give_files(tmp_path)
    for block, printed in execute(page):
        assert block.printed is None or is_as_shown(block.printed, printed), f"line {block.line} prints:\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=_uri)
def test_no_output_is_shown_that_nobody_has_seen(page: Path) -> None:
    for block in blocks_of(page):
        if block.printed is None or block.mark == "executed":
            continue
        test = ROOT / block.mark.removeprefix("executed by ")
        assert test.is_file(), f"{page}:{block.line} shows an output; what executes it?"
        assert page.name in test.read_text(encoding="utf-8")


def test_an_output_that_is_not_as_shown_is_noticed() -> None:
    assert is_as_shown("a\n...\nz\n", "a\nb\nc\nz\n")
    assert is_as_shown("a\n...\nz\n", "a\nz\n")
    assert not is_as_shown("a\n...\nz\n", "a\nb\nc\n")
    assert not is_as_shown("a.b\n", "axb\n")


def _documented() -> set[str]:
    pages = (page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_public_name_is_in_the_reference(namespace: str) -> None:
    # A name that the top level has as well is documented as one of the top level.
    names = importlib.import_module(namespace).__all__
    wanted = {f"orbitsplit.{name}" if _is_top_level(namespace, name) else f"{namespace}.{name}" for name in names}
    assert wanted - _documented() == set()


def _is_top_level(namespace: str, name: str) -> bool:
    module = importlib.import_module(namespace)
    return name in osp.__all__ and getattr(osp, name) is getattr(module, name)


def test_the_reference_has_no_other_names() -> None:
    for path in _documented():
        namespace, _, name = path.rpartition(".")
        assert name in importlib.import_module(namespace).__all__, path


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_is_public_has_a_docstring(namespace: str) -> None:
    module = importlib.import_module(namespace)
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value) or not getattr(value, "__module__", "").startswith("orbitsplit"):
            continue  # constants are described on the page
        assert value.__doc__, name
        for member, method in vars(value).items() if isinstance(value, type) else ():
            if not member.startswith("_") and (callable(method) or isinstance(method, (property, classmethod))):
                assert method.__doc__, f"{name}.{member}"


def _commands() -> dict[str, str]:
    """The help of every command by name, as the command line prints it."""
    found = {}
    for group in ((), ("bench",)):
        text = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "200"}).stdout
        for name in re.findall(r"^│ ([a-z]+) ", text.partition("─ Commands ─")[2], re.M):
            shown = CliRunner().invoke(app, [*group, name, "--help"], env={"COLUMNS": "200"}).stdout
            if "─ Commands ─" not in shown:
                found[" ".join([*group, name])] = shown
    return found


def test_every_command_and_option_is_in_the_reference(generate) -> None:
    sections = dict(
        section.split("\n", 1)
        for section in re.split(r"^## orbitsplit ", generate("cli_reference").page(), flags=re.M)[1:]
    )
    commands = _commands()
    assert {"plan", "run", "serve", "bench paper"} <= commands.keys()
    assert sections.keys() == commands.keys()
    for name, text in commands.items():
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        assert options <= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", sections[name])), name


@pytest.mark.parametrize("page", PAGES, ids=_uri)
def test_the_commands_that_a_page_shows_exist(page: Path) -> None:
    commands = _commands_once()
    for block in blocks_of(page):
        if block.language != "sh":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|&& |-m )orbitsplit ((?:bench )?[a-z]+)(.*)", line.partition("#")[0])
            if match is None:
                continue
            assert match[1] in commands, line
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", match[2]):
                assert option in commands[match[1]], line


_SEEN: dict[str, str] = {}


def _commands_once() -> dict[str, str]:
    if not _SEEN:
        _SEEN.update(_commands())
    return _SEEN


def test_every_header_is_in_the_cpp_reference(generate) -> None:
    pages = generate("cpp_reference").pages(ROOT)
    headers = {path.stem: path for path in (ROOT / "cpp/include/orbitsplit").glob("*.h*")}
    assert {f"{name}.md" for name in headers if name != "orbitsplit"} == pages.keys()
    for name, text in pages.items():
        header = headers[name.removesuffix(".md")].read_text(encoding="utf-8")
        # A namespace inside ours is for our own sources.
        header = re.sub(r"^namespace (?!orbitsplit)\w+ \{.*?^\}", "", header, flags=re.DOTALL | re.MULTILINE)
        header = header.replace("ORBITSPLIT_API ", "")
        assert "ORBITSPLIT_API " not in text, name
        # What begins a line at the left margin is public: types and aliases, and functions, whose names precede a (.
        declared = r"(?:(?:enum class|struct|class|using) |(?:inline )?[a-z][\w:<>, ]*[>&* ](?=\w+\())(\w+)"
        for line in header.splitlines():
            if match := re.match(declared, line):
                assert f"`{match[1]}`" in text, match[1]


HEADER = """\
// What it is for:
//
//     makespan = sum t
//
// and <not> a_name of "another_name", see docs/internals/frame_format.md.
#pragma once

namespace orbitsplit {

// Of a shape.
struct ORBITSPLIT_API Shape {
    int rows = 0;  // at least 1

    int size() const { return rows; }

  private:
    int hidden_ = 0;
};

// Both of them.
inline int first(const Shape& shape) { return shape.rows; }
ORBITSPLIT_API std::vector<int> second(std::span<const int> values,
                                       int limit = {});

// About what follows.

enum class Kind { one, two };

}  // namespace orbitsplit
"""


def test_a_page_of_a_header_has_what_a_caller_sees(generate) -> None:
    text = generate("cpp_reference").page("shape.hpp", HEADER, {"frame_format": "internals/frame_format.md"})
    assert "```text\nmakespan = sum t\n```" in text
    assert '&lt;not> `a_name` of "another_name", see [frame format](../../internals/frame_format.md).' in text
    assert (
        "## `Shape`\n\n```cpp\nstruct Shape {\n    int rows = 0;  // at least 1\n\n    int size() const;\n};\n```"
        in text
    )
    assert "## `first`, `second`\n\n```cpp\ninline int first(const Shape& shape);\nstd::vector<int> second(" in text
    assert "values,\n                        int limit = {});\n```\n\nBoth of them.\n" in text
    assert "---\n\nAbout what follows.\n" in text
    assert "## `Kind`" in text
    assert "hidden_" not in text


def test_a_header_that_cannot_be_read_is_an_error(generate) -> None:
    with pytest.raises(ValueError, match="no name is found"):
        generate("cpp_reference").page("odd.hpp", "namespace orbitsplit {\n;\n}  // namespace orbitsplit\n")


def test_links_of_files_in_the_root_lead_somewhere(generate) -> None:
    text = "[a](docs/guides/links.md#rates) [b](tests/python) [c](https://x.org) [d](#here) [e](./LICENSE)"
    found = generate("root_pages").page(text, "contributing/index.md", "https://github.com/o/r")
    assert found == (
        "[a](../guides/links.md#rates) [b](https://github.com/o/r/blob/main/tests/python) [c](https://x.org) "
        "[d](#here) [e](https://github.com/o/r/blob/main/LICENSE)"
    )


def test_docstrings_become_markdown(generate) -> None:
    text = (
        "See `solve`, `plan` and `x.solve`.\n\n>>> solve(p)   # doctest: +SKIP\n3\n\nExample:\n    >>> f()\n    [0]\n"
    )
    found = generate("docstrings").rewritten(text, {"solve": "orbitsplit.solve"})
    assert found == (
        "See [`solve`][orbitsplit.solve], `plan` and `x.solve`.\n\n```pycon\n>>> solve(p)\n3\n```\n\n"
        "Example:\n    ```pycon\n    >>> f()\n    [0]\n    ```\n"
    )


def test_the_frame_header_is_where_the_page_says() -> None:
    text = (DOCS / "internals" / "frame_format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w[\w ]*) \|", text, re.M)
    fields = {name: (int(offset), int(size)) for offset, size, name in rows}
    frame = osp.compress(np.zeros((3, 70), np.float32), codec="int4:16")

    def number(field: str) -> int:
        offset, size = fields[field]
        return int.from_bytes(frame[offset : offset + size], "little")

    assert frame[: fields["magic"][1]] == b"OSPF"
    assert [number(name) for name in ("version", "codec", "dtype", "rank", "parameter")] == [1, 3, 0, 2, 16]
    assert number("payload bytes") == len(frame) - 40 - 8 * 2
    assert max(offset + size for offset, size in fields.values()) == 40
    assert sum(size for _, size in fields.values()) == 40
    blank = frame[: fields["checksum"][0]] + bytes(4) + frame[sum(fields["checksum"]) :]
    assert number("checksum") == load_backend("native").crc32c(blank)


def _paths() -> list[tuple[str, str]]:
    """The paths of the repository that pages name in code style, with the page."""
    folders = "cpp|python|tests|benches|docs|examples"
    pages = [(_uri(page), page.read_text(encoding="utf-8")) for page in PAGES]
    return [(uri, path) for uri, text in pages for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", text)]


def test_the_paths_that_pages_name_exist() -> None:
    missing = [(uri, path) for uri, path in _paths() if not (ROOT / path).exists()]
    assert missing == []
