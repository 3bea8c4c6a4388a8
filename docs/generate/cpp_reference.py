"""The C++ reference: a page for each public header, made from its declarations and the comments before them.

It relies on how the headers are written: clang-format's layout, a comment of `//` lines directly before what it is
about, blank lines between declarations, and code or formulas in a comment indented by four spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HEADERS = "cpp/include/orbitsplit"
_UMBRELLA = "orbitsplit.hpp"

_SCOPE = re.compile(r'#|namespace \w+ \{|extern "C" \{|\}\s*//')
_TYPE = re.compile(r"(?:typedef )?(?:struct|class|enum class|enum|union) (\w+)")
_ALIAS = re.compile(r"(?:using |typedef [^(;]*\(\*)(\w+)(?: =|\))")
_FUNCTION = re.compile(r"(\w+)\(")
_CONSTANT = re.compile(r"(\w+)(?:\[\w*\])?(?: =|;)")
_BODY = re.compile(r"(?<=\))( const)?( noexcept)? \{.*\}$", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:(?:::|\.)\w+)*(?:\(\))?")
_PAGE = re.compile(r"\bdocs/(?:\w+/)*(\w+)\.md\b")


@dataclass
class Entry:
    """A comment and the declarations it is about."""

    comment: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The names declared, each once."""
        return list(dict.fromkeys(_name(statement) for statement in self.statements))


def pages(root: Path) -> dict[str, str]:
    """Return the page of each header by file name, for all but the one that includes the others."""
    headers = sorted((root / _HEADERS).glob("*.h*"))
    guides = {path.stem: path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    return {
        f"{header.stem}.md": page(header.name, header.read_text(encoding="utf-8"), guides)
        for header in headers
        if header.name != _UMBRELLA
    }


def page(name: str, text: str, guides: dict[str, str] | None = None) -> str:
    """Return the page of one header; `guides` has the pages of the site by name, for links to them."""
    introduction, entries = parse(text)
    parts = [f"# {name}\n", f"```cpp\n#include <orbitsplit/{name}>\n```\n", _markdown(introduction, guides or {})]
    for entry in entries:
        if entry.statements:
            parts.append("## " + ", ".join(f"`{found}`" for found in entry.names) + "\n")
            parts.append("```cpp\n" + "\n".join(entry.statements) + "\n```\n")
        else:
            parts.append("---\n")  # about what follows, not about what is above
        parts.append(_markdown(entry.comment, guides or {}))
    return "\n".join(parts)


def parse(text: str) -> tuple[list[str], list[Entry]]:
    """Return the comment at the head of a header, and its entries in order."""
    lines = text.splitlines()
    introduction = []
    while lines and lines[0].startswith("//"):
        introduction.append(lines.pop(0))
    entries = [Entry()]
    for kind, block in _blocks(lines):
        if kind == "blank" or (kind == "comment" and entries[-1].statements):
            entries.append(Entry())
        if kind == "comment":
            entries[-1].comment += block
        elif kind == "statement" and (shown := _shown(block)):
            entries[-1].statements.append(shown)
    return introduction, [entry for entry in entries if entry.comment or entry.statements]


def _blocks(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield comments, statements and blank lines outside of any brace."""
    statement: list[str] = []
    for line in lines:
        if statement or not (line == "" or line.startswith("//") or _SCOPE.match(line)):
            statement.append(line)
            if _is_complete(statement):
                yield "statement", statement
                statement = []
        elif line == "":
            yield "blank", []
        elif line.startswith("//"):
            yield "comment", [line]


def _is_complete(statement: list[str]) -> bool:
    code = "\n".join(line.partition("//")[0] for line in statement).rstrip()
    is_balanced = all(code.count(a) == code.count(b) for a, b in ("()", "{}"))
    return is_balanced and (code.endswith(";") or (code.endswith("}") and not _TYPE.match(code)))


def _shown(statement: list[str]) -> str:
    """Return a statement without what a caller does not see: bodies of functions, private members."""
    code = "\n".join(statement)
    if not _TYPE.match(code):
        return code if code.endswith(";") else _BODY.sub(r"\1\2;", code)
    if code.endswith(";") and "{" not in code and not code.startswith("typedef"):
        return ""  # a declaration ahead of its definition
    lines = [_BODY.sub(r"\1\2;", line) for line in statement]
    if "  private:" in lines:
        lines[lines.index("  private:") :] = ["};"]
    while len(lines) > 1 and lines[-2] == "":
        del lines[-2]
    return "\n".join(lines)


def _name(statement: str) -> str:
    code = "\n".join(line.partition("//")[0] for line in statement.splitlines())
    for pattern in (_TYPE, _ALIAS):
        if match := pattern.match(code):
            return match[1]
    match = _FUNCTION.search(code) or _CONSTANT.search(code)
    if match is None:
        raise ValueError(f"no name is found in {statement!r}")
    return match[1]


def _markdown(comment: list[str], guides: dict[str, str]) -> str:
    """Return a comment as Markdown: indented parts as they are, hanging indents as lists, the rest as prose."""
    parts = []
    for paragraph in _paragraphs([line.removeprefix("//").removeprefix(" ") for line in comment]):
        if paragraph[0].startswith("    "):
            parts.append("\n".join(["```text", *(line[4:] for line in paragraph), "```", ""]))
        elif any(line.startswith("    ") for line in paragraph):
            items = ["  " + line.strip() if line.startswith("    ") else "- " + line for line in paragraph]
            parts.append("\n".join(_prose(line, guides) for line in items) + "\n")
        else:
            parts.append("\n".join(_prose(line, guides) for line in paragraph) + "\n")
    return "\n".join(parts)


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Yield paragraphs; an indented one keeps the blank lines inside it."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line:
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _prose(line: str, guides: dict[str, str]) -> str:
    """Return a line of prose with identifiers as code and characters that mean something in Markdown escaped."""
    line = _PAGE.sub(lambda match: _page_link(match, guides), line)
    parts = re.split(r'(`[^`]*`|"[^"]*"|\[.*?\]\(.*?\))', line)
    return "".join(part if k % 2 else _escaped(part) for k, part in enumerate(parts))


def _page_link(match: re.Match[str], guides: dict[str, str]) -> str:
    uri = guides.get(match[1])
    return match[0] if uri is None else f"[{match[1].replace('_', ' ')}](../../{uri})"


def _escaped(text: str) -> str:
    found = []
    end = 0
    for match in _IDENTIFIER.finditer(text):
        is_code = "_" in match[0] or "::" in match[0] or match[0].endswith("()")
        found.append(_plain(text[end : match.start()]))
        found.append(f"`{match[0]}`" if is_code else match[0])
        end = match.end()
    return "".join([*found, _plain(text[end:])])


def _plain(text: str) -> str:
    return re.sub(r"([\\*\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
