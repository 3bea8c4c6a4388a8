"""The README's first example prints what it says it prints."""

from __future__ import annotations

import contextlib
import io
import re

from tests.support.paths import ROOT

README = ROOT / "README.md"


def test_the_examples_print_what_they_say() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    # The two between need a model; test_pipeline, test_pipeline_calls and test_demo run what they show.
    for code, expected in ((blocks[0], shown[0]), (blocks[3], shown[1]), (blocks[4], shown[2])):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(README), "exec"), names)
        assert printed.getvalue() == expected


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert 'pip install -c constraints.txt ".[test]" && pytest\n' in README.read_text(encoding="utf-8")


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README.read_text(encoding="utf-8")
