"""Functions that take an option object or the fields of it as keywords: one way at a time, and nothing unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from orbitsplit._io.keyword_options import refuse_keywords, take_options


@dataclass(frozen=True, kw_only=True)
class Speed:
    least: int
    most: int = 9


def test_an_object_is_taken_as_it_is_and_keywords_of_others_are_left() -> None:
    keywords: dict[str, Any] = {"colour": "red"}
    speed = Speed(least=1)
    assert take_options("run", "speed", Speed, speed, keywords) is speed
    assert keywords == {"colour": "red"}


def test_keywords_make_an_object_and_are_removed() -> None:
    keywords: dict[str, Any] = {"most": 3, "colour": "red", "least": 2}
    assert take_options("run", "speed", Speed, None, keywords) == Speed(least=2, most=3)
    assert keywords == {"colour": "red"}
    with pytest.raises(TypeError, match=r"run\(\) got an unexpected keyword argument 'colour'"):
        refuse_keywords("run", keywords)
    refuse_keywords("run", {})


@pytest.mark.parametrize(
    ("given", "keywords", "message"),
    [
        (Speed(least=1), {"most": 3}, r"run\(\) got speed= and most=, which is a field of it: give one of them"),
        (3, {}, "speed is 3, must be a Speed"),
        (None, {"most": 3}, "missing 1 required keyword-only argument: 'least'"),
    ],
)
def test_what_contradicts_itself_is_refused(given: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        take_options("run", "speed", Speed, given, keywords)
