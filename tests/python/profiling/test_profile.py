"""Profiles: numbers worked out by hand for a tiny Llama, shapes of large models, and the bookkeeping of times."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, BertConfig, LlamaConfig, MixtralConfig, ViTConfig

from orbitsplit._models.convert import convert
from orbitsplit._models.source import demo_model
from orbitsplit._models.stage import StageModel
from orbitsplit._network.network import Link, Network, Node
from orbitsplit._plans.plan import Workload
from orbitsplit._plans.planning import plan
from orbitsplit._profiling.measure import profile
from orbitsplit._profiling.profile import ModelProfile
from tests.support.tiny_encoders import ENCODERS, VISION, save_tiny_encoder, tiny_encoder
from tests.support.tiny_models import FAMILIES, HIDDEN, LAYERS, VOCABULARY, save_tiny_model, tiny_config, tiny_model

TOKENS, BATCH = 12, 3
# The tiny Llama has 4 heads and 2 key-value heads of width 8, and feed-forward layers of width 64.
MATRICES = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * 16 + 3 * HIDDEN * 64
NORMS = 2 * HIDDEN


def test_bytes_of_a_llama() -> None:
    found = profile(tiny_config(), prompt_tokens=TOKENS, batch_size=BATCH)
    names = [layer.name for layer in found.layers]
    assert names == ["embeddings", *(f"layer {index}" for index in range(LAYERS)), "head"]
    table, norm = VOCABULARY * HIDDEN * 4, HIDDEN * 4
    assert [layer.weight_bytes for layer in found.layers] == [table, *[4 * (MATRICES + NORMS)] * LAYERS, norm + table]
    assert [layer.kv_bytes_per_token for layer in found.layers] == [0, *[2 * 2 * 8 * 4] * LAYERS, 0]
    assert (found.cut_bytes_per_token, found.hidden_size, found.tied_bytes) == (4 * HIDDEN, HIDDEN, 0)
    assert found.weight_bytes == sum(parameter.nbytes for parameter in tiny_model().parameters())
    assert (found.model, found.architecture, found.dtype) == ("llama", "LlamaForCausalLM", "float32")


def test_flop_of_a_llama() -> None:
    found = profile(tiny_config(), prompt_tokens=TOKENS, batch_size=BATCH)
    attention = 2 * 2 * HIDDEN  # scores and weighted values, per pair of tokens
    for layer in found.layers[1:-1]:
        assert layer.prefill_flop == BATCH * TOKENS * (2 * MATRICES + attention * TOKENS)
        assert layer.decode_flop == BATCH * (2 * MATRICES + attention * (TOKENS + 1))
    assert found.layers[-1].prefill_flop == found.layers[-1].decode_flop == BATCH * 2 * HIDDEN * VOCABULARY


def test_a_tied_head_counts_in_both_ends() -> None:
    found = profile(tiny_config(tie_word_embeddings=True))
    table = VOCABULARY * HIDDEN * 4
    assert (found.layers[0].weight_bytes, found.tied_bytes) == (table, table)
    assert found.layers[-1].weight_bytes == table + HIDDEN * 4
    assert found.weight_bytes == sum(
        parameter.nbytes for parameter in tiny_model(tie_word_embeddings=True).parameters()
    )


def test_dtype_halves_the_bytes_and_not_the_flop() -> None:
    full, half = (profile(tiny_config(), dtype=dtype) for dtype in ("float32", "bfloat16"))
    for wide, narrow in zip(full.layers, half.layers, strict=True):
        assert wide.weight_bytes == 2 * narrow.weight_bytes
        assert wide.kv_bytes_per_token == 2 * narrow.kv_bytes_per_token
        assert wide.prefill_flop == narrow.prefill_flop
    assert full.cut_bytes_per_token == 2 * half.cut_bytes_per_token


def test_a_sliding_window_limits_what_is_cached() -> None:
    found = profile(tiny_config("gemma3_text"), prompt_tokens=TOKENS)
    assert [layer.kv_tokens_max for layer in found.layers[1:-1]] == [6, None] * (LAYERS // 2)
    sliding, full = found.layers[1:3]
    assert sliding.kv_bytes_per_token == full.kv_bytes_per_token == 2 * 2 * 8 * 4
    assert (sliding.kv_bytes(4), sliding.kv_bytes(100), full.kv_bytes(100)) == (4 * 128, 6 * 128, 100 * 128)


def test_only_the_chosen_experts_of_a_token_count() -> None:
    two, four = (profile(tiny_config("mixtral", num_experts_per_tok=k), prompt_tokens=TOKENS) for k in (2, 4))
    experts = 3 * 2 * HIDDEN * 64  # FLOP per token and expert
    assert four.layers[1].prefill_flop - two.layers[1].prefill_flop == 2 * TOKENS * experts
    assert four.layers[1].weight_bytes == two.layers[1].weight_bytes


def test_workspace_grows_with_the_tokens_and_not_with_their_square() -> None:
    small, large = (profile(tiny_config(), prompt_tokens=tokens).workspace_bytes for tokens in (100, 400))
    at_least = 400 * 4 * (HIDDEN + 2 * 64)  # the residual beside both halves of the gated feed-forward
    assert at_least <= large <= 4 * at_least
    assert small < large < 5 * small


def test_workspace_is_that_of_each_layer() -> None:
    vocabulary = 5000
    config = tiny_encoder("BertModel").config
    config.architectures, config.vocab_size = ["BertForMaskedLM"], vocabulary
    found = profile(config, prompt_tokens=TOKENS, batch_size=BATCH)
    logits = BATCH * TOKENS * vocabulary * 4
    embeddings, *layers, head = (layer.workspace_bytes for layer in found.layers)
    assert embeddings is not None
    assert head is not None
    assert head == found.workspace_bytes == found.stage_workspace_bytes(0, LAYERS + 2)
    assert logits <= head <= 1.2 * logits
    assert max(embeddings, *(size or 0 for size in layers)) == found.stage_workspace_bytes(0, LAYERS + 1) < logits / 10


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_profile_that_its_stages_confirm(family: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, family)
    found = profile(tmp_path, prompt_tokens=8)
    for start, stop in ((0, 1), (0, 2), (2, 4), (LAYERS + 1, LAYERS + 2)):
        stage = StageModel.load(tmp_path, start, stop)
        assert stage.weight_bytes == sum(layer.weight_bytes for layer in found.layers[start:stop])
    assert found.hidden_size == HIDDEN
    assert all(layer.prefill_flop > layer.decode_flop > 0 for layer in found.layers[1:-1])


def test_flop_and_bytes_of_an_encoder() -> None:
    found = profile(tiny_encoder("BertModel").config, prompt_tokens=TOKENS, batch_size=BATCH)
    matrices = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * 64
    for layer in found.layers[1:-1]:
        assert layer.prefill_flop == BATCH * TOKENS * (2 * matrices + 2 * 2 * HIDDEN * TOKENS)
    assert found.layers[-1].prefill_flop == BATCH * 2 * HIDDEN * HIDDEN  # the pooler sees the first token only
    assert not found.generates
    assert {layer.decode_flop for layer in found.layers} == {layer.kv_bytes(99) for layer in found.layers} == {0}
    assert found.weight_bytes == sum(parameter.nbytes for parameter in tiny_encoder("BertModel").parameters())
    at_least = BATCH * TOKENS * 4 * (2 * HIDDEN + 64)  # the residual and its copy beside the feed-forward
    assert at_least <= found.workspace_bytes <= 3 * at_least


def test_an_image_says_how_many_tokens_it_is() -> None:
    found = profile(tiny_encoder("ViTForImageClassification").config, prompt_tokens=999, batch_size=BATCH)
    assert (found.prompt_tokens, found.hidden_size, found.architecture) == (17, HIDDEN, "ViTForImageClassification")
    patches = 16 * 2 * HIDDEN * 3 * 2 * 2
    matrices = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * 64
    assert found.layers[0].prefill_flop == BATCH * patches
    assert found.layers[1].prefill_flop == BATCH * 17 * (2 * matrices + 2 * 2 * HIDDEN * 17)
    assert found.layers[-1].prefill_flop == BATCH * 2 * HIDDEN * 10


def test_a_vision_transformer_of_1_8_billion_parameters() -> None:
    huge = ViTConfig(hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16)
    found = profile(huge, batch_size=64)
    assert found.prompt_tokens == 14 * 14 + 1
    assert found.weight_bytes / 4 == pytest.approx(1.85e9, rel=1e-2)
    assert found.layers[7].prefill_flop == pytest.approx(64 * 197 * 2 * found.layers[7].weight_bytes / 4, rel=0.02)


@pytest.mark.parametrize("name", [*ENCODERS, *VISION])
def test_every_encoder_has_a_profile_that_its_stages_confirm(name: str, tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path, name)
    found = profile(tmp_path, prompt_tokens=8)
    for start, stop in ((0, 1), (0, 2), (2, 4), (LAYERS + 1, LAYERS + 2)):
        stage = StageModel.load(tmp_path, start, stop)
        assert stage.weight_bytes == sum(layer.weight_bytes for layer in found.layers[start:stop])
    assert found.hidden_size == HIDDEN
    assert all(layer.prefill_flop > 0 for layer in found.layers[1:-1])


@pytest.mark.parametrize("name", ["RobertaForSequenceClassification", "Dinov2Model"])
def test_a_measured_encoder_can_be_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_encoder(tmp_path, name)
    ticks = itertools.count()  # every look at the clock takes a second
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))
    found = profile(tmp_path, prompt_tokens=4, measure=True)
    assert [(layer.prefill_s, layer.decode_s) for layer in found.layers] == [(1.0, None)] * (LAYERS + 2)
    # One second of the overhead is before the first layer, and one behind each: all layers are in the stage.
    assert (found.overhead_prefill_s, found.overhead_decode_s, found.is_measured) == (1.0 + LAYERS, 0.0, True)
    found.save(tmp_path / "profile.json")
    assert ModelProfile.load(tmp_path / "profile.json") == found
    workload = Workload(micro_batches=4, prompt_tokens=found.prompt_tokens)
    process_bytes = found.process_bytes(workload, found.workspace_bytes)
    assert process_bytes > 7e6  # libraries
    memory_bytes = found.weight_bytes + found.workspace_bytes + process_bytes - 1  # not enough for all of it
    nodes = [Node(name, memory_bytes=memory_bytes, slowdown=2.0) for name in ("a", "b")]
    network = Network(name="two", nodes=tuple(nodes), links=(Link("a", "b", 1e6, 0.0), Link("b", "a", 1e6, 0.0)))
    made = plan(found, network, workload)
    assert len(made.stages) == 2
    assert made.prediction is not None
    assert made.prediction.token_step_s == 0.0


def test_models_of_any_size_from_their_configuration() -> None:
    llama = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    found = profile(llama, dtype="bfloat16")
    assert len(found.layers) == 82
    assert found.layers[80].weight_bytes == pytest.approx(1632 * 2**20, rel=1e-3)
    assert found.layers[80].prefill_flop == pytest.approx(884.8e9, rel=1e-3)
    assert found.layers[80].kv_bytes(512) == 2 * 2**20
    assert profile(MixtralConfig(), dtype="bfloat16").weight_bytes == pytest.approx(93.4e9, rel=1e-2)


def test_times_are_divided_among_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(tmp_path)
    # Every look at the clock takes a second: one per layer, and between two layers one that belongs to none.
    ticks = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))
    threads = torch.get_num_threads()
    steps: list[float] = []
    found = profile(tmp_path, prompt_tokens=4, measure=True, progress=lambda _step, fraction: steps.append(fraction))
    assert torch.get_num_threads() == threads
    assert [layer.prefill_s for layer in found.layers] == [1.0] * (LAYERS + 2)
    assert [layer.decode_s for layer in found.layers] == [1.0] * (LAYERS + 2)
    assert (found.overhead_prefill_s, found.overhead_decode_s) == (1.0 + LAYERS, 1.0 + LAYERS)
    assert (found.threads, found.is_measured) == (1, True)
    assert steps == sorted(steps)
    assert steps[-1] == 1.0


def test_round_trip(tmp_path: Path) -> None:
    found = replace(profile(tiny_config("gemma3_text")), threads=1, machine="somewhere", overhead_prefill_s=0.25)
    found.save(tmp_path / "profile.json")
    assert ModelProfile.load(tmp_path / "profile.json") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected format 'orbitsplit-profile' version 1"),
        ({"speed": 1}, 'the profile has the unknown key "speed"'),
        ({"layers": [{"name": "embeddings"}]}, r'layers\[0\] has no key "weight_bytes"'),
        ({"layers": []}, "layers are 0, must be"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0, must be at least 1"),
        ({"tied_bytes": -1}, "tied_bytes is -1, must be finite"),
        ({"overhead_decode_s": float("nan")}, "overhead_decode_s is nan"),
    ],
)
def test_data_that_is_no_profile_is_refused(change: dict[str, Any], message: str) -> None:
    data = profile(tiny_config()).to_dict()
    with pytest.raises(ValueError, match=message):
        ModelProfile.from_dict({**data, **change})


def test_data_of_a_wrong_type_are_named() -> None:
    with pytest.raises(TypeError, match=r"layers\[0\] is int, must be an object"):
        ModelProfile.from_dict({**profile(tiny_config()).to_dict(), "layers": [7]})


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_profile_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match=r"profile\.json(: the orbitsplit-profile is list| is not JSON)"):
        ModelProfile.load(tmp_path / "profile.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens is 0, must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1, must be at least 1"),
        ({"dtype": "int8"}, "dtype is 'int8', must be one of float32, float16, bfloat16"),
        ({"measure": True}, "a configuration has no weights to measure"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile(tiny_config(), **arguments)


def test_more_tokens_than_a_model_takes_are_refused() -> None:
    config = BertConfig(max_position_embeddings=64, num_hidden_layers=1, architectures=["BertModel"])
    assert profile(config, prompt_tokens=64).prompt_tokens == 64
    with pytest.raises(ValueError, match=r"^BertModel cannot be split .*: a forward of 65 tokens fails \(.*\)$"):
        profile(config, prompt_tokens=65)


def test_a_model_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="AlbertModel cannot be split into stages"):
        profile(AlbertConfig())


def test_each_layer_of_a_converted_model_is_measured(tmp_path: Path) -> None:
    # The core computes its layers, which are timed as others.
    save_tiny_model(tmp_path / "float", head_dim=16)
    found = profile(convert(tmp_path / "float", tmp_path / "int8"), prompt_tokens=4, measure=True)
    assert all(layer.prefill_s > 0 and layer.decode_s > 0 for layer in found.layers)
    assert len(found.layers) == LAYERS + 2


@pytest.mark.real_model
def test_gemma_measured() -> None:
    found = profile(demo_model(), prompt_tokens=32, measure=True)
    assert len(found.layers) == 20
    assert found.tied_bytes == 262144 * 640 * 4
    assert found.weight_bytes == pytest.approx(1.072e9, rel=1e-2)
    head, layer = found.layers[-1], found.layers[5]
    # A token through the head reads 30 times the weights of a layer.
    assert head.decode_s is not None
    assert layer.decode_s is not None
    assert head.decode_s > 5 * layer.decode_s > 0
    assert 0 < found.overhead_decode_s < head.decode_s
