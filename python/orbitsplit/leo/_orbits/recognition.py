"""What a text that was expected to hold element sets looks like instead, for messages."""

from __future__ import annotations

import re

# How servers of element sets refuse those that fetch too often.
_RATE_LIMIT = re.compile(
    r"rate limit|too many requests|query limit|throttl|have not changed since|has not updated since|updated once every",
    re.IGNORECASE,
)
_FORMATS = (
    ("HTML", re.compile(r"<!doctype html|<html|<head|<body", re.IGNORECASE)),
    ("XML", re.compile(r"<\?xml|<(\w+:)?(ndm|omm)\b")),
    ("JSON", re.compile(r'\{\s*["}]|\[\s*[{\["\]]')),
    ("OMM in KVN", re.compile(r"(COMMENT.*\s+)*(CCSDS_OMM_VERS|OBJECT_NAME|CREATION_DATE)\s*=")),
    ("OMM in CSV", re.compile(r'"?(OBJECT_NAME|CCSDS_OMM_VERS|NORAD_CAT_ID|EPOCH)"?\s*,')),
    ("two-line element sets", re.compile(r"(.*\n)?\s*1 [ 0-9A-Z][ 0-9]{4}[UCS ] ")),
)
_BEGINNING = 2000


def looks_like(text: str) -> str | None:
    """Return the name of what a text looks like, None for what is none of these."""
    beginning = _beginning(text)
    if _RATE_LIMIT.search(beginning):
        return "a server's message about a rate limit"
    return next((name for name, pattern in _FORMATS if pattern.match(beginning)), None)


def appearance(text: str, expected: str = "") -> str:
    """Return what a text looks like and how it begins, as the end of a message; at most 100 characters are quoted."""
    beginning, kind = _beginning(text), looks_like(text)
    if not beginning.strip():
        return "it is empty"
    quote = repr(" ".join(beginning[:80].split()))[:100]
    if kind is None or (expected and kind.endswith(expected)):
        return f"it begins {quote}"
    return f"it looks like {kind}: {quote}"


def _beginning(text: str) -> str:
    return text[:_BEGINNING].lstrip("\ufeff \t\r\n")
