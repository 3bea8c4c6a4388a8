"""Models converted to quantized weights, one layer at a time: the float weights of no more than one are in memory."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file

from orbitsplit._io.files import atomic_folder
from orbitsplit._io.validation import LARGEST_INTEGER, check_is_integer, check_range, check_string, mapping_of, quoted
from orbitsplit._weights.int4 import LARGEST_CODE
from orbitsplit._weights.quantized import QuantizedWeights, check_format

from .architecture import Layout
from .compensator import Compensator, matrix_of
from .experts import ExpertsWeight, check_experts
from .fingerprint import hash_layer
from .gguf import METADATA, Progress
from .gguf_tensors import GgufTensors, open_weights
from .layouts import find_layout
from .quantized import weights_of
from .quantizer import WeightsConfig
from .source import load_tokenizer, read_config, refuse_encoder
from .stage import StageModel
from .token_rows import check_ids, read_texts, token_rows
from .valueless import build_on_meta

log = logging.getLogger("orbitsplit.models")

_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json", METADATA)


# Rows that rounding errors are compensated for, and their tokens.
_ROWS, _TOKENS = 32, 512
# Of a table in int4, one row of so many is in int8: that adds less than 2 % to it, and a few tokens are most of a text.
_ROWS_OF_A_FINER_ONE = 64


def convert(
    model: str | Path,
    output: str | Path,
    *,
    weights: str = "int8",
    head: str | None = None,
    modules: Mapping[str, str] | None = None,
    calibration: Iterable[str | Path] | Tensor | None = None,
    int8_rows: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model with quantized weights as a directory that `profile`, `Pipeline` and transformers load.

    `weights` is the format of all linear layers, experts and embeddings, "int8" (8.5 bits a weight), "int5" (5.5) or
    "int4" (4.5); `head` another one for the embeddings and what runs after the last layer; `modules` others for modules
    by patterns of their names, of which the last that fits holds: `{"*.v_proj": "int8"}`. Weights of experts have names
    as "model.layers.0.mlp.experts.down_proj". Norms, biases and weights with a number of columns that is no multiple of
    32 stay as they are. Of a GGUF file tensors are read one by one, and those in Q8_0 become int8 byte for byte; its
    configuration and tokenizer are kept in `cache_dir`.

    With `calibration`, texts or text files (Path) of which 32 rows of 512 tokens are used, or token ids [N, S], errors
    of weights in int4 and int5 compensate each other for what the model computes on them: 2 or 3 forwards of these
    rows, whose hidden states are in memory. Of a table of tokens in int4, the rows of the tokens that all of
    `calibration` has most often are in int8: `int8_rows` of them at most, a 64th of the vocabulary by default.

    `progress(step, fraction)` is called for each layer. The directory appears when it is complete.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A format is unknown, a pattern fits no module, the model is quantized already or cannot be split,
            its experts are of a class that is not known, a tied head would need two formats, the model or the formats
            do nothing with the calibration texts, or `int8_rows` are given without texts or a table in int4.
        FileExistsError: The output is there already.
    """
    formats = {"layers": weights, "ends": weights if head is None else head}
    check_format("weights", weights)
    check_format("head", formats["ends"])
    patterns = {} if modules is None else dict(mapping_of("modules", modules))
    for pattern, value in patterns.items():
        check_string("a pattern of modules", pattern)
        check_format(f"the format of modules {quoted(pattern)}", value)
    if int8_rows is not None:
        check_is_integer("int8_rows", int8_rows)
        check_range("int8_rows", int8_rows, 0, LARGEST_INTEGER)
    if int8_rows and calibration is None:
        raise ValueError(f"int8_rows is {int8_rows}, and calibration, which tells the rows, is not given")
    target = Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    source, tensors = open_weights(model, cache_dir=cache_dir, progress=progress)
    config = read_config(source)
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{model} has quantized weights already")
    refuse_encoder(config, "weights are quantized of models with one of them alone")
    conversion = _Conversion(source, config, formats, patterns, progress or (lambda _step, _fraction: None))
    conversion.tensors = tensors
    if calibration is not None:
        conversion.compensate(calibration, int8_rows)
    if not Path(source).is_dir():
        _fetch_tokenizer(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        layer_hashes = conversion.write_weights(folder)
        _copy_others(source, folder)
        quantization = WeightsConfig(
            conversion.by_format, conversion.layout.layers_name, layer_hashes, str(model), conversion.int8_rows
        )
        vars(config)["quantization_config"] = quantization.to_dict()
        config.save_pretrained(folder)
    return target


class _Conversion:
    """The work of one call of `convert`."""

    def __init__(
        self,
        source: str | Path,
        config: PreTrainedConfig,
        formats: Mapping[str, str],
        patterns: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self._source, self._config, self._progress = source, config, progress
        self.layout = find_layout(config)
        self._layers = self.layout.layer_count + 2
        model = build_on_meta(config)
        check_experts(model)
        tied = {key.removesuffix(".weight"): name for name, key in (model.all_tied_weights_keys or {}).items()}
        self._tied = {table: name.removesuffix(".weight") for table, name in tied.items()}
        self._formats = _chosen(model, self.layout, formats)
        _apply(patterns, self._formats, self._tied)
        self._compensator: Compensator | None = None
        self._table = _table_of_tokens(model)
        self.int8_rows: dict[str, int] = {}
        self.tensors: GgufTensors | None = None  # in the place of the source's files

    @property
    def by_format(self) -> dict[str, list[str]]:
        """The names of the modules of each format."""
        used = sorted(set(self._formats.values()))
        return {name: [module for module, given in self._formats.items() if given == name] for name in used}

    def compensate(self, calibration: Any, int8_rows: int | None) -> None:
        """Let errors compensate each other on texts or token ids, whose most frequent tokens get rows in int8."""
        if LARGEST_CODE.keys().isdisjoint(self._formats.values()):
            raise ValueError("calibration is used for weights in int4 or int5, and there are none")
        if self.layout.image_tokens is not None:
            raise ValueError("calibration is of texts, and the model takes images")
        ids = _calibration_ids(calibration, self._source, self._config)
        refined: dict[str, Tensor] = {}
        if int8_rows and self._formats.get(self._table) != "int4":
            raise ValueError(f"int8_rows is {int8_rows}, and the table of tokens is not in int4")
        if self._formats.get(self._table) == "int4":
            rows = _most_frequent(ids, self._config, int8_rows)
            if len(rows):
                refined[self._table] = rows
                self.int8_rows = dict.fromkeys([self._table, self._tied.get(self._table, self._table)], len(rows))
        if not isinstance(calibration, Tensor):
            ids = ids[torch.linspace(0, len(ids) - 1, min(len(ids), _ROWS)).long()]
        self._compensator = Compensator(
            self._load_once_more,
            self._layers,
            ids,
            formats=self._formats,
            tied=self._tied,
            refined=refined,
            progress=self._progress,
        )

    def write_weights(self, folder: Path) -> list[str]:
        """Write a file for each layer, and their index; return the digests of the transformer layers."""
        index: dict[str, str] = {}
        hashes = []
        total_bytes = 0
        for number in range(self._layers):
            self._progress(f"quantizing layer {number + 1} of {self._layers}", number / self._layers)
            file = f"model-{number + 1:05}-of-{self._layers:05}.safetensors"
            sizes, digests = self._write_layer(number, folder / file)
            hashes += digests
            index |= dict.fromkeys(sizes, file)
            total_bytes += sum(sizes.values())
        document = {"metadata": {"total_size": total_bytes}, "weight_map": index}
        (folder / _INDEX).write_text(json.dumps(document, indent=1), encoding="utf-8")
        self._progress("converted", 1.0)
        return hashes

    def _write_layer(self, number: int, file: Path) -> tuple[dict[str, int], list[str]]:
        """Write a file; return the bytes of its tensors by name, and the digests of its transformer layers."""
        stage = self._load(number)
        digests = [hash_layer(layer) for layer in stage.transformer_layers[stage.first_layer : stage.last_layer]]
        tensors = dict(self._converted(stage))
        save_file(tensors, file, metadata={"format": "pt"})
        stage.model.to("meta")  # frees its weights: it refers to itself, and would wait for the garbage collector
        return {name: tensor.nbytes for name, tensor in tensors.items()}, digests

    def _load(self, number: int) -> StageModel:
        return StageModel.load(self._source, number, number + 1, tensors=self.tensors)

    def _load_once_more(self, number: int) -> StageModel:
        gc.collect()  # stages refer to themselves: without it, those of earlier layers stay in memory
        return self._load(number)

    def _converted(self, stage: StageModel) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a stage by name, those of modules in `formats` quantized."""
        tied = {f"{name}.weight" for name in self._tied.values()}  # of the last stage: the first one has their source
        compensated = {} if self._compensator is None else self._compensator.quantize(stage)
        experts = {name: weight for name, weight, _ in weights_of(stage.model) if isinstance(weight, ExpertsWeight)}
        for name, tensor in stage.model.state_dict().items():
            if name in tied:
                continue
            known = name if name in experts else name.removesuffix(".weight")
            if known not in self._formats:
                yield name, tensor.contiguous()
                continue
            module = experts.get(name) or stage.model.get_submodule(known)
            values = matrix_of(module)
            matrix = self._blocks(name, known, values) or compensated.get(known)
            if matrix is None:
                matrix = QuantizedWeights.quantize(values.numpy(), self._formats[known])  # type: ignore[arg-type]
            data = torch.tensor(matrix.data)
            if isinstance(matrix, QuantizedWeights):
                leading = module.stacked if isinstance(module, ExpertsWeight) else matrix.shape[:1]
                data = data.reshape(*leading, -1)
            yield name, data

    def _blocks(self, name: str, known: str, values: Tensor) -> QuantizedWeights | None:
        """Return the blocks of a GGUF file that are a weight in int8, None if there are none."""
        if self.tensors is None or self._formats[known] != "int8":
            return None
        return self.tensors.blocks(name, values)


def _calibration_ids(calibration: Any, source: str | Path, config: PreTrainedConfig) -> Tensor:
    """Return all token ids [N, S] of texts, or those that are given."""
    if not isinstance(calibration, Tensor):
        positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        tokens = min(_TOKENS, positions) if isinstance(positions, int) else _TOKENS
        return token_rows(load_tokenizer(source), read_texts("calibration", calibration), tokens)
    check_ids(calibration, config, least=1)
    return calibration


def _most_frequent(ids: Tensor, config: PreTrainedConfig, most: int | None) -> Tensor:
    """Return the tokens that occur most often in ids, in ascending order: by default a 64th of the vocabulary."""
    counts = torch.bincount(ids.flatten(), minlength=config.get_text_config(decoder=True).vocab_size)
    wanted = len(counts) // _ROWS_OF_A_FINER_ONE if most is None else most
    chosen = counts.argsort(descending=True, stable=True)[: min(wanted, int(counts.count_nonzero()))]
    return chosen.sort().values


def _table_of_tokens(model: PreTrainedModel) -> str:
    """Return the name of the module that embeds tokens; "" of a model of images."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return ""
    return next((name for name, module in model.named_modules() if module is table), "")


def _chosen(model: torch.nn.Module, layout: Layout, formats: Mapping[str, str]) -> dict[str, str]:
    """Return the format of each module that is quantized, by name."""
    ends = tuple(f"{name}." for name in layout.before | layout.after)
    inside = f"{layout.layers_name}."
    names = [name for name, _, _ in weights_of(model)]
    return {
        name: formats["layers" if name.startswith(inside) else "ends"]
        for name in names
        if name.startswith(inside) or f"{name}.".startswith(ends)
    }


def _apply(patterns: Mapping[str, str], formats: dict[str, str], tied: Mapping[str, str]) -> None:
    """Change the formats of the modules that patterns fit."""
    for pattern, value in patterns.items():
        fitting = [name for name in formats if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"no module that is quantized fits {quoted(pattern)}, as {next(iter(formats))} would")
        formats.update(dict.fromkeys(fitting, value))
    for table, name in tied.items():
        if formats.get(table) != formats.get(name):
            given = [formats.get(one, "floats") for one in (table, name)]
            raise ValueError(f"{table} and {name} are one table, and cannot be {given[0]} and {given[1]}")


def _copy_others(source: str | Path, folder: Path) -> None:
    """Copy what is neither weights nor the configuration: tokenizer, generation config, licence."""
    origin = Path(cached_file(str(source), "config.json")).parent
    for file in sorted(origin.iterdir()):
        if file.is_file() and file.name != "config.json" and not file.name.endswith(_WEIGHT_FILES):
            shutil.copy(file, folder / file.name)


def _fetch_tokenizer(model: str | Path) -> None:
    """Have the tokenizer of a hub id on this machine, which so far may have the weights alone."""
    try:
        load_tokenizer(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        log.warning("%s has no tokenizer that can be loaded, the converted model has none: %s", model, reason)
