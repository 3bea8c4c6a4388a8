"""Trials of architectures: what a small model shows, and that a verdict is found once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Phi3Config

from orbitsplit._models import image_inputs, twin, verdicts
from orbitsplit._models.small_config import LONG_TOKENS, shrunk
from orbitsplit._models.source import check_padding
from orbitsplit._models.twin import Verdict, try_split
from tests.support.tiny_vision_language import vision_language_config

_TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "_known", {})
    return tmp_path / "orbitsplit" / "verdicts"


@pytest.mark.parametrize(
    ("architecture", "model_type", "fields"),
    [
        # Regression: "no padding token is defined", where it was we who took it away.
        ("LlamaForSequenceClassification", "llama", {**_TEXT, "pad_token_id": 0}),
        ("LlamaForSequenceClassification", "llama", _TEXT),
        # Regression: refused for numbers that their forwards read, which models without weights do not have.
        (
            "ImageGPTForImageClassification",
            "imagegpt",
            {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "pad_token_id": 0},
        ),
    ],
)
def test_a_class_is_exact_in_stages(architecture: str, model_type: str, fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **fields, architectures=[architecture])
    assert try_split(config) == Verdict("exact")


def _phi3() -> Phi3Config:
    return Phi3Config(
        **{**_TEXT, "max_position_embeddings": 4096},
        rope_parameters=_LONGROPE,
        original_max_position_embeddings=16,
        pad_token_id=0,
        architectures=["Phi3ForCausalLM"],
    )


def test_phi3_beyond_its_short_texts_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the embedding changes, its generate computes the cache anew, which stages do not: such texts are refused.
    assert try_split(_phi3()) == Verdict("exact")
    monkeypatch.setattr(twin, "rope_change", lambda _config: None)
    verdict = try_split(_phi3())
    assert verdict.kind == "wrong"
    assert "step 12" in verdict.reason  # with the 17th token
    with pytest.raises(ValueError, match=r"^Phi3ForCausalLM cannot be split .* something else .*step 12"):
        verdicts.check_architecture(_phi3())


def test_images_are_refused_where_a_small_model_is_not_exact(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vision_language_config("llava")
    verdicts.check_images(config)
    verdicts.check_images(config)
    (file,) = empty_cache.iterdir()
    assert file.stem.endswith("-images")  # the verdict on texts is another
    # What stages do not get of images is found: here the positions that follow from them.
    with monkeypatch.context() as patched:
        patched.setattr(image_inputs, "positions_of", lambda *_: None)
        found = try_split(vision_language_config("qwen2_5_vl"), with_images=True)
    assert found.kind == "wrong"
    monkeypatch.setattr(verdicts, "_known", {})
    monkeypatch.setattr(verdicts, "try_split", lambda *_args, **_options: Verdict("wrong", "step 3 differs"))
    with pytest.raises(ValueError, match=r"^Qwen2_5_VL\w+ takes no images in stages: .* is wrong \(step 3 differs\)"):
        verdicts.check_images(vision_language_config("qwen2_5_vl"))


def test_what_is_seen_must_not_enter_later_layers() -> None:
    # Regression: of Qwen3-VL a small model has none of the layers that it is for, and was found exact.
    config = AutoConfig.for_model("qwen3_vl", architectures=["Qwen3VLForConditionalGeneration"])
    with pytest.raises(ValueError, match=r"is refused \(what it sees enters later layers too \(deepstack_visual_in"):
        verdicts.check_images(config)


def test_the_judge_of_a_trial_is_loaded_as_stages_are() -> None:
    # Regression: transformers' loader changes a saved embedding of Youtu, and stages were found wrong for it.
    config = AutoConfig.for_model("youtu", architectures=["YoutuForCausalLM"])
    assert try_split(shrunk(config)) == Verdict("exact")


def test_a_verdict_is_found_once_for_all_sizes(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(verdicts, "try_split", lambda config, **_options: tried.append(config) or Verdict("exact"))
    large = LlamaConfig(architectures=["LlamaForCausalLM"])
    verdicts.check_architecture(large)
    verdicts.check_architecture(LlamaConfig(num_hidden_layers=9, architectures=["LlamaForCausalLM"]))
    assert len(tried) == 1
    monkeypatch.setattr(verdicts, "_known", {})
    verdicts.check_architecture(large)
    assert len(tried) == 1  # from the disk
    (file,) = empty_cache.iterdir()
    file.write_text("{", encoding="utf-8")
    monkeypatch.setattr(verdicts, "_known", {})
    verdicts.check_architecture(large)
    assert len(tried) == 2
    verdicts.check_architecture(LlamaConfig(attention_bias=True, architectures=["LlamaForCausalLM"]))
    assert len(tried) == 3


def test_what_could_not_be_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        verdicts, "try_split", lambda *_args, **_options: Verdict("unknown", "it does not run unsplit: so")
    )
    with pytest.warns(UserWarning, match="LlamaForCausalLM was not tried .*it does not run unsplit: so"):
        verdicts.check_architecture(LlamaConfig(**_TEXT, architectures=["LlamaForCausalLM"]))


def test_a_small_model_is_beyond_all_lengths_and_has_every_kind_of_layer() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=24, layer_types=kinds * 4, sliding_window=1024)
    small = shrunk(config)
    assert small.layer_types == kinds
    assert small.num_hidden_layers == 6
    assert small.sliding_window < LONG_TOKENS
    assert small.hidden_size < config.hidden_size
    assert small.head_dim == config.head_dim
    assert config.num_hidden_layers == 24  # a copy was changed
    assert shrunk(config, strength=0).hidden_size == config.hidden_size


def test_padding_that_the_mask_does_not_show_is_refused() -> None:
    config = LlamaConfig(**_TEXT, pad_token_id=0, architectures=["LlamaForSequenceClassification"])
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    check_padding(config, {"input_ids": ids, "attention_mask": (ids != 0).long()})
    with pytest.raises(ValueError, match=r"row 1: the last token .* is at 1, by attention_mask at 2"):
        check_padding(config, {"input_ids": ids})


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), MemoryError("no memory"), RuntimeError("CPU: can't allocate memory")]
)
def test_what_this_machine_lacks_is_no_verdict_that_is_kept(
    error: Exception, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise error

    config = LlamaConfig(**_TEXT, architectures=["LlamaForCausalLM"])
    with monkeypatch.context() as patched:
        patched.setattr(twin, "_compare", fails)
        with pytest.warns(UserWarning, match=f"was not tried .*: {re.escape(str(error))}"):
            verdicts.check_architecture(config)
    assert not empty_cache.exists()
    verdicts.check_architecture(config)
    assert len(list(empty_cache.iterdir())) == 1
