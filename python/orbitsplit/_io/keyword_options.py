"""Functions that take an option object, or the fields of it as keywords."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

from .validation import quoted

Options = TypeVar("Options")


def take_options(
    function: str, name: str, kind: type[Options], given: Options | None, keywords: dict[str, Any]
) -> Options:
    """Return the option object `given`, or one made of those `keywords` that are its fields; remove these.

    Raises:
        TypeError: It is of another type, it is given as object and as keywords, or a required field is missing.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    own = {key: keywords.pop(key) for key in names if key in keywords}
    if given is None:
        return kind(**own)
    if not isinstance(given, kind):
        raise TypeError(f"{name} is {quoted(given)}, must be a {kind.__name__}")
    if own:
        raise TypeError(f"{function}() got {name}= and {next(iter(own))}=, which is a field of it: give one of them")
    return given


def refuse_keywords(function: str, keywords: dict[str, Any], *, known: Sequence[str] = ()) -> None:
    """Raise `TypeError` for keywords that no option object has taken, with the nearest of those `known`."""
    for key in keywords:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"{function}() got an unexpected keyword argument {quoted(key)}{hint}")
