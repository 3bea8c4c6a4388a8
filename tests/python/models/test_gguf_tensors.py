"""GGUF files quantised tensor by tensor: the float model that transformers makes of the whole file is the judge."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

import orbitsplit as osp
from orbitsplit._models import gguf, gguf_tensors
from orbitsplit._models.fingerprint import hash_layer, hash_layers
from orbitsplit._models.gguf_tensors import GgufTensors
from orbitsplit._models.quantized import quantized_matrices
from orbitsplit._models.source import read_config
from orbitsplit._models.stage import StageModel
from orbitsplit._models.valueless import build_on_meta
from tests.support.gguf_files import Values, uneven_blocks, write_gguf
from tests.support.tiny_models import LAYERS, tiny_model

FAMILIES = {"llama": False, "gemma3_text": True, "qwen2": False}  # with a head of their own, or a tied one


def of_all_kinds(name: str, values: Values) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
    """Store some matrices in 8 bits, some in 4 or 16, and what is left as floats."""
    if name.endswith(("q_proj.weight", "k_proj.weight", "down_proj.weight")):
        return uneven_blocks(values), GGMLQuantizationType.Q8_0
    if name.endswith("up_proj.weight"):
        return quants.quantize(values, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0
    if name.endswith("embed_tokens.weight"):
        return values.astype(np.float16), GGMLQuantizationType.F16
    return values, GGMLQuantizationType.F32


def build_here(source: Path, target: Path, _report: object, parts: tuple[str, ...]) -> None:
    """Do in this process what takes others seconds to import; nobody reads the tokenizer."""
    target.mkdir()
    for part in set(parts) - {"tokenizer"}:
        gguf._PARTS[part](source, target, io.StringIO())


# Prints by how many bytes the memory of a process grows while it converts a file in the folder that it is given.
CONVERSION = """
import gc, sys
from pathlib import Path
import orbitsplit as osp
from orbitsplit.runtime._memory import peak_bytes, resident_bytes
folder = Path(sys.argv[1])
for name in ("first", "second"):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident_bytes()
    osp.convert(folder / "model.gguf", folder / name, cache_dir=folder / "cache")
print(peak_bytes() - before)
"""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "_build", build_here)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a GGUF file, model.gguf, and what it is in int8."""
    path: Path = tmp_path_factory.mktemp(request.param)
    model = tiny_model(request.param, tie_word_embeddings=FAMILIES[request.param])
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    write_gguf(path / "model.gguf", model.config, tensors, of_all_kinds)
    osp.convert(path / "model.gguf", path / "int8", cache_dir=path / "cache")
    return path


@pytest.fixture(scope="module")
def judge(folder: Path) -> PreTrainedModel:
    options = GgufConfig(dequantize=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32, quantization_config=options
    )
    return model


@pytest.fixture(scope="module")
def stage(folder: Path) -> StageModel:
    return StageModel.load(folder / "int8", 0, LAYERS + 2)


def described(folder: Path) -> PreTrainedConfig:
    return read_config(next((folder / "cache").glob("described-*[0-9a-f]")))


def test_weights_are_those_of_the_float_model_in_eight_bits(stage: StageModel, judge: PreTrainedModel) -> None:
    own = dict(stage.model.named_parameters())
    converted = {f"{name}.weight": weights.dequantize() for name, weights in quantized_matrices(stage.model)}
    assert len(converted) == 7 * LAYERS + 2
    for name, parameter in judge.named_parameters():
        values = parameter.detach().numpy()
        if name not in converted:
            assert np.array_equal(own[name].detach().numpy(), values), name
        elif name.endswith(("q_proj.weight", "k_proj.weight", "down_proj.weight")):
            assert np.array_equal(converted[name], values), name  # stored in 8 bits: not rounded once more
        else:
            blocks = quants.quantize(values, GGMLQuantizationType.Q8_0)
            assert np.array_equal(converted[name], quants.dequantize(blocks, GGMLQuantizationType.Q8_0)), name


def test_layers_are_known_as_those_of_the_float_model(stage: StageModel, judge: PreTrainedModel) -> None:
    layers = dict(enumerate(stage.transformer_layers))
    assert hash_layers(layers) == {index: hash_layer(layer) for index, layer in enumerate(judge.model.layers)}


def test_the_configuration_is_that_of_the_float_model(folder: Path, judge: PreTrainedModel) -> None:
    config = read_config(folder / "int8").to_dict()
    expected = {"architectures": [type(judge).__name__], **judge.config.to_dict()}
    other = ("quantization_config", "_name_or_path", "architectures", "dtype")
    assert config["architectures"] == [type(judge).__name__]
    assert {key: value for key, value in config.items() if key not in other} == {
        key: value for key, value in expected.items() if key not in other
    }


def test_nothing_of_the_float_model_is_written(folder: Path) -> None:
    assert not any(path.suffix == ".safetensors" for path in (folder / "cache").rglob("*"))
    assert not (folder / "int8" / gguf.METADATA).exists()


def test_a_truncated_tensor_is_said_so(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes((folder / "model.gguf").read_bytes()[:-40])
    config = described(folder)
    tensors = GgufTensors(damaged, config, config.to_dict())
    with pytest.raises(ValueError, match=r"model\.gguf is truncated: it ends within "):
        [tensors.read(name) for name in tensors]


def test_a_file_without_some_tensors_is_read_as_a_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = described(folder)
    shapes = {name: parameter.shape for name, parameter in build_on_meta(config).named_parameters()}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "layers.2.mlp" not in name}
    write_gguf(tmp_path / "model.gguf", config, tensors)
    with pytest.raises(ValueError, match=r"no tensors for 3 weights, the first is model\.layers\.2\.mlp\.gate_proj\."):
        GgufTensors(tmp_path / "model.gguf", config, config.to_dict())
    monkeypatch.setattr(gguf_tensors, "open_model", lambda *_, **__: "floats")
    assert gguf_tensors.open_weights(tmp_path / "model.gguf", cache_dir=tmp_path / "cache") == ("floats", None)


def test_memory_is_that_of_a_layer_and_not_of_the_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 4, "num_hidden_layers": 12}
    config = LlamaConfig(vocab_size=97, max_position_embeddings=512, tie_word_embeddings=True, **sizes)
    shapes = {name: parameter.shape for name, parameter in build_on_meta(config).named_parameters()}
    blocks = uneven_blocks(np.random.default_rng(0).standard_normal((512, 2048), np.float32)).reshape(-1)

    def store(_name: str, values: Values) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
        if values.ndim == 1:
            return values, GGMLQuantizationType.F32
        return blocks[: values.size // 32 * 34].reshape(len(values), -1), GGMLQuantizationType.Q8_0

    ones = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    write_gguf(tmp_path / "model.gguf", config, ones, store)
    gguf.describe_gguf(tmp_path / "model.gguf", cache_dir=tmp_path / "cache")
    floats = 4 * sum(shape.numel() for shape in shapes.values())
    assert floats > 200e6
    # In a process of its own, which no other test's memory lies in. The first conversion imports what it needs.
    done = subprocess.run([sys.executable, "-c", CONVERSION, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 0.4 * floats
