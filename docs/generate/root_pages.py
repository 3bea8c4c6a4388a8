"""Pages whose source is a Markdown file in the root of the repository: relative links are rewritten for the site."""

from __future__ import annotations

import posixpath
import re

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s]+)")


def page(text: str, uri: str, repository: str) -> str:
    """Return the file as the page `uri`: links into docs/ lead to pages, others to the repository on the web."""
    here = posixpath.dirname(uri)

    def rewritten(match: re.Match[str]) -> str:
        target = match[2].removeprefix("./")
        if target.startswith("docs/"):
            return match[1] + posixpath.relpath(target.removeprefix("docs/"), here or ".")
        return f"{match[1]}{repository}/blob/main/{target}"

    return _LINK.sub(rewritten, text)
