"""What layers lose with quantised weights: whole models that have them in one layer alone are the judge."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import orbitsplit as osp
from orbitsplit.calibration import held_out
from orbitsplit.calibration._weight_levels import measure_weights
from tests.support.tiny_encoders import tiny_bert, tiny_images, tiny_vit
from tests.support.tiny_models import LAYERS, one_thread, save_tiny_model, tiny_model, tiny_prompts

TOKENS, ROWS, MEASURED = 40, 5, 2
# Layers behind the quantised one run alone, with sums of the same order: only float32's last bits may differ.
CLOSE = {"rel": 1e-3, "abs": 1e-6}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def ids_of(rows: int = ROWS) -> Tensor:
    return tiny_prompts((TOKENS,) * rows, seed=3)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    save_tiny_model(path / "float", "qwen3", tie_word_embeddings=True)
    osp.convert(path / "float", path / "adapted", weights="int4", calibration=ids_of())
    return path


def float_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "float", dtype=torch.float32).eval()


def rounded(module: nn.Module, weight_format: str) -> Tensor:
    values = module.weight.detach().numpy()  # type: ignore[operator]
    return torch.from_numpy(osp.QuantizedWeights.quantize(values, weight_format).dequantize())  # type: ignore[arg-type]


def with_one_layer(model: Any, layer: int, weight_format: str) -> Any:
    """Return a copy of a model of which one layer is quantised; 0 are its embeddings, the last its head."""
    changed = copy.deepcopy(model)
    changed.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the table
    parts = [changed.model.embed_tokens, *changed.model.layers, changed.lm_head]
    for module in parts[layer].modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight = nn.Parameter(rounded(module, weight_format))
    return changed


@torch.no_grad()
def divergences(model: PreTrainedModel, other: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the mean divergence of the predictions in each row of ids."""
    own, changed = (one(ids).logits[:, :-1].log_softmax(-1) for one in (model, other))
    return (own.exp() * (own - changed)).sum(-1).mean(-1)


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_losses_are_those_of_models_with_one_quantized_layer(weight_format: str, folder: Path) -> None:
    book = osp.calibrate(
        folder / "float",
        ids_of(),
        cuts=[2],
        levels=(4.0,),
        codecs=("channel",),
        measure_samples=MEASURED,
        weights=(weight_format,),
    )
    found = book.weights[weight_format].loss
    model = float_model(folder)
    rows = [divergences(model, with_one_layer(model, k, weight_format), ids_of()) for k in range(LAYERS + 2)]
    # Which rows are measured, the seed decides: one choice of them fits all layers.
    choices = [[float(row[list(chosen)].mean()) for row in rows] for chosen in combinations(range(ROWS), MEASURED)]
    assert any(found == pytest.approx(tuple(choice), **CLOSE) for choice in choices)
    assert all(loss > 0 for loss in found)
    assert all(error > 0 for error in book.weights[weight_format].loss_error)


def test_a_converted_folder_is_measured_with_its_own_weights(folder: Path) -> None:
    reference = held_out(folder / "float", ids_of(), samples=ROWS, positions=None)
    found = measure_weights(reference, {"rounded": "int4", "adapted": folder / "adapted"})
    assert sum(found["adapted"].loss) < sum(found["rounded"].loss)
    converted = AutoModelForCausalLM.from_pretrained(folder / "adapted", dtype=torch.float32).eval()
    model = float_model(folder)
    changed = copy.deepcopy(model)
    matrix = converted.model.layers[1].mlp.down_proj.matrix()
    for name, module in converted.model.layers[1].named_modules():
        if hasattr(module, "matrix"):
            values = torch.from_numpy(module.matrix().dequantize())
            changed.model.layers[1].get_submodule(name).weight = nn.Parameter(values)
    assert matrix.format == "int4"
    expected = float(divergences(model, changed, ids_of()).mean())
    assert found["adapted"].loss[2] == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])  # experts as linear layers are stored, and transposed ones
def test_experts_are_part_of_a_layer(family: str) -> None:
    model = tiny_model(family)
    changed = copy.deepcopy(model)
    for module in changed.model.layers[1].modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(rounded(module, "int4"))
    for parameter in changed.model.layers[1].mlp.experts.parameters(recurse=False):
        if parameter.dim() == 3:
            stored = parameter.detach().transpose(1, 2) if family == "gpt_oss" else parameter.detach()
            values = [osp.QuantizedWeights.quantize(one.numpy(), "int4").dequantize() for one in stored]
            found = torch.from_numpy(np.stack(values))
            parameter.data = found.transpose(1, 2) if family == "gpt_oss" else found
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    losses = measure_weights(held_out(model, ids_of(), samples=ROWS, positions=None), {"int4": "int4"})["int4"].loss
    assert losses[2] == pytest.approx(float(divergences(model, changed, ids_of()).mean()), **CLOSE)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == addresses


def test_a_model_is_left_as_it_was(folder: Path) -> None:
    reference = held_out(folder / "float", ids_of(), samples=2)
    model = reference.hooked.model
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    measure_weights(reference, {"int8": "int8"})
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert after == before


def test_outputs_that_are_not_kept_are_computed_in_floats(folder: Path) -> None:
    kept, forgotten = (
        measure_weights(held_out(folder / "float", ids_of(), samples=2, kept_bytes=size), {"int4": "int4"})
        for size in (1 << 20, 0)
    )
    assert kept == forgotten


def test_models_of_images_and_of_texts_without_a_head_have_losses_too() -> None:
    vit = tiny_vit().eval()
    of_images = measure_weights(held_out(vit, tiny_images(8)), {"int4": "int4"})["int4"]
    assert all(loss > 0 for loss in of_images.loss[1:-1])
    bert = tiny_bert().eval()
    of_texts = measure_weights(held_out(bert, ids_of()), {"int4": "int4"})["int4"]
    assert all(loss > 0 for loss in of_texts.loss[:-1])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (("int3",), ValueError, "weights 'int3' are no folder and none of int8, int4"),
        (("int8", "int8"), ValueError, "weights name 'int8' twice"),
        ("int8", TypeError, "weights is 'int8', must be a sequence"),
        ((8,), TypeError, "a precision of weights is 8, must be a format or a folder"),
    ],
)
def test_what_are_no_weights_is_refused(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        osp.CalibrationOptions(weights=weights)


def test_folders_of_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    reference = held_out(folder / "float", ids_of(), samples=1)
    with pytest.raises(ValueError, match="has no weights quantized by orbitsplit convert"):
        measure_weights(reference, {"float": folder / "float"})
    save_tiny_model(tmp_path / "other", "qwen3", seed=1, tie_word_embeddings=True)
    osp.convert(tmp_path / "other", tmp_path / "converted")
    with pytest.raises(ValueError, match="was converted from another model than"):
        measure_weights(reference, {"other": tmp_path / "converted"})
