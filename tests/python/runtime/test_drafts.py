"""Guesses of the next tokens: found as by a search through the text, and sent as many as are worth their time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbitsplit.runtime._drafts import DraftLength, Guessing, PromptLookup, right_guesses


def guess_by_search(tokens: list[int], count: int) -> list[int]:
    """The judge: the latest place where the last three tokens, or two, or one came before; goes on in circles."""
    for length in (3, 2, 1):
        if length > len(tokens):
            continue
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[-length:]:
                copied = tokens[start + length :]
                return [copied[k % len(copied)] for k in range(count)]
    return []


@given(tokens=st.lists(st.integers(0, 4), max_size=40), count=st.integers(0, 8))
def test_guesses_are_those_of_a_search(tokens: list[int], count: int) -> None:
    lookup = PromptLookup(tokens[:10])
    for token in tokens[10:]:
        lookup.append(token)
    assert lookup.guess(count) == guess_by_search(tokens, count)


@pytest.mark.parametrize(
    ("guesses", "tokens", "right"),
    [([], [5], 0), ([5], [5, 6], 1), ([5], [6, 6], 0), ([5, 6, 7], [5, 9, 7, 8], 1), ([5, 6], [5, 6, 7], 2)],
)
def test_guesses_are_right_up_to_the_first_wrong_one(guesses: list[int], tokens: list[int], right: int) -> None:
    assert right_guesses(guesses, tokens) == right


def tokens_per_s(probability: float, lap_s: Callable[[int], float], most: int, laps: int, seed: int = 0) -> float:
    """Tokens per second with the lengths that are chosen, relative to none, where a lap of n tokens takes so long."""
    source = random.Random(seed)
    length = DraftLength(most)
    tokens, seconds = 0, 0.0
    for _ in range(laps):
        guesses = length.choose()
        right = 0
        while right < guesses and source.random() < probability:
            right += 1
        taken_s = lap_s(1 + guesses) * source.uniform(0.95, 1.05)
        length.learn(guesses, right, taken_s)
        tokens, seconds = tokens + right + 1, seconds + taken_s
    return tokens / seconds * lap_s(1)


# What a lap of n tokens takes: almost nothing but the way; compute alone, and flat up to eight rows; float32 on a core.
WAY = 0.3
LAPS: dict[str, Callable[[int], float]] = {
    "links": lambda n: WAY + 0.001 * n,
    "both": lambda n: 0.1 + 0.03 * n,
    "compute": lambda n: 0.04 + 0.056 * n,
}


@pytest.mark.parametrize("laps", LAPS)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.6, 0.9, 1.0])
def test_the_length_is_near_the_best_and_never_costs_much(laps: str, probability: float) -> None:
    lap_s, most = LAPS[laps], 8
    expected = [
        sum(probability**k for k in range(guesses + 1)) / lap_s(1 + guesses) * lap_s(1) for guesses in range(most + 1)
    ]
    found = tokens_per_s(probability, lap_s, most, 2000)
    assert found >= 0.97
    assert found >= 0.85 * max(expected)


def test_after_laps_of_one_length_another_one_is_tried() -> None:
    length = DraftLength(8)
    assert length.choose() == 0
    length.learn(0, 0, 1.0)
    assert length.choose() == 3
    length.learn(3, 3, 1.0)
    assert length.choose() == 8  # no guess costs anything, and all were right


@pytest.mark.parametrize(
    ("disturbed", "share"),
    # The first lap with guesses, and no other: what it took is believed until the next trial.
    [([0], 0.8), ([0, 1], 0.8), ([5, 6, 20], 0.8), ([1], 0.4)],
)
def test_laps_that_wait_behind_prompts_do_not_end_guesses(disturbed: list[int], share: float) -> None:
    # A line through all laps took one that had waited for what guesses cost: four prompts went on without any.
    length = DraftLength(8)
    tokens = 0
    for lap in range(64):
        guesses = length.choose()
        length.learn(guesses, guesses, 1.5 if lap in disturbed else 0.16 + 0.002 * guesses)
        tokens += 1 + guesses
    assert tokens >= share * 9 * 64


def test_laps_that_last_longer_from_now_on_are_learnt() -> None:
    length = DraftLength(8)
    for lap in range(200):
        guesses = length.choose()
        slope = 0.0 if lap < 100 else 0.2
        length.learn(guesses, min(guesses, 1), 0.16 + slope * guesses)
    assert length.choose() == 0


def test_guesses_never_exceed_what_is_left() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    guessing = Guessing(PromptLookup([1, 2, 3, 1]), 8, clock)
    assert guessing.start(2) == []  # the first lap has none
    assert [int(token) for token in guessing.finish([2])] == [2]
    assert guessing.start(2) == [3, 1]
    assert [int(token) for token in guessing.finish([3, 1, 7])] == [3, 1, 7]
    assert guessing.start(0) == []
    assert [int(token) for token in guessing.finish([9])] == [9]
    assert guessing.start(-1) == []


def test_long_without_a_match_guesses_are_tried_again() -> None:
    length = DraftLength(8)
    length.learn(3, 3, 1.0)
    for _ in range(500):
        length.learn(0, 0, 1.0)
        assert length.choose() > 0


class SlowDrafts:
    """Guesses of a model that takes its time: the clock is what it and laps have taken so far."""

    def __init__(self, prompt: int, *, taken_in_s: float, guess_s: float) -> None:
        self.now_s = 0.0
        self.behind = prompt
        self.caught_up: list[int] = []
        self._guessed = 0
        self._taken_in_s, self._guess_s = taken_in_s, guess_s

    def clock(self) -> float:
        return self.now_s

    def catch_up(self) -> None:
        self.now_s += self._taken_in_s * (self.behind - 1)
        self.caught_up.append(self.behind - 1)
        self.behind = 1

    def append(self, token: int) -> None:
        is_known = self._guessed > 0 and token == 7
        self._guessed = self._guessed - 1 if is_known else 0
        self.behind += not is_known

    def guess(self, count: int) -> list[int]:
        self.now_s += self._taken_in_s * (self.behind - 1) + self._guess_s * count
        self.behind, self._guessed = 0, count - 1  # the last guess is not taken in
        return [7] * count


def sent(drafts: SlowDrafts, right: int, lap_s: float, laps: int) -> list[int]:
    """Return how many guesses each lap had, of which the first `right` were right."""
    guessing, counts = Guessing(drafts, 8, drafts.clock), []
    for _ in range(laps):
        guesses = guessing.start(8)
        counts.append(len(guesses))
        drafts.now_s += lap_s
        known = min(right, len(guesses))
        taken = list(guessing.finish([*guesses[:known], 5, *[5] * (len(guesses) - known)]))
        assert len(taken) == known + 1
    return counts


def test_the_prompt_is_taken_in_once_and_is_no_part_of_a_lap() -> None:
    drafts = SlowDrafts(1000, taken_in_s=0.5, guess_s=0.01)
    counts = sent(drafts, 8, 1.0, 20)
    assert counts == [0, 3] + [8] * 18
    assert drafts.caught_up == [1000]


def test_a_model_that_takes_longer_than_a_lap_is_asked_for_nothing() -> None:
    drafts = SlowDrafts(100, taken_in_s=0.05, guess_s=2.0)
    counts = sent(drafts, 2, 1.0, 500)
    # To take in the tokens since the last guess would take a twentieth of the time of laps.
    assert counts == [0, 3] + [0] * 498
    assert drafts.caught_up == [100]


def test_a_model_that_takes_tokens_in_at_once_is_tried_again() -> None:
    drafts = SlowDrafts(100, taken_in_s=0.001, guess_s=2.0)
    counts = sent(drafts, 2, 1.0, 500)
    assert 5 <= sum(count > 0 for count in counts) <= 500 // 32 + 1
    assert len(drafts.caught_up) > 5
    assert drafts.now_s <= 1.1 * 500
