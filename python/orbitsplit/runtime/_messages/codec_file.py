"""The calibrated codecs of a plan in a temporary file, from which each process reads those of its own links."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from orbitsplit._codebook.codebook import CalibratedModel, Codebook, read_model
from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._io.tensor_file import read_tensors, write_tensors
from orbitsplit._plans.plan import Plan, PlanStage

_FORMAT, _VERSION = "orbitsplit-plan-codecs", 1
_ARRAYS = ("step", "shift", "scale", "threshold", "matrix", "inverse", "tables", "table_of_channel")
_SCALARS = ("codebook", "cut", "level", "rounding", "shrink", "hadamard")


class TemporaryCodecs:
    """A temporary file in a folder of its own, removed with this object at the latest; `path` is None for no file."""

    def __init__(self) -> None:
        self.path: str | None = None
        self._remove: weakref.finalize[[str], TemporaryCodecs] | None = None

    def remove(self) -> None:
        """Remove the file; from any thread, and more than once."""
        if self._remove is not None:
            self._remove()

    def _create(self) -> str:
        folder = tempfile.mkdtemp(prefix="orbitsplit-")
        # Not a TemporaryDirectory, which warns when it is collected: the warning about a dropped pipeline is enough.
        self._remove = weakref.finalize(self, _remove_folder, folder)
        self.path = str(Path(folder) / "codecs.safetensors")
        return self.path


class CodecFile(TemporaryCodecs):
    """A temporary file of a plan's calibrated codecs; `path` is None for a plan without any.

    Raises ValueError if the plan needs a codebook and none, or another one, is given.
    """

    def __init__(self, plan: Plan, codebook: Codebook | str | Path | None) -> None:
        super().__init__()
        if plan.codebook is None:
            return  # a codebook that is not needed is ignored
        if codebook is None:
            raise ValueError(f"the plan needs codebook {plan.codebook}: pass it to Pipeline")
        book = codebook if isinstance(codebook, Codebook) else Codebook.load(codebook)
        if book.hex_id != plan.codebook:
            raise ValueError(f"the plan needs codebook {plan.codebook}, this is codebook {book.hex_id}")
        _write(self._create(), plan, book)


class ReceivedCodecs(TemporaryCodecs):
    """The file of another machine, of which the bytes came over the store."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        Path(self._create()).write_bytes(data)


def _remove_folder(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: str, plan: Plan, book: Codebook) -> None:
    tensors: dict[str, npt.NDArray[Any]] = {}
    codecs: dict[str, dict[str, Any]] = {}
    for link, stage in enumerate(plan.stages[:-1]):
        codec = None if stage.codebook_level is None else book[stage.cut, stage.codebook_level]
        if isinstance(codec, CalibratedCodec):
            given = {name: getattr(codec, name) for name in _ARRAYS}
            tensors |= {f"{link}.{name}": array for name, array in given.items() if array is not None}
            codecs[str(link)] = {name: getattr(codec, name) for name in _SCALARS}
    document = {"format": _FORMAT, "version": _VERSION, "model": book.model.to_dict(), "codecs": codecs}
    write_tensors(path, tensors, document)


def read_codecs(
    path: str | None, stages: Sequence[PlanStage], links: Sequence[int]
) -> tuple[dict[int, CalibratedCodec | str], CalibratedModel | None]:
    """Return the codecs of the given links, and the model for which they were calibrated (None: no codebook)."""
    if path is None:
        return {link: stages[link].codec or "raw" for link in links}, None
    document, tensors = read_tensors(path, _FORMAT, _VERSION)
    found: dict[int, CalibratedCodec | str] = {}
    for link in links:
        scalars: dict[str, Any] | None = document["codecs"].get(str(link))
        if scalars is None:
            found[link] = stages[link].codec or "raw"
        else:
            numbers = dict(scalars)
            numbers |= {name: tensors[f"{link}.{name}"] for name in _ARRAYS if f"{link}.{name}" in tensors}
            found[link] = CalibratedCodec(**numbers)
    return found, read_model(document["model"])
