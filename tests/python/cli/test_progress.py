"""What the command line shows of long work where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orbitsplit._cli import views


def shown(*, is_visible: bool = True) -> str:
    text = io.StringIO()
    with views.ProgressBars(Console(file=text, width=80), is_visible=is_visible) as progress:
        for step, fraction in (("[a], batch 1 of 4", 0.25), ("b", 1.0)):
            progress(step, fraction)
    return text.getvalue()


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown() == ""  # work that is done within seconds
    monkeypatch.setattr(views, "_LINE_EVERY_S", 0.0)
    assert shown() == "[a], batch 1 of 4: 25%\nb: 100%\n"


def test_progress_shows_nothing_where_errors_alone_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_LINE_EVERY_S", 0.0)
    assert shown(is_visible=False) == ""
