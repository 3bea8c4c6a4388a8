"""Docstrings as Markdown: doctests become code blocks, public names in backticks become links."""

from __future__ import annotations

import re

_DOCTEST = re.compile(r"^(?P<indent> *)>>> .*\n(?:(?P=indent)\S.*(?:\n|$))*", re.MULTILINE)
_FLAG = re.compile(r" *# doctest: \+\w+$", re.MULTILINE)
_CODE = re.compile(r"(?<![`\[])`(\w+)`(?![`\]])")


def rewritten(text: str, public: dict[str, str]) -> str:
    """Return a docstring with its doctests fenced and the names in `public` linked to what they map to."""
    parts = []
    end = 0
    for match in _DOCTEST.finditer(text):
        parts += [_linked(text[end : match.start()], public), _fenced(match[0], match["indent"])]
        end = match.end()
    return "".join([*parts, _linked(text[end:], public)])


def _fenced(code: str, indent: str) -> str:
    lines = _FLAG.sub("", code).rstrip("\n")
    return f"{indent}```pycon\n{lines}\n{indent}```\n"


def _linked(text: str, public: dict[str, str]) -> str:
    return _CODE.sub(lambda m: f"[`{m[1]}`][{public[m[1]]}]" if m[1] in public else m[0], text)
