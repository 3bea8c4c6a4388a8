"""Conversions whose rounding errors compensate each other, and mixed formats: the float model is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import orbitsplit as osp
from orbitsplit._models import convert as module
from orbitsplit._models.compensation import TIED_DAMPING, compensated
from orbitsplit._models.quantized import quantized_matrices
from tests.support.fake_engine import byte_tokenizer
from tests.support.tiny_encoders import tiny_vit
from tests.support.tiny_models import LAYERS, VOCABULARY, load_unsplit, save_tiny_model


def ids_of(rows: int = 8, tokens: int = 64, *, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def quantized(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def divergence(path: Path, other: Path, ids: Tensor) -> float:
    """Return the Kullback-Leibler divergence of a converted model's predictions from the float model's, in nats."""
    own, changed = load_unsplit(path)(ids).logits.log_softmax(-1), quantized(other)(ids).logits.log_softmax(-1)
    return float((own.exp() * (own - changed)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {"tie_word_embeddings": True}),
        ("gemma3_text", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt2", {}),
        ("mixtral", {}),
        ("opt", {}),
    ],
)
def test_less_is_lost_than_by_rounding(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", family, **options)
    osp.convert(tmp_path / "float", tmp_path / "rounded", weights="int4")
    osp.convert(tmp_path / "float", tmp_path / "compensated", weights="int4", calibration=ids_of())
    rounded, better = (divergence(tmp_path / "float", tmp_path / name, ids_of()) for name in ("rounded", "compensated"))
    assert better < 0.97 * rounded


@pytest.mark.parametrize("tied", [True, False])
def test_int5_loses_less_than_half_of_int4(tied: bool, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "qwen3", tie_word_embeddings=tied)
    for name in ("int4", "int5"):
        osp.convert(tmp_path / "float", tmp_path / name, weights=name, calibration=ids_of(), int8_rows=0)
    of_int4, of_int5 = (divergence(tmp_path / "float", tmp_path / name, ids_of(seed=1)) for name in ("int4", "int5"))
    assert of_int5 < 0.5 * of_int4
    assert {matrix.format for _, matrix in quantized_matrices(quantized(tmp_path / "int5"))} == {"int5"}


@torch.no_grad()
def inputs_in(model: Any, name: str, ids: Tensor) -> Tensor:
    """Return what a module of a whole model gets, [tokens, columns]."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    for row in ids:
        model(row[None])
    handle.remove()
    return torch.cat(seen)


def given(model: Any, matrices: dict[str, osp.QuantizedWeights], names: list[str]) -> None:
    """Give modules of a float model the values of quantised ones."""
    for name in names:
        values = torch.from_numpy(matrices[name].dequantize())
        model.get_submodule(name).weight = nn.Parameter(values, requires_grad=False)


def test_a_layer_is_adapted_to_what_the_quantized_layers_before_it_give(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float", "llama", tie_word_embeddings=False)
    osp.convert(tmp_path / "float", tmp_path / "int4", weights="int4", calibration=ids_of())
    matrices = dict(quantized_matrices(quantized(tmp_path / "int4")))
    model = load_unsplit(tmp_path / "float")
    before = [
        name for name in matrices if name.startswith(("model.embed_tokens", "model.layers.0.", "model.layers.1."))
    ]
    given(model, matrices, before)
    name = "model.layers.2.mlp.down_proj"
    x = inputs_in(model, name, ids_of())
    expected = compensated(model.get_submodule(name).weight.detach(), (x.t() @ x).double())
    # Forwards of a stage and of the whole model may round differently, which decides a few ties.
    assert (matrices[name].data == expected.data).mean() > 0.95
    other = compensated(model.get_submodule(name).weight.detach(), torch.eye(x.shape[1]).double())
    assert (matrices[name].data == other.data).mean() < 0.9


def test_a_tied_table_is_adapted_to_what_the_head_gets(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "float", "qwen3", tie_word_embeddings=True)
    osp.convert(tmp_path / "float", tmp_path / "int4", weights="int4", calibration=ids_of(), int8_rows=0)
    table = dict(quantized_matrices(quantized(tmp_path / "int4")))["model.embed_tokens"]
    x = inputs_in(model, "lm_head", ids_of())
    expected = compensated(model.lm_head.weight.detach(), (x.t() @ x).double(), damping=TIED_DAMPING)
    assert (table.data == expected.data).mean() > 0.99


def test_texts_are_the_rows_of_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 4)
    monkeypatch.setattr(module, "_TOKENS", 16)
    save_tiny_model(tmp_path / "float", vocab_size=512)
    byte_tokenizer().save_pretrained(tmp_path / "float")
    text = "satellites pass over a ground station every ninety minutes " * 2
    (tmp_path / "text.txt").write_text(text)
    tokens = torch.tensor(byte_tokenizer()(text)["input_ids"])
    rows = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)
    chosen = rows[torch.linspace(0, len(rows) - 1, 4).long()]
    for name, calibration in (("text", [tmp_path / "text.txt"]), ("string", [text]), ("ids", chosen)):
        osp.convert(tmp_path / "float", tmp_path / name, weights="int4", calibration=calibration, int8_rows=0)
    files = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("text", "string", "ids")]
    for group in zip(*files, strict=True):
        assert len({file.read_bytes() for file in group}) == 1


