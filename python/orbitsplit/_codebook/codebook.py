"""Codebooks: what calibration found for one model, in one .safetensors file. Needs NumPy; files need safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import Codec
from orbitsplit._io.dtypes import ITEM_BYTES
from orbitsplit._io.tensor_file import Arrays, read_tensors, write_tensors
from orbitsplit._io.validation import (
    check_count,
    check_fields,
    check_finite,
    check_is_integer,
    check_kind,
    list_of,
    listed,
    mapping_of,
    quoted,
    record_of,
    tuple_of,
)
from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem_parts import Level

from .accuracy import AccuracyCurve
from .halves import MATRICES
from .inverses import INVERSE_FOLLOWS, check_follows, numbers_of
from .weight_losses import WeightLosses, check_layers, read_weight_losses

FORMAT = "orbitsplit-codebook"
# Version 2 has matrices in float16 too, version 3 codecs whose inverse follows from their matrix. A file is of the
# oldest version that has what it needs, which earlier readers know.
VERSION, OLDEST_VERSION = 3, 1

# What a codec of a codebook is made of.
_NUMBERS = {entry.name for entry in fields(CalibratedCodec) if entry.init} - {"codebook", "cut", "level"}


# A process has about three copies in float32 of the matrices of a codec that encodes and decodes: a test measures it.
_MATRIX_COPIES, _MATRIX_ITEM_BYTES = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookLevel:
    """One rate-distortion point at one cut, measured on data that nothing was fitted to.

    `name` is the same at all cuts for what was asked alike. `loss` is in nats per token or sample (encoders: cosine
    distance), `loss_error` its standard error. Seconds are per byte of the activation in float32, one thread.
    """

    name: str
    bits_per_element: float
    loss: float
    loss_error: float
    encode_s_per_byte: float
    decode_s_per_byte: float

    def __post_init__(self) -> None:
        check_fields(f"level {self.name}", self, strings=("name",))
        for name in ("bits_per_element", "loss", "loss_error", "encode_s_per_byte", "decode_s_per_byte"):
            check_finite(f"{name} of level {quoted(self.name)}", getattr(self, name), least=0)

    def ratio(self, dtype: str = "float32") -> float:
        """Return how many times smaller than in `dtype` the activation becomes."""
        return 8 * ITEM_BYTES[dtype] / self.bits_per_element


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookEntry:
    """A level and the codec behind it: a fixed one by name, or a calibrated one: its scalars and where its arrays are.

    `arrays` maps the array arguments of `CalibratedCodec` to names of tensors, which levels may share. With the scalar
    `inverse_follows`, true, the inverse is computed from the matrix.
    """

    level: CodebookLevel
    codec: str | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedModel:
    """The model that a codebook belongs to.

    `layer_hashes` has one digest of the weights for each transformer layer (see `hash_layer`), so that a process that
    holds a few layers can compare those.
    """

    name: str
    architecture: str
    layers: int
    width: int
    layer_hashes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("layers", "width"):
            check_count(f"{name} of the calibrated model", getattr(self, name), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data."""
        return asdict(self)

    def check_shape(self, what: str, layers: int, width: int) -> None:
        """Raise ValueError, naming both, if a model has other layers or another width."""
        if (layers, width) != (self.layers, self.width):
            raise ValueError(
                f"the codebook was calibrated for {self.name}, {self.layers} layers of width {self.width}; "
                f"{what} has {layers} layers of width {width}"
            )

    def check_layers(self, what: str, hashes: Mapping[int, str]) -> None:
        """Raise ValueError if a layer (by index) has other weights than the calibrated model's."""
        for index, found in hashes.items():
            if index >= len(self.layer_hashes):
                raise ValueError(f"the codebook was calibrated for {self.name}, which has no layer {index}; {what} has")
            if found != self.layer_hashes[index]:
                raise ValueError(
                    f"the codebook was calibrated for {self.name}; layer {index} of {what} has other weights "
                    f"({found[:12]} instead of {self.layer_hashes[index][:12]})"
                )


