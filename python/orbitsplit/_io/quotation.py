"""Quotations of input in messages, kept short: a file of megabytes may be one line."""

from __future__ import annotations

from typing import Any

# Two of them and what they stand beside stay below 200 characters.
LONGEST_QUOTE = 80


def quoted(value: Any, limit: int = LONGEST_QUOTE) -> str:
    """Return `repr` of a value, of a long one only its beginning and its length; at most `limit` characters quoted."""
    if isinstance(value, str):
        text, length = repr(value[:limit]), len(value)
    else:
        text = repr(value)
        length = len(text)
    if length <= limit and len(text) <= limit + 2:
        return text
    return f"{text[:limit]}... ({length:,} characters)"
