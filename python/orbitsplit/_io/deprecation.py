"""Old names of public things, kept for one version with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

REMOVED_IN = "0.3"


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a public name has a new one; `stacklevel` 3 blames the caller of the function that calls this."""
    warnings.warn(
        f"{old} is now {new}; the old name goes in version {REMOVED_IN}", DeprecationWarning, stacklevel=stacklevel
    )


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that reads the attribute `new` and warns.

    >>> class Link:                                         # doctest: +SKIP
    ...     destination: str
    ...     target = renamed_attribute("Link.target", "destination")
    """

    def read(self: Any) -> Any:
        warn_renamed(old, f"{old.rpartition('.')[0]}.{new}")
        return getattr(self, new)

    return property(read, doc=f"The old name of `{new}`.")


def renamed_keywords(function: str, given: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return keyword arguments under their new names, with a warning for each old one.

    Raises `TypeError` for a name that is neither, and for an argument given under both names.
    """
    result: dict[str, Any] = {}
    for old, value in given.items():
        if old not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {old!r}")
        new = names[old]
        if new in result or new in given:
            raise TypeError(f"{function}() got {old!r} and {new!r}, which are the same argument")
        warn_renamed(f"{function}({old}=)", f"{function}({new}=)", stacklevel=4)
        result[new] = value
    return result


def renamed_arguments(**names: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator with which a function also accepts arguments by their old names (old=new), and warns of each.

    >>> @renamed_arguments(target="destination")            # doctest: +SKIP
    ... def rate(source: str, destination: str) -> float: ...
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            old = {key: keywords.pop(key) for key in names if key in keywords}
            new: Any = renamed_keywords(function.__name__, old, names)
            return function(*arguments, **new, **keywords)

        return call

    return decorate
