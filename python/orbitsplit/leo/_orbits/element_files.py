"""Files of element sets: which reader takes a file."""

from __future__ import annotations

from pathlib import Path

from orbitsplit._io.files import read_text

from .omm import from_omm
from .satellites import MEASURED_AGE_DAYS, Satellite
from .tle import from_tle


def load(path: str | Path, *, max_age_days: float = MEASURED_AGE_DAYS) -> tuple[Satellite, ...]:
    """Return the satellites of a file: OMM where it ends in .csv, .json, .kvn or .xml, two-line element sets otherwise.

    Raises:
        ValueError: As `from_tle` and `from_omm`.
    """
    kind, source = Path(path).suffix.lower().removeprefix("."), str(path)
    if kind == "xml":  # declares its encoding itself
        return from_omm(Path(path).read_bytes(), kind, source=source, max_age_days=max_age_days)
    text = read_text(path)
    if kind in ("csv", "json", "kvn"):
        return from_omm(text, kind, source=source, max_age_days=max_age_days)
    return from_tle(text, source=source, max_age_days=max_age_days)
