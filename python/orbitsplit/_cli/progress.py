"""Progress of work that takes seconds: bars in a terminal, elsewhere lines at intervals; and what an interrupt kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orbitsplit._io.units import format_seconds

# Where there is no terminal, as in a log file: a step has its first line after so many seconds, and more at intervals.
_FIRST_LINE_S, _LINE_EVERY_S = 2.0, 10.0
_LOOKED_AT_EVERY_S = 0.2
# What is left is told once so many seconds and so much of the work are done: before, it would be a guess.
_KNOWN_AFTER_S, _KNOWN_AT = 5.0, 0.1


class ProgressBars:
    """A bar per step, driven by the `progress(step, fraction)` callbacks of the library; without a terminal, lines.

    Lines come at intervals whether the library reports or not: some steps report nothing for minutes.
    """

    def __init__(self, console: Console, *, is_visible: bool = True) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        # Where there is no terminal, all that rich shows of a transient bar is an empty line.
        is_shown = is_visible and console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=not is_shown)
        self._tasks: dict[str, Any] = {}
        self._lines = _Lines(console) if is_visible and not console.is_terminal else None

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Show no more progress: something else is printed from now on."""
        self._progress.stop()
        if self._lines is not None:
            self._lines.stop()
            self._lines = None

    def __call__(self, step: str, fraction: float | None) -> None:
        """Show that a step is done to a fraction; None: how much of it is left is unknown."""
        if self._lines is not None:
            self._lines.note(step, fraction)
        name = name_of(step)
        total = None if fraction is None else 1.0
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(step, total=total)
        self._progress.update(self._tasks[name], completed=fraction, total=total, description=escape(step))


def name_of(step: str) -> str:
    """Return the step of "statistics, batch 1 of 128" and of the following batches: what precedes the comma."""
    return step.split(",")[0]


class _Lines(threading.Thread):
    """Prints what step is under way, its fraction and its seconds, at intervals."""

    def __init__(self, console: Console) -> None:
        super().__init__(name="progress", daemon=True)
        self._console = console
        self._is_over = threading.Event()
        self._step, self._fraction, self._since_s = "", None, time.monotonic()  # type: tuple[str, float | None, float]
        self._reported_s = self._since_s
        self._origin = (0.0, self._since_s)  # a fraction and its time: fractions grow from step to step, or begin again
        self._printed, self._printed_s = "", -_LINE_EVERY_S

    def note(self, step: str, fraction: float | None) -> None:
        """Take what the library reports."""
        if name_of(step) != name_of(self._step):
            self._since_s = time.monotonic()
        if fraction is None or fraction < (self._fraction or 0.0):
            self._origin = (fraction or 0.0, time.monotonic())
        if fraction != self._fraction:
            self._reported_s = time.monotonic()
        self._step, self._fraction = step, fraction

    def stop(self) -> None:
        """Print nothing from now on."""
        self._is_over.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Print until the end."""
        while not self._is_over.wait(_LOOKED_AT_EVERY_S):
            self.look()

    def look(self) -> None:
        """Print a line if one is due."""
        now_s, step, fraction, since_s = time.monotonic(), self._step, self._fraction, self._since_s
        is_new = name_of(step) != self._printed
        due_s = max(since_s, self._printed_s) + _FIRST_LINE_S if is_new else self._printed_s + _LINE_EVERY_S
        if step and now_s >= due_s:
            known = "" if fraction is None else f"{fraction:.0%}, "
            line = f"{step}: {known}{format_seconds(now_s - since_s)}{self._left(fraction, now_s)}"
            self._console.print(escape(line), highlight=False, soft_wrap=True)
            self._printed, self._printed_s = name_of(step), now_s

    def _left(self, fraction: float | None, now_s: float) -> str:
        """Return about how long the rest takes if it goes on as up to the last report; nothing where nobody knows."""
        start, start_s = self._origin
        done, spent_s = 0.0 if fraction is None else fraction - start, self._reported_s - start_s
        if fraction is None or done < _KNOWN_AT or spent_s < _KNOWN_AFTER_S or fraction >= 1:
            return ""
        left_s = (1 - fraction) * spent_s / done - (now_s - self._reported_s)
        return f", about {_rounded(left_s)} left" if left_s > 0 else ""


def _rounded(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


_kept: list[Callable[[], str | None]] = []


def keeps(path: Path, what: str) -> None:
    """Say in the line of an interrupt that a file is kept, if there is one by then, and what it is."""
    _kept.append(lambda: f"{path} has {what}" if path.exists() else None)


def interrupted() -> str:
    """Return the line that is printed when Ctrl-C ends a command: what it kept."""
    found = [text for text in (kept() for kept in _kept) if text is not None]
    return f"interrupted: {'; '.join(found) if found else 'nothing was kept'}"
