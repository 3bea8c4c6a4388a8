"""JSON documents (plans, profiles, levels, traces): a format, a version and the keys of one record.

Every ValueError names the file or the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .files import read_text, write_text
from .validation import mapping_of, quoted, unique_keys

Made = TypeVar("Made")


def document_of(format_name: str, version: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data as a document of this format and version."""
    return {"format": format_name, "version": version, **data}


def data_of(format_name: str, version: int, document: Any) -> dict[str, Any]:
    """Return what `document_of` was given. Raises ValueError for another format or version."""
    found = dict(mapping_of(f"the {format_name}", document))
    given = (found.pop("format", None), found.pop("version", None))
    if given != (format_name, version):
        raise ValueError(
            f"expected format {quoted(format_name)} version {version}, got "
            f"{quoted(given[0])} version {quoted(given[1])}"
        )
    return found


def write_document(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON; what is not a finite number is refused."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def load_document(path: str | Path, make: Callable[[Any], Made]) -> Made:
    """Return what `make` makes of the JSON in a file.

    Raises ValueError naming the file for what is not JSON, for a key that appears twice and for what `make` refuses;
    OSError.
    """
    text = read_text(path)
    try:
        document = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        return make(document)
    except (TypeError, ValueError) as error:  # of the wrong type, too, what a file holds is a wrong value
        raise ValueError(f"{path}: {error}") from error
