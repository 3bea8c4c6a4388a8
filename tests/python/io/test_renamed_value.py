"""String constants that were renamed: equal to their old value too, with a warning."""

from __future__ import annotations

import warnings

import pytest

from orbitsplit._io.deprecation import RenamedValue

KIND = RenamedValue("corruption", old="damage")


def test_the_old_value_is_equal_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="'damage' is now 'corruption'") as caught:
        assert KIND == "damage"
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="'damage' is now"):
        assert not KIND != "damage"  # noqa: SIM202


def test_the_new_value_and_others_compare_without_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KIND == "corruption"
        assert KIND != "link"
        assert KIND != 7
        assert {KIND: 1}["corruption"] == 1
        assert f"{KIND}" == "corruption"