class Codebook:
    """Calibrated codecs of one model: for each cut some levels, best quality first.

    `book[cut, level]` is a codec for `compress` (a `CalibratedCodec`, or the name of a fixed one); `decompress(frame,
    book)` finds the codec that a frame names. `codebook_id` is derived from all numbers that decoding depends on: books
    that differ have different ids. `weights` has what layers lose at each precision of weights that was measured. Made
    by `calibrate`.

    Example:
        >>> book = osp.Codebook.load("book.safetensors")                        # doctest: +SKIP
        >>> frame = osp.compress(x, codec=book[5, 2])                           # doctest: +SKIP
    """

    def __init__(
        self,
        model: CalibratedModel,
        entries: Mapping[int, Sequence[CodebookEntry]],
        tensors: Arrays,
        *,
        accuracy: AccuracyCurve,
        provenance: Mapping[str, Any],
        weights: Mapping[str, WeightLosses] | None = None,
    ) -> None:
        check_kind("model", model, CalibratedModel)
        for cut, found in mapping_of("entries", entries).items():
            check_is_integer("a cut of the entries", cut)
            for k, entry in enumerate(tuple_of(f"entries[{cut}]", found, CodebookEntry)):
                check_follows(f"level {k} of cut {cut}", entry.scalars, entry.arrays)
        for name in _tensor_names(entries):
            if name not in mapping_of("tensors", tensors):
                raise ValueError(f"tensors has no array {quoted(name)}, which a level needs")
        check_kind("accuracy", accuracy, AccuracyCurve)
        self.weights = {} if weights is None else dict(mapping_of("weights", weights))
        for name, losses in self.weights.items():
            check_kind(f"weights[{quoted(name)}]", losses, WeightLosses)
        check_layers(self.weights, model.layers)
        self.model = model
        self.accuracy = accuracy
        self.provenance = provenance
        self._entries = {cut: tuple(entries[cut]) for cut in sorted(entries)}
        self._tensors = tensors
        self._codecs: dict[tuple[int, int], CalibratedCodec] = {}
        self.codebook_id = _identify(model, self._entries, tensors)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The calibrated cuts: cut c lies after c transformer layers."""
        return tuple(self._entries)

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of each row of the texts that it was fitted to; None if it was not fitted to texts."""
        shape = self.provenance.get("sample_shape")
        return shape[0] if isinstance(shape, list) and len(shape) == 1 else None

    def levels(self, cut: int) -> tuple[CodebookLevel, ...]:
        """Return the levels at a cut, best quality first. Raises LookupError for a cut that was not calibrated."""
        return tuple(entry.level for entry in self._at(cut))

    def level_at(self, cut: int, level: int) -> CodebookLevel:
        """Return a level by its number at a cut. Raises LookupError if there is none."""
        return self._entry(cut, level).level

    def level_of(self, cut: int, name: str) -> int:
        """Return the index of the level of this name at a cut. Raises LookupError if the cut does not have it."""
        names = [level.name for level in self.levels(cut)]
        if name not in names:
            raise LookupError(f"cut {cut} of the codebook has no level {quoted(name)}, it has {listed(names)}")
        return names.index(name)

    def __getitem__(self, key: tuple[int, int]) -> CalibratedCodec | str:
        cut, level = key
        entry = self._entry(cut, level)
        return entry.codec if entry.codec is not None else self.codec_of(cut, level)

    def codec_of(self, cut: int, level: int) -> CalibratedCodec:
        """Return the calibrated codec of a level. Raises LookupError where there is none."""
        if (cut, level) not in self._codecs:
            entry = self._entry(cut, level)
            if entry.codec is not None:
                raise LookupError(f"level {level} at cut {cut} is {entry.codec}, which is not calibrated")
            numbers = numbers_of(entry.scalars, entry.arrays, self._tensors)
            self._codecs[cut, level] = CalibratedCodec(codebook=self.codebook_id, cut=cut, level=level, **numbers)
        return self._codecs[cut, level]

    def codec_bytes(self, cut: int, level: int) -> int:
        """Return the memory that the codec of a level takes in a process, in bytes; 0 for a fixed codec."""
        entry = self._entry(cut, level)
        arrays = [entry.arrays[name] for name in MATRICES if name in entry.arrays]
        if INVERSE_FOLLOWS in entry.scalars:
            arrays.append(entry.arrays["matrix"])  # of the same size
        numbers = sum(self._tensors[name].size for name in arrays)
        return _MATRIX_COPIES * _MATRIX_ITEM_BYTES * numbers

    def table(self, dtype: str = "float32") -> LevelTable:
        """Return what the planner needs: levels with one ratio at all cuts, the least of them, and the loss at each.

        The first level is `raw`, which loses nothing and is all that cuts have that were not calibrated.
        """
        names = list(dict.fromkeys(level.name for cut in self.cuts for level in self.levels(cut)))
        of_name = {name: [lv for cut in self.cuts for lv in self.levels(cut) if lv.name == name] for name in names}
        names.sort(key=lambda name: -max(level.bits_per_element for level in of_name[name]))
        byte = 4 / ITEM_BYTES[dtype]  # an element costs the same time whatever its dtype
        levels = [Level(name="raw", ratio=1.0, encode_s_per_byte=0.0, decode_s_per_byte=0.0)]
        for name in names:
            ratio = min(level.ratio(dtype) for level in of_name[name])
            encode = max(level.encode_s_per_byte for level in of_name[name])
            decode = max(level.decode_s_per_byte for level in of_name[name])
            levels.append(
                Level(
                    name=name,
                    ratio=max(1.0, ratio),
                    encode_s_per_byte=byte * encode,
                    decode_s_per_byte=byte * decode,
                )
            )
        return LevelTable(
            levels=tuple(levels),
            loss=tuple(self._losses(cut, names) for cut in range(self.model.layers + 1)),
            provenance={"codebook": self.hex_id, **self.provenance},
            codec_bytes=max(self.codec_bytes(cut, k) for cut in self.cuts for k in range(len(self.levels(cut)))),
        )

    def _losses(self, cut: int, names: Sequence[str]) -> tuple[float, ...]:
        here = {level.name: level.loss for level in self.levels(cut)} if cut in self._entries else {}
        return (0.0, *(here.get(name, math.inf) for name in names))

    @property
    def hex_id(self) -> str:
        """The id as in plans and messages."""
        return f"{self.codebook_id:016x}"

    def to_dict(self) -> dict[str, Any]:
        """Return all but the arrays as JSON-ready data."""
        weights = {name: asdict(losses) for name, losses in self.weights.items()}
        return {
            "format": FORMAT,
            "version": self._version(),
            "id": self.hex_id,
            "model": self.model.to_dict(),
            "entries": {str(cut): [asdict(entry) for entry in entries] for cut, entries in self._entries.items()},
            "accuracy": asdict(self.accuracy),
            "provenance": dict(self.provenance),
            **({"weights": weights} if weights else {}),
        }

    def _version(self) -> int:
        if any(INVERSE_FOLLOWS in entry.scalars for levels in self._entries.values() for entry in levels):
            return VERSION
        names = _tensor_names(self._entries)
        return 2 if any(self._tensors[name].dtype == np.float16 for name in names) else OLDEST_VERSION

    def save(self, path: str | Path) -> None:
        """Write the book as one .safetensors file, complete or not at all. Raises ImportError without safetensors."""
        write_tensors(path, {name: self._tensors[name] for name in _tensor_names(self._entries)}, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read a book that `save` wrote.

        Raises:
            ValueError: The file is not a codebook, of another version, or damaged; the message says which.
        """
        document, tensors = read_tensors(path, FORMAT, VERSION, oldest=OLDEST_VERSION, is_checked=True)
        try:
            model = read_model(document["model"])
            book = cls(
                model,
                {int(cut): read_entries(cut, rows) for cut, rows in mapping_of("entries", document["entries"]).items()},
                tensors,
                accuracy=record_of("accuracy", document["accuracy"], AccuracyCurve),
                provenance=mapping_of("provenance", document["provenance"]),
                weights=read_weight_losses(document.get("weights", {}), model.layers),
            )
        except KeyError as error:
            raise ValueError(f"{path} is not a valid codebook: there is no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a valid codebook: {error}") from error
        if book.hex_id != document.get("id"):
            raise ValueError(
                f"{path} is damaged: its numbers have the id {book.hex_id}, it was written as {document.get('id')}"
            )
        return book

    def _at(self, cut: int) -> tuple[CodebookEntry, ...]:
        if cut not in self._entries:
            raise LookupError(f"cut {cut} was not calibrated, the codebook has cuts {listed(self.cuts)}")
        return self._entries[cut]

    def _entry(self, cut: int, level: int) -> CodebookEntry:
        entries = self._at(cut)
        if not 0 <= level < len(entries):
            raise LookupError(f"cut {cut} of the codebook has levels 0 to {len(entries) - 1}, not {level}")
        return entries[level]

    def __repr__(self) -> str:
        return f"<Codebook {self.hex_id} of {self.model.name}: cuts {', '.join(map(str, self.cuts))}>"


def _tensor_names(entries: Mapping[int, Sequence[CodebookEntry]]) -> list[str]:
    """Return the names of the tensors that levels use, sorted."""
    return sorted({name for levels in entries.values() for entry in levels for name in entry.arrays.values()})


def _identify(model: CalibratedModel, entries: Mapping[int, Sequence[CodebookEntry]], tensors: Arrays) -> int:
    """Return 64 bits of a SHA-256 over all that encoding and decoding depend on: not the measured figures."""
    import hashlib  # a fiftieth of a second that `import orbitsplit` does not have to take

    digest = hashlib.sha256(json.dumps(asdict(model), sort_keys=True).encode())
    for cut, levels in entries.items():
        for entry in levels:
            parts = [cut, entry.codec, dict(sorted(entry.scalars.items())), dict(sorted(entry.arrays.items()))]
            digest.update(json.dumps(parts).encode())
    for name in _tensor_names(entries):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest()[:8], "little") or 1  # 0 stands for no codebook in a frame


def read_model(data: Any) -> CalibratedModel:
    """Return the model that `CalibratedModel.to_dict` described. Raises ValueError naming what is wrong."""
    values = dict(mapping_of("model", data))
    values["layer_hashes"] = tuple(list_of("layer_hashes", values.get("layer_hashes")))
    model: CalibratedModel = record_of("model", values, CalibratedModel)
    return model


def read_entries(cut: str, rows: Any) -> tuple[CodebookEntry, ...]:
    """Return the entries of a cut from JSON data. Raises ValueError naming what is wrong."""
    entries = []
    for k, row in enumerate(list_of(f"entries of cut {cut}", rows)):
        values = dict(mapping_of(f"entry {k} of cut {cut}", row))
        values["level"] = record_of(f"level {k} of cut {cut}", values.get("level"), CodebookLevel)
        entry: CodebookEntry = record_of(f"entry {k} of cut {cut}", values, CodebookEntry)
        for name, known in (("scalars", _NUMBERS | {INVERSE_FOLLOWS}), ("arrays", _NUMBERS)):
            given = mapping_of(f"{name} of entry {k} of cut {cut}", getattr(entry, name))
            if unknown := set(given) - known:
                raise ValueError(f"{name} of entry {k} of cut {cut} has {min(unknown)}, which no codec has")
        if entry.codec is not None:
            Codec.parse(entry.codec)
        entries.append(entry)
    return tuple(entries)
