"""Old names of public things, kept for one version with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from .validation import quoted

REMOVED_IN = "0.3"

_Thing = TypeVar("_Thing", bound=Callable[..., Any])


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
            raise TypeError(f"{function}() got an unexpected keyword argument {quoted(old)}")
        new = names[old]
        if new in result or new in given:
            raise TypeError(f"{function}() got {quoted(old)} and {quoted(new)}, which are the same argument")
        warn_renamed(f"{function}({old}=)", f"{function}({new}=)", stacklevel=4)
        result[new] = value
    return result


def takes_renamed(**names: str) -> Callable[[_Thing], _Thing]:
    """Return a decorator that lets a function or a class take old keywords, with a warning for each.

    They are given as old="new".

    >>> @takes_renamed(target="destination")                # doctest: +SKIP
    ... @dataclass(frozen=True)
    ... class Link:
    ...     destination: str
    """

    def decorate(thing: _Thing) -> _Thing:
        if isinstance(thing, type):
            thing.__init__ = _renaming(thing.__init__, thing.__name__, names)  # type: ignore[misc]
            return thing
        renaming: Any = _renaming(thing, thing.__qualname__, names)
        return cast("_Thing", renaming)

    return decorate


def _renaming(function: Callable[..., Any], name: str, names: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        old = {key: given.pop(key) for key in names if key in given}
        for key in old:
            if names[key] in given:
                raise TypeError(f"{name}() got {quoted(key)} and {quoted(names[key])}, which are the same argument")
        if old:
            given |= renamed_keywords(name, old, names)
        return function(*args, **given)

    return call


class RenamedValue(str):
    """A string constant that also equals its old value, with a warning; only the new value hashes alike.

    >>> RenamedValue("corruption", old="damage") == "corruption"
    True
    """

    __slots__ = ("_old",)
    _old: str

    def __new__(cls, value: str, *, old: str) -> RenamedValue:
        made = super().__new__(cls, value)
        made._old = old
        return made

    def __eq__(self, other: object) -> bool:
        if str.__eq__(self, other) is True:
            return True
        if other == self._old:
            warn_renamed(repr(self._old), repr(str(self)))
            return True
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__
