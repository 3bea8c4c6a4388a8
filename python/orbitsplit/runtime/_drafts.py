"""Guesses of the next tokens, which a pipeline checks in one lap: prompt lookup, and how many are worth their time.

A model that guesses is in `_worker/assistant.py`.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# The longest run of tokens at the end of a text that is looked for in it.
_LONGEST_MATCH = 3
# How much of what was seen counts after one more step.
_MEMORY = 0.9
# What is believed of guesses before any was made, and how much that counts.
_EXPECTED_ACCEPTANCE, _EXPECTED_WEIGHT = 0.5, 2.0
_FIRST_GUESSES = 3
# After so many laps one has a guess more than seems best: how long such laps last is an estimate, or was long ago. More
# seldom where no guess pays, since there a guess may take much.
_TRIAL_AFTER, _TRIAL_AFTER_NONE = 8, 32
# How many laps of each length say how long such laps last.
_LATEST = 9
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

    Each guess is taken to be right with the same probability p, if those before it were, so that k guesses give
    (1 - p^(k+1)) / (1 - p) tokens; p, and how long laps of n tokens last, are learnt from laps so far.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._right = _EXPECTED_ACCEPTANCE * _EXPECTED_WEIGHT
        self._checked = _EXPECTED_WEIGHT
        self._laps = LapTimes()
        self._since_trial = 0

    def choose(self) -> int:
        """Return how many guesses the next lap may have."""
        seconds = self._laps.expected(self._most + 1)
        if seconds is None:  # Laps of two lengths are needed. The first one may wait behind prompts: it has no guesses.
            return min(self._most, _FIRST_GUESSES) if self._laps.is_known(1) else 0
        p = min(self._right / self._checked, 0.999)
        rates = [(1 - p ** (k + 1)) / (1 - p) / seconds[k] for k in range(self._most + 1)]
        best = rates.index(max(rates))
        after = _TRIAL_AFTER if best else _TRIAL_AFTER_NONE
        return min(self._most, best + 1) if self._since_trial >= after else best

    def learn(self, guesses: int, right: int, seconds: float) -> None:
        """Take note of a lap: of its guesses the first `right` ones were right."""
        after = _TRIAL_AFTER if guesses > 1 else _TRIAL_AFTER_NONE
        self._since_trial = 0 if guesses and self._since_trial >= after else self._since_trial + 1
        self._laps.add(1 + guesses, seconds)
        if guesses:
            checked = min(guesses, right + 1)  # behind a wrong one, none was
            self._right = _MEMORY * self._right + right
            self._checked = _MEMORY * self._checked + checked


class LapTimes:
    """How long laps of n tokens last: the median of the last few of each length.

    Whatever else goes on, such as the prompt of another request, makes laps longer, never shorter: of an even number
    the lower one in the middle counts. A lap of n tokens lasts no longer than n/m laps of m < n tokens, and no longer
    than one of more tokens; between those that are known, seconds lie on a straight line.
    """

    def __init__(self) -> None:
        self._latest: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_LATEST))

    def is_known(self, tokens: int) -> bool:
        """Return whether there was a lap of so many tokens."""
        return tokens in self._latest

    def add(self, tokens: int, seconds: float) -> None:
        """Take note of a lap."""
        self._latest[tokens].append(seconds)

    def expected(self, most: int) -> list[float] | None:
        """Return the seconds of laps of 1, 2, ..., `most` tokens; None before there were two lengths."""
        lengths = sorted(self._latest)
        if len(lengths) < 2:
            return None
        bounded: list[float] = []
        for n in lengths:
            at_most = (n / m * s for m, s in zip(lengths, bounded, strict=False))
            bounded.append(min([statistics.median_low(self._latest[n]), *at_most]))
        for k in range(len(bounded) - 2, -1, -1):
            bounded[k] = min(bounded[k], bounded[k + 1])
        slope = (bounded[-1] - bounded[0]) / (lengths[-1] - lengths[0])
        lengths = [1, *lengths, most + lengths[-1]]
        first_s = max(bounded[0] / 2, bounded[0] - slope * (lengths[1] - 1))
        bounded = [first_s, *bounded, bounded[-1] + slope * most]
        found: list[float] = np.interp(range(1, most + 1), lengths, bounded).tolist()
        return found


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
