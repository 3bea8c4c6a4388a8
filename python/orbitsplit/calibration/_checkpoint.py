"""The state of a calibration in a file, from which an interrupted one resumes and ends with the same numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orbitsplit._codebook.codebook import CodebookEntry, read_entries
from orbitsplit._io.tensor_file import Arrays, read_tensors, write_tensors
from orbitsplit._io.validation import check_count, list_of, mapping_of, quoted

from ._statistics import CutStatistics

FORMAT = "orbitsplit-calibration"
VERSION = 1

_SECONDS_BETWEEN = 30.0


@dataclass
class State:
    """What is finished: batches of the statistics, then cut after cut.

    `is_between` is false while a batch has been added to the statistics of some cuts and not of others.
    """

    batches: int = 0
    statistics: dict[int, CutStatistics] = field(default_factory=dict)
    entries: dict[int, tuple[CodebookEntry, ...]] = field(default_factory=dict)
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    is_between: bool = True


class Checkpoint:
    """The state of one calibration, in a file if there is a path.

    `request` is what its numbers depend on: model, data, options, versions. The file has it under the key "request",
    files of version 0.1 under "asked", which is still read.

    Raises:
        ValueError: The file is that of another calibration, damaged or something else; the message names it.
    """

    def __init__(self, path: str | Path | None, request: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._request = dict(request)
        self._written_s = time.monotonic()
        self.state = State()
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def save(self, *, is_due: bool = True) -> None:
        """Write the state if it is consistent, and if it is due or was last written more than half a minute ago."""
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
            "request": self._request,
            "batches": self.state.batches,
            "statistics": list(self.state.statistics),
            "entries": {str(cut): [asdict(entry) for entry in made] for cut, made in self.state.entries.items()},
        }
        write_tensors(self._path, arrays, document)
        self._written_s = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the calibration is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        document, arrays = read_tensors(path, FORMAT, VERSION, is_checked=True)
        found = document.get("request", document.get("asked"))
        if not isinstance(found, dict):
            raise ValueError(f"{path} is not a valid checkpoint: its request is {quoted(found)}")
        for key, value in self._request.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{path} is the checkpoint of another calibration: its {key} is {found.get(key)}, not {value}; "
                    f"delete it or name another"
                )
        try:
            self.state = _state_of(document, arrays)
        except KeyError as error:
            raise ValueError(f"{path} is not a valid checkpoint: there is no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a valid checkpoint: {error}") from error


def _state_of(document: Mapping[str, Any], arrays: Arrays) -> State:
    count = document["batches"]
    check_count("batches", count, 0)
    cuts = list_of("statistics", document["statistics"])
    entries = mapping_of("entries", document["entries"])
    return State(
        batches=count,
        statistics={cut: CutStatistics.from_arrays(f"statistics.{cut}", arrays) for cut in cuts},
        entries={int(cut): read_entries(cut, rows) for cut, rows in entries.items()},
        tensors={name: np.array(arrays[name]) for name in arrays if not name.startswith("statistics.")},
    )
