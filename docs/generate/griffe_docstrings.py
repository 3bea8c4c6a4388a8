"""A griffe extension: rewrites the docstrings of orbitsplit before mkdocstrings renders them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe
from docstrings import rewritten

_NAMESPACES = ("", "flight", "leo", "serve", "calibration")


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring; a name that is also a parameter or a member there is left as it is."""
        names = {part: _exports(pkg[part] if part else pkg) for part in _NAMESPACES}
        for item, own in _documented(pkg):
            part = item.path.split(".")[1] if "." in item.path else ""
            public = {name: f"{pkg.name}.{name}" for name in names[""]}
            if part in names:
                public |= {name: f"{pkg.name}.{part}.{name}" for name in names[part]}
            linked = {name: public[name] for name in public.keys() - own}
            item.docstring.value = rewritten(item.docstring.value, linked)


def _exports(module: Any) -> set[str]:
    return {str(name) for name in module.exports or ()}


def _documented(parent: Any, own: frozenset[str] = frozenset()) -> Iterator[tuple[Any, frozenset[str]]]:
    """Yield what has a docstring, with the names that mean something else in it: its own, parameters and members."""
    for item in parent.members.values():
        if item.is_alias:
            continue
        names = own | {item.name}
        if item.is_function or item.is_class:
            names |= {parameter.name for parameter in item.parameters}
        if item.is_class:
            names |= set(item.members)
        if item.docstring is not None:
            yield item, names
        if item.is_class:
            yield from _documented(item, names)
        elif item.is_module:
            yield from _documented(item)