def formats_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = AutoConfig.from_pretrained(path).quantization_config["formats"]
    return found


def test_the_last_pattern_that_fits_decides(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    patterns = {"*.layers.*": "int8", "*.mlp.*": "int4", "model.layers.3.mlp.down_proj": "int8"}
    osp.convert(tmp_path / "float", tmp_path / "mixed", weights="int4", head="int8", modules=patterns)
    in_four_bits = [f"model.layers.{k}.mlp.{name}_proj" for k in range(LAYERS) for name in ("gate", "up", "down")]
    assert formats_of(tmp_path / "mixed")["int4"] == [name for name in in_four_bits if name not in patterns]


def test_formats_of_modules_hold_with_compensation_too(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "float")
    osp.convert(
        tmp_path / "float", tmp_path / "mixed", weights="int4", modules={"*.v_proj": "int8"}, calibration=ids_of()
    )
    osp.convert(tmp_path / "float", tmp_path / "int8")
    mixed, whole = (dict(quantized_matrices(quantized(tmp_path / name))) for name in ("mixed", "int8"))
    assert {name for name, matrix in mixed.items() if matrix.format == "int8"} == {
        f"model.layers.{k}.self_attn.v_proj" for k in range(LAYERS)
    }
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.3.self_attn.v_proj"):
        assert np.array_equal(mixed[name].data, whole[name].data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modules": {"*.v": "int8"}}, ValueError, r"no module that is quantized fits '\*.v'"),
        ({"modules": {"*.v_proj": "int3"}}, ValueError, r"the format of modules '\*.v_proj' is 'int3', must be one of"),
        ({"modules": ["*.v_proj"]}, TypeError, "modules is list"),
        ({"modules": {"lm_head": "int8"}}, ValueError, "model.embed_tokens and lm_head are one table"),
        ({"weights": "int8", "calibration": ids_of()}, ValueError, "calibration is used for weights in int4"),
        ({"calibration": "a text"}, TypeError, "calibration is a single text or path"),
        ({"int8_rows": 8}, ValueError, "int8_rows is 8, and calibration, which tells the rows, is not given"),
        ({"int8_rows": -1, "calibration": ids_of()}, ValueError, "int8_rows is -1, it must be from 0"),
        ({"int8_rows": "8", "calibration": ids_of()}, TypeError, "int8_rows"),
        ({"calibration": torch.zeros(2, 3)}, TypeError, "token ids are torch.float32"),
        ({"calibration": torch.full((2, 3), 97)}, ValueError, "token ids are from 97 to 97, the vocabulary has 97"),
    ],
)
def test_what_fits_nothing_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "float", "qwen3", tie_word_embeddings=True)
    with pytest.raises(error, match=message):
        osp.convert(tmp_path / "float", tmp_path / "out", **{"weights": "int4", **options})
    assert not (tmp_path / "out").exists()


def test_texts_for_a_model_of_images_are_refused(tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="calibration is of texts, and the model takes images"):
        osp.convert(tmp_path / "float", tmp_path / "out", weights="int4", calibration=ids_of())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the snapshot of the hub id owner/name in a cache of its own; nothing is downloaded."""
    folder = tmp_path / "hub" / "models--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    save_tiny_model(snapshot, vocab_size=512)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_tokenizer_that_was_never_downloaded_is_fetched(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def downloading(model: str) -> None:
        asked.append(model)
        byte_tokenizer().save_pretrained(hub)

    monkeypatch.setattr(module, "load_tokenizer", downloading)
    osp.convert("owner/name", tmp_path / "int8")
    assert asked == ["owner/name"]
    assert (tmp_path / "int8" / "tokenizer.json").is_file()


def test_a_hub_id_without_a_tokenizer_is_converted_with_a_warning(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    osp.convert("owner/name", tmp_path / "int8")
    assert "owner/name has no tokenizer that can be loaded" in caplog.text
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["source"] == "owner/name"
