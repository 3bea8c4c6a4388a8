"""The tensors of a GGUF file, read and dequantised one by one under the names that transformers has for them.

Which tensor is which, and what llama.cpp changed in it, transformers knows: its mapping of names and its processors.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._weights.quantized import QuantizedWeights

from .checkpoint import check_files
from .gguf import METADATA, Progress, describe_gguf
from .gguf_header import GgufHeader, StoredTensor, read_header
from .model_path import find_model
from .source import open_model, read_config
from .valueless import build_on_meta

log = logging.getLogger("orbitsplit.models")

# Bytes of a file that are dequantised at a time.
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class _Part:
    """A tensor that is read when the loader of transformers asks for it, in the way of slices of safetensors."""

    tensors: GgufTensors
    name: str

    def __getitem__(self, _everything: Any) -> Tensor:
        return self.tensors.read(self.name)


class _Whole:
    """A model without its parts, for what asks for names."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config, self.state_dict = model.config, model.state_dict

    def named_children(self) -> tuple[()]:
        return ()


class GgufTensors(Mapping[str, _Part]):
    """The weights of a model in a GGUF file by name, in float32, of which none is read before `[...]` of a value.

    `metadata` is what transformers makes of the file's. Raises `ValueError` if transformers has another way to read
    files of this architecture, or the file has no tensor for a weight of the model.
    """

    def __init__(self, file: Path, config: PreTrainedConfig, metadata: Mapping[str, Any]) -> None:
        self._file = file
        header = read_header(file)
        model = build_on_meta(config)
        self._processor, self._names = _mapping(header.architecture, _Whole(model), metadata)
        self._stored = self._stored_tensors(header)
        if lacking := self._lacking(model):  # the names of parts of a model are a mapping for each: seconds
            self._processor, self._names = _mapping(header.architecture, model, metadata)
            self._stored = self._stored_tensors(header)
            lacking = self._lacking(model)
        if lacking:
            raise ValueError(f"{file} has no tensors for {len(lacking)} weights, the first is {lacking[0]}")

    def _stored_tensors(self, header: GgufHeader) -> dict[str, list[StoredTensor]]:
        stored: dict[str, list[StoredTensor]] = {}
        for tensor in header.tensors:
            # The mapping has tensors of experts without the suffix, because transformers joins several of them.
            name = self._names.get(tensor.name) or self._names.get(tensor.name.removesuffix(".weight"))
            if name is not None:
                stored.setdefault(name, []).append(tensor)
        return stored

    def _lacking(self, model: PreTrainedModel) -> list[str]:
        tied = set(model.all_tied_weights_keys or {})
        sizes = {name: sum(math.prod(one.shape) for one in stored) for name, stored in self._stored.items()}
        wanted = {name: parameter.numel() for name, parameter in model.named_parameters() if name not in tied}
        return [name for name, size in wanted.items() if sizes.get(name) != size]

    def __getitem__(self, name: str) -> _Part:
        if name not in self._stored:
            raise KeyError(name)
        return _Part(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str) -> Tensor:
        """Return the float32 values of a weight."""
        parsed: dict[str, Any] = {"tensors": {}}
        for stored in self._stored[name]:
            processed = self._process(stored.name, self._values(stored), parsed)
            if processed is not None:
                parsed["tensors"][name] = torch.from_numpy(np.require(processed, requirements=["C", "W"]))
        found: Tensor | None = parsed["tensors"].get(name)
        if found is None:
            raise ValueError(f"{self._file}: transformers makes no {name} of {self._stored[name][0].name}")
        return found

    def blocks(self, name: str, matrix: Tensor) -> QuantizedWeights | None:
        """Return the bytes that the file has for a weight in Q8_0, which are those of weights in int8.

        `matrix` [rows, columns] has the values of the weight. None where it is stored otherwise, or its rows are not
        those of the stored matrix, in any order.
        """
        stored = self._stored.get(name, [])
        if len(stored) != 1 or stored[0].type != GGMLQuantizationType.Q8_0:
            return None
        rows = np.concatenate(list(self._pieces(stored[0])))
        for found in (rows, self._moved(stored[0].name, rows)):
            if found is not None and found.shape == rows.shape:
                weights = QuantizedWeights("int8", (len(rows), stored[0].shape[-1]), np.ascontiguousarray(found))
                if _has_values(weights, matrix):
                    return weights
        return None

    def _moved(self, name: str, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        """Return rows of bytes in the order that transformers gives them, None if it does more than that."""
        try:
            moved: npt.NDArray[np.uint8] | None = self._process(name, rows, {"tensors": {}})
        except ValueError:  # of shapes
            return None
        return moved if moved is not None and moved.dtype == np.uint8 else None

    def _process(self, name: str, values: npt.NDArray[Any], parsed: dict[str, Any]) -> npt.NDArray[Any] | None:
        """Return what transformers makes of a tensor, None if it has put that into `parsed`."""
        options = {"tensor_key_mapping": self._names, "parsed_parameters": parsed}
        result = self._processor.process(weights=values, name=name, **options)
        processed: npt.NDArray[Any] = result.weights
        return processed if result.name in self._names else None

    def _values(self, stored: StoredTensor) -> npt.NDArray[np.float32]:
        values = np.empty((math.prod(stored.shape[:-1]), stored.shape[-1]), np.float32)
        start = 0
        for piece in self._pieces(stored):
            values[start : start + len(piece)] = dequantize(piece, GGMLQuantizationType(stored.type))
            start += len(piece)
        return values.reshape(stored.shape)

    def _pieces(self, stored: StoredTensor) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the bytes of some rows at a time, read and not mapped: mapped pages would stay resident."""
        rows = math.prod(stored.shape[:-1])
        kind = GGMLQuantizationType(stored.type)
        row_bytes = _row_bytes(stored.shape[-1], kind)
        at_once = max(1, _PIECE_BYTES // row_bytes)
        with self._file.open("rb") as opened:
            opened.seek(stored.offset)
            for start in range(0, rows, at_once):
                count = min(at_once, rows - start)
                piece = np.fromfile(opened, np.uint8, count * row_bytes)
                if piece.size < count * row_bytes:
                    raise ValueError(f"{self._file} is truncated: it ends within {stored.name}")
                yield piece.reshape(count, row_bytes)


def open_weights(
    model: str | Path, *, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> tuple[Path | str, GgufTensors | None]:
    """Return what `open_model` does, or the description of a GGUF file and the file's tensors.

    A GGUF file of which transformers does not say what tensors are which is converted to floats, by `open_model`.
    Raises as that.
    """
    found = find_model(model)
    if isinstance(found, Path) and found.is_file():
        check_files(found)
        try:
            folder = describe_gguf(found, cache_dir=cache_dir, progress=progress)
            metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            return folder, GgufTensors(found, read_config(folder), metadata)
        except ValueError as error:
            log.info("%s is read as a whole: %s", found, error)
    return open_model(model, cache_dir=cache_dir, progress=progress), None


def _mapping(
    architecture: str, model: PreTrainedModel | _Whole, metadata: Mapping[str, Any]
) -> tuple[Any, dict[str, str]]:
    """Return what undoes llama.cpp's changes of tensors, and transformers' names of these by those in the file."""
    try:
        from transformers import modeling_gguf_pytorch_utils as reading

        processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=dict(metadata))
        return processor, reading.get_gguf_hf_weights_map(model, processor)
    except (ImportError, NotImplementedError) as error:
        raise ValueError(f"transformers does not tell what the tensors of {architecture} are: {error}") from error


def _row_bytes(columns: int, kind: GGMLQuantizationType) -> int:
    plain = {GGMLQuantizationType.F32: 4, GGMLQuantizationType.F16: 2}
    if kind in plain:
        return columns * plain[kind]
    return int(quant_shape_to_byte_shape((1, columns), kind)[-1])


def _has_values(weights: QuantizedWeights, matrix: Tensor) -> bool:
    rows, columns = weights.shape
    if tuple(matrix.shape) != (rows, columns):
        return False
    at_once = max(1, _PIECE_BYTES // (4 * columns))
    values = matrix.numpy()
    pieces = (slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once))
    return all(np.array_equal(weights.dequantize(piece), values[piece]) for piece in pieces)
