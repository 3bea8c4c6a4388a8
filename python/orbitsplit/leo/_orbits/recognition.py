"""What the beginning of a file looks like: which reader takes it, and what a message says it holds instead."""

from __future__ import annotations

import re

# How servers of element sets refuse those that fetch too often.
_RATE_LIMIT = re.compile(
    r"rate limit|too many requests|query limit|throttl|have not changed since|has not updated since|updated once every",
    re.IGNORECASE,
)
# With which of its keys a message begins.
_KEYS = (
    "CCSDS_OMM_VERS|CREATION_DATE|ORIGINATOR|MESSAGE_ID|CLASSIFICATION|OBJECT_NAME|OBJECT_ID|NORAD_CAT_ID|CENTER_NAME"
    "|EPOCH|MEAN_MOTION"
)
_FORMATS = (
    ("HTML", re.compile(r"<!doctype html|<html|<head|<body", re.IGNORECASE)),
    ("XML", re.compile(r"<\?xml|<!--|<(\w+:)?(ndm|omm)\b")),
    ("JSON", re.compile(r'\{\s*["}]|\[\s*[{\["\]]')),
    ("OMM in KVN", re.compile(rf"(COMMENT.*\n\s*)*({_KEYS})\s*=")),
    ("OMM in CSV", re.compile(rf'"?({_KEYS})"?\s*,')),
    ("two-line element sets", re.compile(r"(.*\n)?\s*1 [ 0-9A-Z][ 0-9]{4}[UCS ] ")),
)
_KINDS = {"XML": "xml", "JSON": "json", "OMM in KVN": "kvn", "OMM in CSV": "csv"}
_BEGINNING = 2000


def kind_of(data: bytes) -> str:
    """Return the kind of OMM that a file's bytes look like, `"tle"` for anything else."""
    # Without zeros and byte order marks UTF-16, in which XML may come, is ASCII as far as the patterns read.
    text = data[: 2 * _BEGINNING].translate(None, b"\x00\xff\xfe\xef\xbb\xbf").decode("ascii", "replace")
    return _KINDS.get(_format(_beginning(text)) or "", "tle")


def looks_like(text: str) -> str | None:
    """Return the name of what a text looks like, None for what is none of these."""
    beginning = _beginning(text)
    if _RATE_LIMIT.search(beginning):
        return "a server's message about a rate limit"
    return _format(beginning)


def appearance(text: str, expected: str = "") -> str:
    """Return what a text looks like and how it begins, as the end of a message; at most 100 characters are quoted."""
    beginning, kind = _beginning(text), looks_like(text)
    if not beginning.strip():
        return "it is empty"
    quote = repr(" ".join(beginning[:80].split()))[:100]
    if kind is None or (expected and kind.endswith(expected)):
        return f"it begins {quote}"
    return f"it looks like {kind}: {quote}"


def _format(beginning: str) -> str | None:
    return next((name for name, pattern in _FORMATS if pattern.match(beginning)), None)


def _beginning(text: str) -> str:
    return text[:_BEGINNING].lstrip("\ufeff \t\r\n")
