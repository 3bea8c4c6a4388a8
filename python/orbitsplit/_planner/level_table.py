"""Tables of levels: what each codec saves and loses at each cut of a model. Plain data; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orbitsplit._io.json_document import data_of, document_of, load_document, write_document
from orbitsplit._io.validation import (
    LARGEST_BYTES,
    check_count,
    check_fields,
    check_keys,
    check_number,
    list_of,
    mapping_of,
    records_of,
    tuple_of,
)

from .losses import absent_as_infinity, infinity_as_absent
from .problem_parts import Level

FORMAT = "orbitsplit-levels"
VERSION = 3
# Files of older versions gave levels that a cut does not have this loss, by version.
_ABSENT_IN = {1: 1e6, 2: 1e100}
# As in a problem.
_MOST_LOSS = 1e100


@dataclass(frozen=True, slots=True)
class LevelTable:
    """Codecs, and the loss of each at each cut.

    Attributes:
        levels: K levels, whose names are codecs.
        loss: C rows of K numbers: `loss[c][k]` is the loss of level k at the cut after c transformer layers, in nats
            per token: the mean KL divergence of the next-token distribution from that of the unsplit model. Infinite
            (`None` is accepted for it): the cut does not have the level.
        provenance: How the losses were measured.
        codec_bytes: The most memory that one of the codecs takes in the process of a stage; a stage has up to two.

    Raises:
        ValueError: A row of `loss` has another length than `levels`, or a loss is negative, above 1e100 or no number.
    """

    levels: tuple[Level, ...]
    loss: tuple[tuple[float, ...], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    codec_bytes: int = 0

    def __post_init__(self) -> None:
        check_count("codec_bytes", self.codec_bytes, 0, most=LARGEST_BYTES)
        object.__setattr__(self, "levels", tuple_of("levels", self.levels, Level))
        for k, level in enumerate(self.levels):
            check_fields(f"levels[{k}]", level, strings=("name",))
        rows = [tuple_of(f"loss[{cut}]", row) for cut, row in enumerate(tuple_of("loss", self.loss))]
        object.__setattr__(self, "loss", tuple(map(tuple, absent_as_infinity(rows))))
        for cut, row in enumerate(self.loss):
            if len(row) != len(self.levels):
                raise ValueError(f"loss[{cut}] has {len(row)} numbers, must be {len(self.levels)}, one per level")
            for k, value in enumerate(row):
                check_number(f"loss[{cut}][{k}]", value)
                if not (0 <= value <= _MOST_LOSS or value == math.inf):
                    raise ValueError(f"loss[{cut}][{k}] is {value}, must be from 0 to {_MOST_LOSS:g}, or infinite")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON-ready data; `from_dict` takes it back."""
        values = asdict(self)
        values["loss"] = infinity_as_absent(self.loss)
        return document_of(FORMAT, VERSION, values)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LevelTable:
        """Make a table from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        version = document.get("version") if isinstance(document, Mapping) else None
        if not isinstance(version, int) or version not in _ABSENT_IN:
            version = VERSION
        values = data_of(FORMAT, version, document)
        check_keys("the table of levels", values, cls)
        rows = [list_of(f"loss[{cut}]", row) for cut, row in enumerate(list_of("loss", values["loss"]))]
        if version in _ABSENT_IN:
            rows = [[_loss_of_old_version(value, _ABSENT_IN[version]) for value in row] for row in rows]
        return cls(
            levels=records_of("levels", list_of("levels", values["levels"]), Level),
            loss=tuple(map(tuple, rows)),
            provenance=mapping_of("provenance", values.get("provenance", {})),
            codec_bytes=values.get("codec_bytes", 0),
        )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_document(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> LevelTable:
        """Read a table that `save` wrote.

        Raises:
            ValueError: The file is not JSON or not a table of levels.
        """
        return load_document(path, cls.from_dict)


def _loss_of_old_version(value: Any, least_absent: float) -> Any:
    return math.inf if isinstance(value, (int, float)) and value >= least_absent else value
