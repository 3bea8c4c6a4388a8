"""Numbers with their provenance: a paper, a data sheet, a measurement, or an assumption."""

from __future__ import annotations

from dataclasses import dataclass

from orbitsplit._io.validation import quoted

ORIGINS = ("paper", "datasheet", "measured", "assumed")


@dataclass(frozen=True, slots=True)
class Sourced:
    """A number and its provenance: `origin` is one of `ORIGINS`, `source` names the paper, data sheet or reason.

    Raises:
        ValueError: There is no such origin.
    """

    value: float
    origin: str
    source: str = ""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ValueError(f"the origin {quoted(self.origin)} must be one of {', '.join(ORIGINS)}")

    def __str__(self) -> str:
        return f"{self.value:g} [{self.origin}{': ' + self.source if self.source else ''}]"
