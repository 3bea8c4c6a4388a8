"""MkDocs hooks: add the pages that are made from the sources instead of being written."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import cli_reference
import cpp_reference
import root_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Files in the root of the repository that are pages too, each with one source.
_ROOT_PAGES = {"CONTRIBUTING.md": "contributing/index.md", "CHANGELOG.md": "changelog.md"}

_log = logging.getLogger("mkdocs.hooks.orbitsplit")  # a warning below "mkdocs" ends a strict build


def on_config(config: MkDocsConfig) -> None:
    """Let griffe_docstrings.py find its neighbour: griffe loads it by its path, long after the hooks were loaded."""
    sys.path.append(str(Path(__file__).parent))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those in docs/."""
    root = Path(config.config_file_path).parent
    for uri, content in _pages(root, config.repo_url or "").items():
        files.append(File.generated(config, uri, content=content))
    return files


def _pages(root: Path, repository: str) -> dict[str, str]:
    pages = {"reference/cli.md": cli_reference.page()}
    pages |= {f"reference/cpp/{name}": text for name, text in cpp_reference.pages(root).items()}
    for name, uri in _ROOT_PAGES.items():
        path = root / name
        if path.exists():
            pages[uri] = root_pages.page(path.read_text(encoding="utf-8"), uri, repository)
        else:
            _log.warning("%s is missing: there is no page %s", name, uri)
    return pages
