"""`orbitsplit plan --weights`: stages with weights of their own, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import orbitsplit as osp
from orbitsplit.__main__ import main
from tests.support.books_by_hand import book_by_hand

NAMES = ("embeddings", "layer 0", "layer 1", "head")
NETWORK = '[[nodes]]\nname = "a"\nmemory = "10 kB"\nslowdown = 1.0\n'


def save_profile(path: Path, model: str, weight_bytes: int, seconds: float) -> Path:
    layer = osp.LayerProfile("layer", weight_bytes, 0, None, 10**6, 10**4, seconds, seconds / 10)
    osp.ModelProfile(
        model=model,
        architecture="ToyForCausalLM",
        dtype="float32",
        prompt_tokens=16,
        batch_size=1,
        hidden_size=16,
        layers=tuple(replace(layer, name=name) for name in NAMES),
        cut_bytes_per_token=64,
        workspace_bytes=100,
        tied_bytes=0,
        threads=1,
    ).save(path)
    return path


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Return the command without --weights: one node, which has room for weights in 8 bits only."""
    (tmp_path / "network.toml").write_text(NETWORK)
    save_profile(tmp_path / "int8.json", "models/int8", 1000, 0.5)
    profile = save_profile(tmp_path / "float32.json", "models/float32", 4000, 1.0)
    return ["plan", str(profile), "--network", str(tmp_path / "network.toml"), "--json"]


def orbitsplit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["orbitsplit", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_stage_gets_weights_that_fit(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = book_by_hand({1: [("fine", 8, 0.001)]}, layers=2, width=16)
    losses = osp.WeightLosses(loss=(0.001, 0.002, 0.003, 0.004), loss_error=(0.0,) * 4)
    file = tmp_path / "book.safetensors"
    book.weights["int8"] = losses
    book.save(file)
    codebook = ("--codebook", str(file))
    weights = f"int8={tmp_path / 'int8.json'}"
    assert orbitsplit(monkeypatch, *arguments, *codebook, "--weights", weights, "--loss-budget", "0.02") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["weights"] for stage in plan["stages"]] == ["int8"]
    assert plan["weight_models"] == {"int8": "models/int8"}
    assert plan["prediction"]["loss"] == pytest.approx(0.01)
    assert orbitsplit(monkeypatch, *arguments, *codebook, "--weights", weights, "--loss-budget", "0.005") == 1


def test_what_is_missing_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = book_by_hand({1: [("fine", 8, 0.001)]}, layers=2, width=16)
    book.save(tmp_path / "book.safetensors")
    weights = f"int8={tmp_path / 'int8.json'}"
    assert orbitsplit(monkeypatch, *arguments, "--weights", weights) == 2
    assert "--weights int8 needs --codebook" in capsys.readouterr().err
    codebook = ("--codebook", str(tmp_path / "book.safetensors"))
    assert orbitsplit(monkeypatch, *arguments, *codebook, "--weights", weights) == 2
    assert "has no losses of weights 'int8'" in capsys.readouterr().err
    assert orbitsplit(monkeypatch, *arguments, *codebook, "--weights", "int8") == 2
    assert "--weights is 'int8', expected NAME=PROFILE" in capsys.readouterr().err


def test_a_plan_answers_a_limit_of_accuracy_in_its_unit(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # It was answered in nats alone; and nothing said that a codebook was fitted to texts of another length.
    book = osp.Codebook.load("book.safetensors")
    arguments = ("plan", "profile.json", "--network", "leo.toml", "--micro-batches", "8")
    for tokens in (16, 128):
        book.provenance = {"sample_shape": [tokens]}
        book.save("book.safetensors")
        made = ("--codebook", "book.safetensors", "--max-accuracy-drop", "0.01", "-o", "made.json")
        assert not orbitsplit(monkeypatch, *arguments, *made)
        printed = capsys.readouterr().out
        prediction = osp.Plan.load("made.json").prediction
        assert prediction is not None
        assert prediction.loss > 0
        expected, low, high = (100 * drop for drop in book.accuracy.drop(prediction.loss))
        interval = f"95 %: {low:.2f} to {high:.2f}, the limit is 1.00"
        assert f"drop in accuracy of {expected:.2f} points ({interval})" in printed
        note = "the codebook was fitted to texts of 128 tokens, the plan is for prompts of 16"
        assert (note in printed) == (tokens == 128)
    assert not orbitsplit(monkeypatch, *arguments)
    assert "points" not in capsys.readouterr().out
