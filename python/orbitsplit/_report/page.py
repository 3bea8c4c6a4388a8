"""The page of a report: sections of text, figures and tables, as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from bokeh.embed import components
from bokeh.resources import Resources
from markupsafe import Markup

from orbitsplit._io.files import write_text

# What mail programs and code hosts still take, and a browser opens at once.
LARGEST_BYTES = 6_000_000
# bokeh's own scripts, without those for WebGL and formulas.
_COMPONENTS = ("bokeh", "bokeh-widgets", "bokeh-tables")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: a title, a text, figures, and a table."""

    title: str
    text: str = ""
    figures: Sequence[Any] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(kw_only=True)
class Page:
    """A report while it is made."""

    title: str = ""
    subtitle: str = ""
    cards: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def write(self, path: str | Path) -> int:
        """Write the page and return its bytes. Raises ValueError if there are more than a report may have."""
        figures = {
            f"f{k}_{j}": plot for k, section in enumerate(self.sections) for j, plot in enumerate(section.figures)
        }
        script, divs = components(figures) if figures else ("", {})
        inline: Any = Resources(mode="inline", components=list(_COMPONENTS)).render() if figures else ""
        sections = [
            {
                "title": section.title,
                "text": section.text,
                "head": section.head,
                "rows": section.rows,
                "is_right": [all(map(_is_number, cells)) for cells in zip(*section.rows, strict=True)],
                "divs": [Markup(divs[f"f{k}_{j}"]) for j in range(len(section.figures))],
            }
            for k, section in enumerate(self.sections)
        ]
        text = _template().render(
            title=self.title,
            subtitle=self.subtitle,
            cards=self.cards,
            sections=sections,
            resources=Markup(inline),
            script=Markup(script),
            version=version("orbitsplit"),
        )
        size = len(text.encode())
        if size > LARGEST_BYTES:
            raise ValueError(f"the report would have {size:,} bytes, a report has at most {LARGEST_BYTES:,}")
        write_text(path, text)
        return size


def _is_number(cell: str) -> bool:
    """Return whether a cell is a number, maybe with a unit, or empty: such columns are flush right."""
    return not cell or cell[0].isdecimal() or (cell[0] == "-" and cell[1:2].isdecimal()) or cell == "-"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    file = resources.files("orbitsplit") / "_report" / "page.html"
    return environment.from_string(file.read_text(encoding="utf-8"))
