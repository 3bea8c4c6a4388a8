"""Tables in int4 with the rows of frequent tokens in int8: the float model with dequantised weights is the judge."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import orbitsplit as osp
from orbitsplit._models.quantized import quantized_matrices
from orbitsplit._models.stage import StageModel
from tests.support.tiny_models import LAYERS, VOCABULARY, load_unsplit, save_tiny_model, tiny_prompts

FREQUENT = [5, 20, 63, 96]


def ids_of() -> Tensor:
    """Return ids in which four tokens are far more frequent than the others, all of which occur."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (8, 64), generator=generator)
    is_frequent = torch.rand(ids.shape, generator=generator) < 0.5
    chosen = torch.tensor(FREQUENT)[torch.randint(0, 4, ids.shape, generator=generator)]
    return torch.where(is_frequent, chosen, ids)


def saved(folder: Path, family: str, *, tied: bool) -> Path:
    save_tiny_model(folder / "float", family, tie_word_embeddings=tied, head_dim=16)
    return osp.convert(folder / "float", folder / "int4", weights="int4", calibration=ids_of(), int8_rows=4)


@pytest.fixture(scope="module", params=[("gemma3_text", True), ("qwen3", False)], ids=["tied", "untied"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    return saved(tmp_path_factory.mktemp(family), family, tied=tied)


def table_of(path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return dict(quantized_matrices(model))["model.embed_tokens"]


def judge_of(path: Path) -> Any:
    """Return the float model with the dequantised weights."""
    model = load_unsplit(path.parent / "float")
    for name, matrix in quantized_matrices(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)):
        values = torch.from_numpy(matrix.dequantize())
        model.get_submodule(name).weight = nn.Parameter(values, requires_grad=False)
    return model


def test_the_most_frequent_tokens_have_the_rows_of_int8(converted: Path) -> None:
    table = load_unsplit(converted.parent / "float").model.embed_tokens.weight.detach().numpy()
    stored = table_of(converted)
    assert stored.indices.tolist() == FREQUENT
    of_int8 = osp.QuantizedWeights.quantize(table, "int8").dequantize()
    assert np.array_equal(stored.dequantize()[FREQUENT], of_int8[FREQUENT])
    others = np.delete(np.arange(VOCABULARY), FREQUENT)
    assert not np.isclose(stored.dequantize()[others], of_int8[others], rtol=0, atol=1e-7).any(axis=0).all()


@pytest.mark.parametrize("cuts", [(0, LAYERS + 2), (0, 1, 3, LAYERS + 2)])
def test_stages_compute_what_the_dequantised_weights_do(converted: Path, cuts: tuple[int, ...]) -> None:
    judge = judge_of(converted)
    stages = [StageModel.load(converted, start, stop) for start, stop in pairwise(cuts)]
    caches = [stage.new_cache() for stage in stages]
    ids, mask = tiny_prompts((60, 60))  # more rows than are multiplied with the quantised weights, and then two
    for _ in range(2):
        with torch.inference_mode():
            expected = judge(input_ids=ids, attention_mask=mask).logits[:, -1]
        new = ids[:, caches[0].get_seq_length() :]
        x = new
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward(x, mask, cache)
        torch.testing.assert_close(x, expected, rtol=0.0, atol=5e-3)
        ids = torch.cat([ids, torch.tensor([[5], [6]])], dim=1)
        mask = torch.ones_like(ids)


def test_memory_of_stages_is_what_profiles_and_files_say(converted: Path) -> None:
    profile = osp.profile(converted, prompt_tokens=9)
    cuts = (0, 1, 3, LAYERS + 2)
    stages = [StageModel.load(converted, start, stop) for start, stop in pairwise(cuts)]
    assert [stage.weight_bytes for stage in stages] == [
        sum(layer.weight_bytes for layer in profile.layers[a:b]) for a, b in pairwise(cuts)
    ]
    # 97 rows of 32 numbers in int4, four of them also in int8 with their indices.
    assert profile.layers[0].weight_bytes == 97 * (8 + 2 + 16) + 4 * (4 + 34)


def test_the_configuration_tells_the_modules(converted: Path) -> None:
    config = AutoConfig.from_pretrained(converted)
    heads = ["lm_head"] if config.tie_word_embeddings else []
    assert config.quantization_config["int8_rows"] == dict.fromkeys(["model.embed_tokens", *heads], 4)


def test_models_from_before_there_were_such_rows_are_loaded(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "qwen3")
    osp.convert(tmp_path / "float", tmp_path / "int4", weights="int4")
    file = tmp_path / "int4" / "config.json"
    config = json.loads(file.read_text())
    assert config["quantization_config"].pop("int8_rows") == {}
    file.write_text(json.dumps(config))
    ids, mask = tiny_prompts((9,))
    stage = StageModel.load(tmp_path / "int4", 0, LAYERS + 2)
    assert stage.forward(ids, mask, stage.new_cache()).isfinite().all()


def test_by_default_a_64th_of_the_vocabulary_and_no_token_that_never_occurs(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "qwen3", vocab_size=192)
    osp.convert(tmp_path / "float", tmp_path / "default", weights="int4", calibration=ids_of())
    assert len(table_of(tmp_path / "default").indices) == 3
    two = torch.tensor([[9, 130, 9, 9, 130]])
    osp.convert(tmp_path / "float", tmp_path / "two", weights="int4", calibration=two, int8_rows=100)
    assert table_of(tmp_path / "two").indices.tolist() == [9, 130]


def test_tables_in_int8_have_no_such_rows(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "qwen3")
    osp.convert(tmp_path / "float", tmp_path / "mixed", weights="int4", head="int8", calibration=ids_of())
    assert table_of(tmp_path / "mixed").format == "int8"
    assert AutoConfig.from_pretrained(tmp_path / "mixed").quantization_config["int8_rows"] == {}
