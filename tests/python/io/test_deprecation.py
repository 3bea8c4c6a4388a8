"""Arguments by their old names: accepted with a warning that blames the caller, refused beside the new ones."""

from __future__ import annotations

from typing import Any

import pytest

from orbitsplit._io.deprecation import takes_renamed


@takes_renamed(target="destination")
def rate(source: str, destination: str = "b") -> str:
    """Return both ends."""
    return f"{source} -> {destination}"


def test_old_arguments_are_passed_on_with_a_warning() -> None:
    old: dict[str, Any] = {"target": "c"}
    with pytest.warns(DeprecationWarning, match=r"rate\(target=\) is now rate\(destination=\)") as warned:
        assert rate("a", **old) == "a -> c"
    assert warned[0].filename == __file__
    assert rate("a") == rate("a", destination="b") == "a -> b"
    assert rate.__doc__ == "Return both ends."


def test_an_argument_has_one_name_at_a_time() -> None:
    both: dict[str, Any] = {"target": "c", "destination": "d"}
    warns = pytest.warns(DeprecationWarning, match="is now")
    with warns, pytest.raises(TypeError, match=r"multiple values.*'destination'"):
        rate("a", **both)
    unknown: dict[str, Any] = {"goal": "c"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'goal'"):
        rate("a", **unknown)
