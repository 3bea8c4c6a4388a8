"""JSON Schemas of the files that the library reads and writes; they lie in orbitsplit/schemas."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from .validation import quoted

_SUFFIX = ".schema.json"


def schema_names() -> tuple[str, ...]:
    """Return the names that `schema` takes."""
    folder = resources.files("orbitsplit") / "schemas"
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in folder.iterdir() if file.name.endswith(_SUFFIX)))


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 7, which editors of JSON and TOML know) of a kind of file.

    Shapes and types are in the schema. What depends on several values, such as stages that must follow each other, is
    checked when the file is loaded.

    Args:
        name: "plan", "problem", "profile", "network", "trace", "codebook" (the document in its metadata) or "scenario".

    Example:
        >>> schema("network")["required"]
        ['nodes']

    Raises:
        ValueError: There is no such schema; the message lists them.
    """
    if name not in schema_names():
        raise ValueError(f"no schema {quoted(name)}; there are: {', '.join(schema_names())}")
    file = resources.files("orbitsplit") / "schemas" / f"{name}{_SUFFIX}"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
