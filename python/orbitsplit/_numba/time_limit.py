"""When to end a computation early, as in cpp/src/support/time_limit.hpp. Signals are Python's affair (see jit.py)."""

from __future__ import annotations

import time

# A step that is begun before the limit may end: most take a few milliseconds, and a result is worth more than none. It
# is less than in C++, because what follows a step takes longer here. But the first steps, which find a first plan, have
# their time in any case: of the processor, so that a plan does not depend on what else it does.
_GRACE_S = 0.02
_FIRST_STEPS_S = 0.08


class TimeLimit:
    """The time since a solve began, and its limit."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._start = time.perf_counter()
        self._processor_start = time.thread_time()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._start

    def earlier_by(self, seconds: float) -> TimeLimit:
        """Return a limit that is reached earlier."""
        earlier = TimeLimit(self._limit_s - seconds)
        earlier._start, earlier._processor_start = self._start, self._processor_start
        return earlier

    def remaining_s(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._limit_s - self.seconds())

    def is_reached(self) -> bool:
        """Return whether the limit has passed."""
        return self.seconds() > self._limit_s

    def must_end(self) -> bool:
        """Return whether it has passed by so much that a step must be given up: asked between slices of a step."""
        if self.seconds() <= self._limit_s + _GRACE_S:
            return False
        return time.thread_time() - self._processor_start > _FIRST_STEPS_S
