"""Slow nodes, emulated on one machine by stretching the processor time of each piece of work.

Several nodes that share a core disturb each other less than the wall clock suggests, since a stretched piece of work
mostly waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from orbitsplit._plans.trace import Recorder

T = TypeVar("T")


class Step(Protocol):
    """A step of a group."""

    @property
    def group(self) -> int:
        """The group's number."""

    @property
    def step(self) -> int:
        """The step's number."""


class StepTimes:
    """How many pieces of work of token steps were done since a session began, and the seconds of all, by their kind.

    One thread adds to them and others read them.
    """

    KINDS = ("compute", "encode", "decode")

    def __init__(self) -> None:
        self._totals = dict.fromkeys(self.KINDS, (0, 0.0))

    def add(self, kind: str, seconds: float) -> None:
        """Count a piece of work."""
        count, total_s = self._totals[kind]
        self._totals[kind] = count + 1, total_s + seconds  # as a whole, for who reads them

    def totals(self) -> tuple[tuple[int, float], ...]:
        """Return number and seconds of each of the KINDS."""
        return tuple(self._totals[kind] for kind in self.KINDS)


class Pace:
    """Runs pieces of work at the speed of an emulated node and records them.

    With `slowdown` s, a piece of work of c seconds of the `clock` lasts s * c seconds. The default, processor time of
    this thread, is exact with one torch thread; of more threads, or another device, wall time is stretched. A step of
    the plan has `planned_rows`.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        slowdown: float = 1.0,
        clock: Callable[[], float] = time.thread_time,
        planned_rows: int = 1,
    ) -> None:
        self.recorder = recorder
        self._planned_rows = planned_rows
        self.slowdown = slowdown
        self._clock = clock
        self.held_until_s = 0.0
        self.step_times = StepTimes()
        self.busy_s = 0.0  # of all work so far, as long as the emulated node takes for it

    def hold_until(self, free_s: float) -> None:
        """Start no work before `free_s`, since a half-duplex node cannot compute while it transmits."""
        self.held_until_s = free_s

    def run(
        self,
        kind: str,
        group: int,
        step: int,
        work: Callable[[], T],
        *,
        is_brief: bool = False,
        is_planned: bool = True,
    ) -> T:
        """Do `work`, wait until the emulated node would have done it, and record it.

        Token steps that are as the plan has them (`is_planned`) count among the `step_times`.

        Reading a thread's processor time takes about as long as encoding the activation of a token: for work that
        `is_brief`, on a node that is not emulated, wall time is recorded instead.
        """
        start_s = time.monotonic()
        if start_s < self.held_until_s:
            sleep_until(self.held_until_s)
            self.recorder.add("wait", group, step, start_s, self.held_until_s)
            start_s = time.monotonic()
        result, spent_s = self._timed(work, start_s, is_brief=is_brief)
        stop_s = time.monotonic()
        self.recorder.add(kind, group, step, start_s, stop_s, spent_s)
        if step > 0 and is_planned:
            self.step_times.add(kind, stop_s - start_s)
        self.busy_s += stop_s - start_s
        return result

    def run_shared(
        self,
        kind: str,
        steps: Sequence[Step],
        work: Callable[[], T],
        *,
        is_brief: bool = False,
        is_planned: bool = True,
    ) -> T:
        """Do `work` of steps of several groups as `run` does; each has an equal part of its processor time.

        It counts among the `step_times` if there are as many as a step of the plan has rows.
        """
        sleep_until(self.held_until_s)
        start_s = time.monotonic()
        result, spent_s = self._timed(work, start_s, is_brief=is_brief)
        stop_s = time.monotonic()
        self.busy_s += stop_s - start_s
        for step in steps:
            self.recorder.add(kind, step.group, step.step, start_s, stop_s, spent_s / len(steps))
        if len(steps) == self._planned_rows and steps[0].step > 0 and is_planned:
            self.step_times.add(kind, stop_s - start_s)
        return result

    def _timed(self, work: Callable[[], T], start_s: float, *, is_brief: bool) -> tuple[T, float]:
        """Do `work` and wait until the emulated node would have done it; return its result and processor time."""
        if is_brief and self.slowdown <= 1.0:
            return work(), time.monotonic() - start_s
        before_s = self._clock()
        result = work()
        spent_s = self._clock() - before_s
        if self.slowdown > 1.0:
            sleep_until(start_s + self.slowdown * spent_s)
        return result, spent_s


def sleep_until(moment_s: float) -> None:
    """Return at `moment_s` of the monotonic clock, immediately if it has passed."""
    remaining_s = moment_s - time.monotonic()
    if remaining_s > 0:
        time.sleep(remaining_s)
