"""Where a calibration stands: kept in a file, so that what was interrupted goes on and ends with the same numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._codebook.codebook import CodebookEntry, read_entries
from orbitsplit._io.tensor_file import read_tensors, write_tensors

from ._statistics import CutStatistics

FORMAT = "orbitsplit-calibration"
VERSION = 1

_SECONDS_BETWEEN = 30.0


@dataclass
class State:
    """What is done: batches of the statistics, then cut after cut.

    `is_between` is false while a batch is part of some statistics and not of others.
    """

    batches: int = 0
    statistics: dict[int, CutStatistics] = field(default_factory=dict)
    entries: dict[int, tuple[CodebookEntry, ...]] = field(default_factory=dict)
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    is_between: bool = True


class Checkpoint:
    """The state of one calibration, kept in a file where there is a path.

    `asked` says what is calibrated, on what and how; a file of another calibration is refused.
    Raises ValueError for that and for a file that is damaged or something else.
    """

    def __init__(self, path: str | Path | None, asked: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._asked = dict(asked)
        self._written_s = time.monotonic()
        self.state = State()
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def save(self, *, is_due: bool = True) -> None:
        """Write the state, unless it is not due and was written within the last half minute, or is no whole one."""
        if (
            self._path is None
            or not self.state.is_between
            or not (is_due or time.monotonic() - self._written_s > _SECONDS_BETWEEN)
        ):
            return
        arrays = dict(self.state.tensors)
        for cut, statistics in self.state.statistics.items():
            arrays |= statistics.to_arrays(f"statistics.{cut}")
        document = {
            "format": FORMAT,
            "version": VERSION,
            "asked": self._asked,
            "batches": self.state.batches,
            "statistics": list(self.state.statistics),
            "entries": {str(cut): [asdict(entry) for entry in made] for cut, made in self.state.entries.items()},
        }
        write_tensors(self._path, arrays, document)
        self._written_s = time.monotonic()

    def remove(self) -> None:
        """Forget the state: the calibration is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        document, arrays = read_tensors(path, FORMAT, VERSION, is_checked=True)
        found = document["asked"]
        for key, value in self._asked.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{path} is the checkpoint of another calibration: its {key} is {found.get(key)}, not {value}; "
                    f"delete it or name another"
                )
        cuts = document["statistics"]
        self.state = State(
            batches=document["batches"],
            statistics={cut: CutStatistics.from_arrays(f"statistics.{cut}", arrays) for cut in cuts},
            entries={int(cut): read_entries(cut, rows) for cut, rows in document["entries"].items()},
            tensors={name: np.array(arrays[name]) for name in arrays if not name.startswith("statistics.")},
        )
