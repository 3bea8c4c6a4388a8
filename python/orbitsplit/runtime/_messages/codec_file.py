"""The calibrated codecs of a plan in temporary files, one for each link: a process reads those of its own links."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from orbitsplit._codebook.codebook import CalibratedModel, Codebook, read_model
from orbitsplit._codebook.halves import stored
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._io.tensor_file import read_tensors, write_tensors
from orbitsplit._plans.plan import Plan
from orbitsplit._plans.plan_parts import PlanStage

_FORMAT, _VERSION = "orbitsplit-plan-codecs", 2
_ARRAYS = ("step", "shift", "scale", "threshold", "matrix", "inverse", "tables", "table_of_channel")
_SCALARS = ("codebook", "cut", "level", "rounding", "shrink", "hadamard")


class TemporaryCodecs:
    """Temporary files in a folder of their own, removed with this object at the latest; `path` is None for no files."""

    def __init__(self) -> None:
        self.path: str | None = None
        self._remove: weakref.finalize[[str], TemporaryCodecs] | None = None

    def remove(self) -> None:
        """Remove the files; from any thread, and more than once."""
        if self._remove is not None:
            self._remove()

    def _create(self) -> str:
        self.path = tempfile.mkdtemp(prefix="orbitsplit-")
        # Not a TemporaryDirectory, which warns when it is collected: the warning about a dropped pipeline is enough.
        self._remove = weakref.finalize(self, _remove_folder, self.path)
        return self.path


class CodecFiles(TemporaryCodecs):
    """Temporary files of a plan's calibrated codecs, of all links or some; `path` is None for a plan without any.

    Raises ValueError if the plan needs a codebook and none, or another one, is given.
    """

    def __init__(
        self, plan: Plan, codebook: Codebook | str | Path | None, *, links: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if plan.codebook is None:
            return  # a codebook that is not needed is ignored
        if codebook is None:
            raise ValueError(f"the plan needs codebook {plan.codebook}: pass it to Pipeline")
        book = codebook if isinstance(codebook, Codebook) else Codebook.load(codebook)
        if book.hex_id != plan.codebook:
            raise ValueError(f"the plan needs codebook {plan.codebook}, this is codebook {book.hex_id}")
        folder = self._create()
        for link in range(len(plan.links)) if links is None else links:
            _write(_file_of(folder, link), plan.stages[link], book)

    def read(self, link: int) -> bytes:
        """Return the file of a link, for `ReceivedCodecs` on another machine. There are files."""
        assert self.path is not None
        return _file_of(self.path, link).read_bytes()


class ReceivedCodecs(TemporaryCodecs):
    """The files of another machine, of which the bytes came over the store, by link."""

    def __init__(self, files: Mapping[int, bytes]) -> None:
        super().__init__()
        folder = self._create()
        for link, data in files.items():
            _file_of(folder, link).write_bytes(data)


def links_of(stage: int, links: int) -> list[int]:
    """Return which of so many links lead into and out of a stage."""
    return [link for link in (stage - 1, stage) if 0 <= link < links]


def _remove_folder(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _file_of(folder: str, link: int) -> Path:
    return Path(folder) / f"link-{link}.safetensors"


def _write(path: Path, stage: PlanStage, book: Codebook) -> None:
    """Write the codec of the link after a stage, None if it is not calibrated, and the model of the codebook."""
    codec = None if stage.codebook_level is None else book[stage.cut, stage.codebook_level]
    tensors: dict[str, npt.NDArray[Any]] = {}
    scalars = None
    if isinstance(codec, CalibratedCodec):
        given = {name: getattr(codec, name) for name in _ARRAYS}
        tensors = {name: stored(name, array) for name, array in given.items() if array is not None}
        scalars = {name: getattr(codec, name) for name in _SCALARS}
    write_tensors(
        path, tensors, {"format": _FORMAT, "version": _VERSION, "model": book.model.to_dict(), "codec": scalars}
    )


def read_codecs(
    path: str | None, stages: Sequence[PlanStage], links: Sequence[int]
) -> tuple[dict[int, CalibratedCodec | str], CalibratedModel | None]:
    """Return the codecs of the given links, and the model for which they were calibrated (None: no codebook)."""
    found: dict[int, CalibratedCodec | str] = {link: stages[link].codec or "raw" for link in links}
    model = None
    if path is None:
        return found, model
    for link in links:
        document, tensors = read_tensors(_file_of(path, link), _FORMAT, _VERSION, is_checked=True)
        model = read_model(document["model"])
        if document["codec"] is not None:
            numbers: dict[str, Any] = {**document["codec"], **tensors}
            found[link] = CalibratedCodec(**numbers)
    return found, model
