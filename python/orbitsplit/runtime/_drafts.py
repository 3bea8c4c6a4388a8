"""Guesses of the next tokens, which a pipeline checks in one lap: prompt lookup, and how many are worth their time.

A model that guesses is in `_worker/assistant.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

# The longest run of tokens at the end of a text that is looked for in it.
_LONGEST_MATCH = 3
# How much of what was seen counts after one more step.
_MEMORY = 0.9
# What is believed of guesses before any was made, and how much that counts.
_EXPECTED_ACCEPTANCE, _EXPECTED_WEIGHT = 0.5, 2.0
_FIRST_GUESSES = 3
# Between the tokens of a lap without guesses and of one with some.
_BETWEEN = 1.5
# While guesses do not pay, one step in so many has one all the same, to notice when they do.
_EXPLORE_EVERY = 32
# As many tokens that guesses must take in first are part of a lap: those of the lap before, and of a few without any.
_FEW_BEHIND = 8
# The most of the time of laps that may go into taking in tokens of laps without guesses.
_CATCH_UP_SHARE = 0.01


class Drafts(Protocol):
    """Guesses of how one text goes on."""

    @property
    def behind(self) -> int:
        """How many tokens of the text have to be taken in before the next guess."""

    def catch_up(self) -> None:
        """Take in all tokens of the text but the last."""

    def append(self, token: int) -> None:
        """Add the next token of the text."""

    def guess(self, count: int) -> list[int]:
        """Return up to `count` tokens that may come next."""


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens came before, at the latest such place."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        # Of each run of tokens where the text went on behind it.
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    @property
    def behind(self) -> int:
        """0: a token is taken in when it is added."""
        return 0

    def catch_up(self) -> None:
        """Do nothing: nothing is missing."""

    def append(self, token: int) -> None:
        """Add the next token of the text."""
        here = len(self._tokens)
        for length in range(1, min(_LONGEST_MATCH, here) + 1):
            self._after[tuple(self._tokens[here - length :])] = here
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """Return `count` tokens that may come next, none if the last token is new."""
        for length in range(min(_LONGEST_MATCH, len(self._tokens)), 0, -1):
            start = self._after.get(tuple(self._tokens[-length:]))
            if start is not None:
                period = len(self._tokens) - start
                return [self._tokens[start + k % period] for k in range(count)]
        return []


class DraftLength:
    """How many guesses to send with a token, so that tokens come soonest.

    A lap with n tokens is taken to last a + b n seconds, and each guess to be right with the same probability, if those
    before it were; both are learnt from laps so far. So k guesses give (1 - p^(k+1)) / (1 - p) tokens in a + b (k + 1)
    seconds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._right = _EXPECTED_ACCEPTANCE * _EXPECTED_WEIGHT
        self._checked = _EXPECTED_WEIGHT
        self._laps = _Line()
        self._without = 0

    def choose(self) -> int:
        """Return how many guesses the next lap may have."""
        line = self._laps.fitted()
        if line is None:  # laps of two lengths are needed
            return min(self._most, _FIRST_GUESSES) if self._laps.mean_x < _BETWEEN else 0
        p = min(self._right / self._checked, 0.999)
        rates = [(1 - p ** (k + 1)) / (1 - p) / (line[0] + line[1] * (k + 1)) for k in range(self._most + 1)]
        best = rates.index(max(rates))
        if best > 0 or self._without < _EXPLORE_EVERY:
            return best
        return 1

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """Take note of a lap: of its guesses the first `right` ones were right."""
        self._laps.add(1 + guesses, seconds)
        self._without = 0 if guesses else self._without + 1
        if guesses:
            checked = min(guesses, right + 1)  # behind a wrong one, none was
            self._right = _MEMORY * self._right + right
            self._checked = _MEMORY * self._checked + checked


class _Line:
    """A straight line through points, of which earlier ones count less."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5

    @property
    def mean_x(self) -> float:
        """The mean x of the points, 0 without any."""
        return self._sums[1] / self._sums[0] if self._sums[0] else 0.0

    def add(self, x: float, y: float) -> None:
        new = (1.0, x, y, x * x, x * y)
        self._sums = [_MEMORY * old + one for old, one in zip(self._sums, new, strict=True)]

    def fitted(self) -> tuple[float, float] | None:
        """Return intercept and slope, neither below 0; None before two points of different x."""
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if n == 0 or spread <= 1e-6 * n * xx:
            return None
        slope = max(0.0, (n * xy - x * y) / spread)
        return max(0.0, (y - slope * x) / n), slope


class Guessing:
    """The guesses of a group of one row: what was sent with the last token, and what came of it."""

    def __init__(self, drafts: Drafts, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._drafts = drafts
        self._length = DraftLength(most)
        self._clock = clock
        self._guesses: list[int] = []
        self._began_s: float | None = None
        self._laps_s = 0.0
        # Seconds a token that was taken in, None before the first ones; seconds of all but the first ones.
        self._catch_up_s_per_token: float | None = None
        self._caught_up_s = 0.0

    def start(self, most: int) -> list[int]:
        """Return the guesses to send with the last token, at most so many."""
        count = max(0, min(most, self._length.choose()))
        if count and not self._has_caught_up():
            count = 0
        self._began_s = self._clock()
        self._guesses = self._drafts.guess(count) if count else []
        return self._guesses

    def _has_caught_up(self) -> bool:
        """Take in the text where there is much of it, which is no part of a lap; return whether a guess may follow.

        The text is taken in once whatever it takes. After long without guesses it is not, if the time that this takes
        would be felt.
        """
        behind = self._drafts.behind
        if behind <= _FEW_BEHIND:
            return True
        is_first = self._catch_up_s_per_token is None
        expected_s = self._caught_up_s + behind * (self._catch_up_s_per_token or 0.0)
        if not is_first and expected_s > _CATCH_UP_SHARE * self._laps_s:
            return False
        began_s = self._clock()
        self._drafts.catch_up()
        spent_s = self._clock() - began_s
        self._catch_up_s_per_token = spent_s / behind
        self._caught_up_s += 0.0 if is_first else spent_s
        return True

    def finish(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """Yield the tokens [1] that are known now: the first, and one behind each guess that was right."""
        right = right_guesses(self._guesses, tokens)
        if self._began_s is not None:
            lap_s = self._clock() - self._began_s
            self._laps_s += lap_s
            self._length.learn(len(self._guesses), right, lap_s)
        for token in tokens[: right + 1]:
            self._drafts.append(token)
            yield torch.tensor([token])


def right_guesses(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many guesses are the tokens that came: `tokens[k]` is the one in the place of `guesses[k]`."""
    count = 0
    while count < len(guesses) and guesses[count] == tokens[count]:
        count += 1
    return count
