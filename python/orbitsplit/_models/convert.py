"""Models converted to quantized weights, one layer at a time: the float weights of no more than one are in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from orbitsplit._io.files import atomic_folder
from orbitsplit._io.validation import check_string, quoted
from orbitsplit._weights.quantized import FORMATS, QuantizedWeights

from .architecture import Layout, find_layout
from .fingerprint import hash_layer
from .gguf import Progress
from .quantized import weights_of
from .quantizer import WeightsConfig
from .source import build_on_meta, open_model, read_config
from .stage import StageModel

_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")


def convert(
    model: str | Path,
    output: str | Path,
    *,
    weights: str = "int8",
    head: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model with quantized weights as a directory that `profile`, `Pipeline` and transformers load.

    `weights` is the format of all linear layers and embeddings, "int8" (8.5 bits a weight) or "int4" (4.5 bits); `head`
    another one for the embeddings and what runs after the last layer. Norms, biases and weights with a number of
    columns that is no multiple of 32 stay as they are. A GGUF file is first converted to floats, into `cache_dir`.
    `progress(step, fraction)` is called for each layer. The directory appears when it is complete.

    Raises:
        ValueError: The format is unknown, the model is quantized already or cannot be split, or a tied head would need
            two formats.
        FileExistsError: The output is there already.
    """
    head = weights if head is None else head
    _check_format("weights", weights)
    _check_format("head", head)
    formats = {"layers": weights, "ends": head}
    target = Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    source = open_model(model, cache_dir=cache_dir, progress=progress)
    config = read_config(source)
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{model} has quantized weights already")
    layout = find_layout(config)
    chosen = _chosen(build_on_meta(config), layout, formats)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        layer_hashes = _write_weights(source, layout, chosen, folder, progress)
        _copy_others(source, folder)
        by_format = {name: [m for m, used in chosen.items() if used == name] for name in sorted(set(chosen.values()))}
        quantization = WeightsConfig(by_format, layout.layers_name, layer_hashes, str(model))
        vars(config)["quantization_config"] = quantization.to_dict()
        config.save_pretrained(folder)
    return target


def _check_format(key: str, value: str) -> None:
    check_string(key, value)
    if value not in FORMATS:
        raise ValueError(f"{key} is {quoted(value)}, must be one of {', '.join(FORMATS)}")


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


def _write_weights(
    source: str | Path, layout: Layout, formats: Mapping[str, str], folder: Path, progress: Progress | None
) -> list[str]:
    """Write a file for each layer, and their index; return the digests of the transformer layers."""
    layers = layout.layer_count + 2
    index: dict[str, str] = {}
    hashes = []
    total_bytes = 0
    for number in range(layers):
        if progress is not None:
            progress(f"quantizing layer {number + 1} of {layers}", number / layers)
        stage = StageModel.load(source, number, number + 1)
        if 0 < number < layers - 1:
            hashes.append(hash_layer(stage.transformer_layers[number - 1]))
        tensors = dict(_converted(stage, formats))
        file = f"model-{number + 1:05}-of-{layers:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    document = {"metadata": {"total_size": total_bytes}, "weight_map": index}
    (folder / _INDEX).write_text(json.dumps(document, indent=1), encoding="utf-8")
    if progress is not None:
        progress("converted", 1.0)
    return hashes


def _converted(stage: StageModel, formats: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a stage by name, those of modules in `formats` quantized."""
    tied = set(stage.model.all_tied_weights_keys or {})  # of the last stage: the first one has their source
    for name, tensor in stage.model.state_dict().items():
        if name in tied:
            continue
        module, _, part = name.rpartition(".")
        if part != "weight" or module not in formats:
            yield name, tensor.contiguous()
            continue
        matrix = tensor.t() if isinstance(stage.model.get_submodule(module), Conv1D) else tensor
        values = matrix.float().contiguous().numpy()
        data = torch.tensor(QuantizedWeights.quantize(values, formats[module]).data)  # type: ignore[arg-type]
        yield name, data.reshape(len(values), -1)


def _copy_others(source: str | Path, folder: Path) -> None:
    """Copy what is neither weights nor the configuration: tokenizer, generation config, licence."""
    origin = Path(cached_file(str(source), "config.json")).parent
    for file in sorted(origin.iterdir()):
        if file.is_file() and file.name != "config.json" and not file.name.endswith(_WEIGHT_FILES):
            shutil.copy(file, folder / file.name)
