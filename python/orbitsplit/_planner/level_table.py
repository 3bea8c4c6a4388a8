"""Tables of levels: what each codec saves and loses at each cut of a model. Plain data; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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

from .problem import Level

# The loss of a level that a cut does not have: the largest that a problem accepts. Budgets stay below half of it.
ABSENT_LOSS = 1e100

FORMAT = "orbitsplit-levels"
VERSION = 2
# Files of version 1 gave levels that a cut does not have this loss, which losses of another unit reach.
_ABSENT_IN_VERSION_1 = 1e6


def lifted_budget(loss: npt.ArrayLike) -> float | None:
    """Return the loss budget that rules out only levels that a cut does not have; None if all cuts have all levels."""
    return ABSENT_LOSS / 2 if np.max(loss, initial=0.0) >= ABSENT_LOSS else None


@dataclass(frozen=True, slots=True)
class LevelTable:
    """Codecs, and the loss of each at each cut.

    Attributes:
        levels: K levels, whose names are codecs.
        loss: C rows of K numbers: `loss[c][k]` is the loss of level k at the cut after c transformer layers, in nats
            per token: the mean KL divergence of the next-token distribution from that of the unsplit model. 1e100: the
            cut does not have the level.
        provenance: How the losses were measured.
        codec_bytes: The most memory that one of the codecs takes in the process of a stage; a stage has up to two.

    Raises:
        ValueError: A row of `loss` has another length than `levels`, or a loss is not finite or negative.
    """

    levels: tuple[Level, ...]
    loss: tuple[tuple[float, ...], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    codec_bytes: int = 0

    def __post_init__(self) -> None:
        check_count("codec_bytes", self.codec_bytes, 0, most=LARGEST_BYTES)
        for k, level in enumerate(tuple_of("levels", self.levels, Level)):
            check_fields(f"levels[{k}]", level, strings=("name",))
        for cut, row in enumerate(tuple_of("loss", self.loss)):
            if len(tuple_of(f"loss[{cut}]", row)) != len(self.levels):
                raise ValueError(f"loss[{cut}] has {len(row)} numbers, must be {len(self.levels)}, one per level")
            for k, value in enumerate(row):
                check_number(f"loss[{cut}][{k}]", value)
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"loss[{cut}][{k}] is {value}, must be finite and at least 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON-ready data; `from_dict` takes it back."""
        return document_of(FORMAT, VERSION, asdict(self))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LevelTable:
        """Make a table from what `to_dict` returned.

        Raises:
            ValueError: A key is missing, unknown or has a wrong value; the message names it.
        """
        is_old = isinstance(document, Mapping) and (document.get("format"), document.get("version")) == (FORMAT, 1)
        values = data_of(FORMAT, 1 if is_old else VERSION, document)
        check_keys("the table of levels", values, cls)
        rows = [list_of(f"loss[{cut}]", row) for cut, row in enumerate(list_of("loss", values["loss"]))]
        if is_old:
            rows = [[_loss_of_version_1(value) for value in row] for row in rows]
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


def _loss_of_version_1(value: Any) -> Any:
    is_absent = isinstance(value, (int, float)) and _ABSENT_IN_VERSION_1 <= value < math.inf
    return ABSENT_LOSS if is_absent else value
