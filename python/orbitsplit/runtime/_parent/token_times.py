"""How long tokens take in the session that runs, as the parent sees them come."""

from __future__ import annotations

import statistics
import time
from collections import deque

_KEPT = 32


class TokenTimes:
    """Seconds between the tokens of a group, and per token of its prompt."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[float, int]] = {}
        self._last_s: dict[int, float] = {}
        self._steps: deque[float] = deque(maxlen=_KEPT)
        self._prompts: deque[float] = deque(maxlen=_KEPT)

    @property
    def step_s(self) -> float | None:
        """The median seconds from one token of a group to its next; None before there were two."""
        steps = list(self._steps)
        return statistics.median(steps) if steps else None

    @property
    def prompt_token_s(self) -> float | None:
        """The least seconds for each token of a prompt, of those that did not wait for others; None before any came."""
        return min(self._prompts.copy(), default=None)

    def restart(self) -> None:
        """Take note of another session: what takes time between two sessions is not counted."""
        self._begun.clear()
        self._last_s.clear()

    def end(self, group: int) -> None:
        """Take note of the end of a group."""
        self._begun.pop(group, None)
        self._last_s.pop(group, None)

    def begin(self, group: int, tokens: int) -> None:
        """Take note of a group with a prompt of so many tokens."""
        self._begun[group] = time.monotonic(), tokens

    def note(self, group: int) -> None:
        """Take note of a token."""
        now_s = time.monotonic()
        begun = self._begun.pop(group, None)
        if begun is not None:
            self._prompts.append((now_s - begun[0]) / max(1, begun[1]))
        elif group in self._last_s:
            self._steps.append(now_s - self._last_s[group])
        self._last_s[group] = now_s
