"""Files of element sets: which reader takes a file."""

from __future__ import annotations

from pathlib import Path

from orbitsplit._io.files import text_of

from .omm import from_omm
from .omm_formats import KINDS
from .recognition import kind_of
from .satellites import MEASURED_AGE_DAYS, Satellite
from .tle import from_tle


def load(path: str | Path, *, max_age_days: float = MEASURED_AGE_DAYS) -> tuple[Satellite, ...]:
    """Return the satellites of a file: OMM or two-line element sets.

    A suffix that is the name of a format says what the file must hold: .csv, .json, .kvn and .xml OMM, .tle two-line
    element sets. With any other the content decides.

    Raises:
        ValueError: As `from_tle` and `from_omm`.
    """
    kind, source = Path(path).suffix.lower().removeprefix("."), str(path)
    data = Path(path).read_bytes()
    if kind not in (*KINDS, "tle"):
        kind = kind_of(data)
    if kind == "xml":  # declares its encoding itself
        return from_omm(data, kind, source=source, max_age_days=max_age_days)
    text = text_of(data, path)
    if kind == "tle":
        return from_tle(text, source=source, max_age_days=max_age_days)
    return from_omm(text, kind, source=source, max_age_days=max_age_days)
