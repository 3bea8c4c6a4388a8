"""Models with quantized weights: transformers' own forward on the dequantized weights is the judge."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

import orbitsplit as osp
from orbitsplit._models.fingerprint import hash_layers
from orbitsplit._models.stage import StageModel
from tests.support.fake_engine import byte_tokenizer
from tests.support.tiny_models import LAYERS, load_unsplit, save_tiny_model, tiny_prompts

# Rounding of activations to 16 bits, 2^-15.9 of the largest of a group, through four layers whose logits reach 10.
CLOSE = {"rtol": 0.0, "atol": 5e-3}
FAMILIES = ("llama", "gemma3_text", "gpt2", "qwen3", "bloom", "mixtral")


def rounded(values: Tensor) -> Tensor:
    """Return weights as the blocks of a GGUF file have them: GGUF's own code."""
    blocks = quants.quantize(values.detach().numpy(), GGMLQuantizationType.Q8_0)
    return torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType.Q8_0))


def judge_of(path: Path) -> Any:
    model = load_unsplit(path)
    done = set()
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or module.weight.data_ptr() in done:
                continue
            values = module.weight.t() if isinstance(module, Conv1D) else module.weight
            if values.shape[1] % 32 == 0:
                values = rounded(values.contiguous())
                module.weight.copy_(values.t() if isinstance(module, Conv1D) else values)
            done.add(module.weight.data_ptr())
        for parameter in model.parameters():
            if parameter.dim() == 3:  # experts
                parameter.copy_(torch.stack([rounded(matrix) for matrix in parameter]))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny model and of the same with weights in int8."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_model(folder / "float", request.param)
    return folder / "float", osp.convert(folder / "float", folder / "int8")


@pytest.mark.parametrize("cuts", [(0, LAYERS + 2), (0, 1, 3, LAYERS + 2)])
def test_stages_compute_what_the_dequantized_weights_do(pair: tuple[Path, Path], cuts: tuple[int, ...]) -> None:
    judge = judge_of(pair[0])
    stages = [StageModel.load(pair[1], start, stop) for start, stop in pairwise(cuts)]
    caches = [stage.new_cache() for stage in stages]
    ids, mask = tiny_prompts((60, 60))  # more rows than are multiplied with the quantized weights, and then two
    with torch.inference_mode():
        expected = judge(input_ids=ids, attention_mask=mask).logits[:, -1]
    x = ids
    for stage, cache in zip(stages, caches, strict=True):
        x = stage.forward(x, mask, cache)
    torch.testing.assert_close(x, expected, **CLOSE)
    token, mask = expected.argmax(-1, keepdim=True), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    with torch.inference_mode():
        expected = judge(input_ids=torch.cat([ids, token], dim=1), attention_mask=mask).logits[:, -1]
    x = token
    for stage, cache in zip(stages, caches, strict=True):
        x = stage.forward(x, mask, cache)
    torch.testing.assert_close(x, expected, **CLOSE)


def test_a_pipeline_says_what_one_process_does(pair: tuple[Path, Path]) -> None:
    ids, mask = tiny_prompts((9,))
    one = AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.float32).eval()
    expected = one.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    # Three processes for one family with a tied table and one without, else two.
    cuts = [1, 3] if pair[0].parent.name.startswith(("llama", "gemma3_text")) else [2]
    plan = osp.Plan.manual(cuts=cuts, layers=LAYERS)
    with osp.Pipeline(plan, pair[1]) as pipe:
        tokens = pipe.generate(ids, mask, max_new_tokens=8)
        run = pipe.last_run
    assert torch.equal(tokens, expected)
    assert run is not None
    profile = osp.profile(pair[1], prompt_tokens=9)
    assert [stage.weight_bytes for stage in run.stages] == [
        sum(layer.weight_bytes for layer in profile.layers[stage.start : stage.stop]) for stage in plan.stages
    ]


