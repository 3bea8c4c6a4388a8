"""The README's first example prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re

from tests.support.paths import ROOT

README = ROOT / "README.md"


def test_the_first_example_prints_what_it_says() -> None:
    text = README.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    expected = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {})
    assert printed.getvalue() == expected


def test_links_work_on_a_package_index() -> None:
    """Relative links lead nowhere there."""
    links = re.findall(r"\]\(([^)]*)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    command = 'pip install -c constraints.txt ".[test]" && pytest -n 3 --dist=loadscope\n'
    assert command in README.read_text(encoding="utf-8")


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README.read_text(encoding="utf-8")
