"""The pages of docs/: their code blocks, and how those that are marked are executed.

A comment before a block says what is done with it; neither the site nor GitHub shows it:

    <!-- executed -->              Python that runs; a page's blocks share their names, in a folder of their own
    <!-- executed by a/test.py --> Python that another test runs
    <!-- file: network.toml -->    is written to that folder, for the blocks after it

A ```text block directly after a Python block is what that prints; a line `...` stands for any lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).parents if (folder / "mkdocs.yml").exists())
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

_BLOCK = re.compile(
    r"^( *)(?:<!-- (?P<mark>[^\n]*?) -->\n\1)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^\1```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the mark before it, and what the page says that it prints."""

    language: str
    code: str
    mark: str
    line: int
    printed: str | None = None


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order; those that say what another prints are with that one."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        is_output = match["language"] == "text" and found and text[end : match.start()].strip() == ""
        if is_output and found[-1].language == "python" and found[-1].printed is None:
            last = found[-1]
            found[-1] = Block(last.language, last.code, last.mark, last.line, match["code"])
        else:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(match["language"], match["code"], match["mark"] or "", line))
        end = match.end()
    return found


def execute(page: Path) -> Iterator[tuple[Block, str]]:
    """Run the marked blocks of a page in the current folder; yield each with what it printed."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(block.code, encoding="utf-8")
        if block.mark != "executed":
            continue
        # As many lines before it as in the page, so that a traceback names the page's line.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        yield block, printed.getvalue()


def give_files(folder: Path) -> None:
    """Put the files into a folder that the blocks of every page may read."""
    shutil.copy(ROOT / "tests" / "data" / "problems" / "example_16_free.json", folder / "problem.json")


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed, where `...` stands for any lines."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", shown, flags=re.M)]
    return re.fullmatch("(?:.*\n)*?".join(parts), printed) is not None


def main(pages: list[str]) -> None:
    """Rewrite the outputs that pages show to what their blocks print."""
    for page in map(Path, pages):
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            home = Path.cwd()
            give_files(Path(folder))
            os.chdir(folder)
            try:
                shown = [(block, printed) for block, printed in execute(home / page) if block.printed is not None]
            finally:
                os.chdir(home)
        for block, printed in shown:
            if not is_as_shown(block.printed or "", printed):
                before, code, after = text.partition(block.code)
                text = before + code + after.replace(f"```text\n{block.printed}```", f"```text\n{printed}```", 1)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