def test_files_have_eight_and_a_half_bits_a_weight_and_no_float_matrix(pair: tuple[Path, Path]) -> None:
    index = json.loads((pair[1] / "model.safetensors.index.json").read_text())["weight_map"]
    large = []
    for name, file in index.items():
        with safe_open(pair[1] / file, framework="pt") as opened:
            tensor = opened.get_tensor(name)
        if tensor.dim() > 1 and tensor.dtype != torch.uint8 and tensor.shape[-1] % 32 == 0:
            large.append(name)
    # What chooses the experts of a mixture is a module of its own: it stays as it is.
    assert all(name.endswith("mlp.gate.weight") for name in large), large
    weights = {name for name in index if name.endswith(("o_proj.weight", "attn.c_proj.weight"))}
    for name in weights:
        with safe_open(pair[1] / index[name], framework="pt") as opened:
            assert opened.get_tensor(name).shape == (32, 34)


def test_codebooks_of_the_float_model_belong_to_it(pair: tuple[Path, Path]) -> None:
    whole, converted = (StageModel.load(path, 0, LAYERS + 2) for path in pair)
    assert hash_layers(dict(enumerate(whole.transformer_layers))) == hash_layers(
        dict(enumerate(converted.transformer_layers))
    )


def test_tied_weights_are_one_table(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "gemma3_text", tie_word_embeddings=True)
    osp.convert(tmp_path / "float", tmp_path / "int8")
    model = StageModel.load(tmp_path / "int8", 0, LAYERS + 2).model
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    names = json.loads((tmp_path / "int8" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in names
    last = StageModel.load(tmp_path / "int8", LAYERS, LAYERS + 2)
    assert last.weight_bytes < model.get_output_embeddings().weight.nbytes + 40_000


def test_layers_in_int4_and_the_ends_in_int8(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "llama", tie_word_embeddings=False)
    osp.convert(tmp_path / "float", tmp_path / "mixed", weights="int4", head="int8")
    formats = AutoConfig.from_pretrained(tmp_path / "mixed").quantization_config["formats"]
    assert set(formats["int8"]) == {"model.embed_tokens", "lm_head"}
    assert len(formats["int4"]) == 7 * LAYERS
    ids, mask = tiny_prompts((12,))
    stage = StageModel.load(tmp_path / "mixed", 0, LAYERS + 2)
    assert stage.forward(ids, mask, stage.new_cache()).isfinite().all()


def test_what_is_beside_the_weights_is_kept(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    byte_tokenizer().save_pretrained(tmp_path / "float")
    osp.convert(tmp_path / "float", tmp_path / "int8")
    assert AutoTokenizer.from_pretrained(tmp_path / "int8").encode("orbit") == byte_tokenizer().encode("orbit")
    assert (tmp_path / "int8" / "generation_config.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int3"}, "weights is 'int3', must be one of int8, int4"),
        ({"head": "fp8"}, "head is 'fp8', must be one of int8, int4"),
    ],
)
def test_unknown_formats_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    save_tiny_model(tmp_path / "float")
    with pytest.raises(ValueError, match=message):
        osp.convert(tmp_path / "float", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_and_a_model_that_is_quantized_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    osp.convert(tmp_path / "float", tmp_path / "int8")
    with pytest.raises(FileExistsError, match="int8 exists already"):
        osp.convert(tmp_path / "float", tmp_path / "int8")
    with pytest.raises(ValueError, match="has quantized weights already"):
        osp.convert(tmp_path / "int8", tmp_path / "again")


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    osp.convert(tmp_path / "float", tmp_path / "int8")
    file = tmp_path / "int8" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["version"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="orbitsplit, version 2; this version reads 1"):
        StageModel.load(tmp_path / "int8", 0, 2)


def test_ids_beyond_the_table_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    osp.convert(tmp_path / "float", tmp_path / "int8")
    stage = StageModel.load(tmp_path / "int8", 0, 1)
    with pytest.raises(IndexError, match="token ids from 97 to 97, must be from 0 to 96"):
        stage.forward(torch.tensor([[97]]), torch.ones(1, 1, dtype=torch.long), stage.new_cache())


def test_bytes_are_those_of_gguf(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "float")
    osp.convert(tmp_path / "float", tmp_path / "int8")
    stage = StageModel.load(tmp_path / "int8", 1, 2)
    own = stage.model.get_submodule("model.layers.0.mlp.down_proj").weight
    values = model.get_submodule("model.layers.0.mlp.down_proj").weight.detach().numpy()
    assert np.array_equal(own.numpy(), quants.quantize(values, GGMLQuantizationType.Q8_0))
