"""Old names of public things warn at the line that uses them."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from orbitsplit._io.deprecation import REMOVED_IN, renamed_attribute, renamed_keywords, takes_renamed, warn_renamed


@dataclass(frozen=True, slots=True)
class Link:
    destination: str

    target = renamed_attribute("Link.target", "destination")


def test_an_old_attribute_reads_the_new_one_and_blames_its_reader() -> None:
    link = Link("b")
    with pytest.warns(DeprecationWarning, match="target") as caught:
        value = link.target
    assert value == "b"
    assert [str(warning.message) for warning in caught] == [
        f"Link.target is now Link.destination; the old name goes in version {REMOVED_IN}"
    ]
    assert caught[0].filename == __file__


def test_an_old_attribute_is_no_field() -> None:
    assert asdict(Link("b")) == {"destination": "b"}
    assert repr(Link("b")) == "Link(destination='b')"
    assert Link.target.__doc__ == "The old name of `destination`."


def connect(**given: Any) -> dict[str, Any]:
    return renamed_keywords("connect", given, {"target": "destination", "way": "strategy"})


def test_old_keywords_come_under_their_new_names_and_blame_the_caller() -> None:
    with pytest.warns(DeprecationWarning, match="connect") as caught:
        found = connect(target="b", way=None)
    assert found == {"destination": "b", "strategy": None}
    assert [str(warning.message) for warning in caught] == [
        f"connect(target=) is now connect(destination=); the old name goes in version {REMOVED_IN}",
        f"connect(way=) is now connect(strategy=); the old name goes in version {REMOVED_IN}",
    ]
    assert {warning.filename for warning in caught} == {__file__}


def test_no_keyword_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert connect() == {}


def test_a_keyword_that_is_none_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match=r"^connect\(\) got an unexpected keyword argument 'colour'$"):
        connect(colour=1)


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got 'target' and 'destination', which are the same argument"):
        renamed_keywords("connect", {"target": 1, "destination": 2}, {"target": "destination"})
    names = {"target": "destination", "to": "destination"}
    with (
        pytest.warns(DeprecationWarning, match="target"),
        pytest.raises(TypeError, match="got 'to' and 'destination', which are the same argument"),
    ):
        renamed_keywords("connect", {"target": 1, "to": 2}, names)


def test_the_line_to_blame_can_be_chosen() -> None:
    with pytest.warns(DeprecationWarning, match="^a is now b; ") as caught:
        warn_renamed("a", "b", stacklevel=2)
    assert caught[0].filename == __file__


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
    with pytest.raises(TypeError, match="are the same argument"):
        rate("a", **both)
    unknown: dict[str, Any] = {"goal": "c"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'goal'"):
        rate("a", **unknown)
