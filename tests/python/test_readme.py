"""The README's first example prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_prints_what_it_says() -> None:
    text = README.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert code
    assert shown
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code[1], str(README), "exec"), {})
    assert printed.getvalue() == shown[1]


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert 'pip install -c constraints.txt ".[test]" && pytest\n' in README.read_text(encoding="utf-8")
