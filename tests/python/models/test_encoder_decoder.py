"""Stages of models with an encoder and a decoder, in one process, against the whole model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import orbitsplit as osp
from orbitsplit._models import model_part
from orbitsplit._models.encoder_decoder import example_prompt
from orbitsplit._models.encoder_decoder_stage import EncoderDecoderStage
from orbitsplit._models.layouts import find_layout
from orbitsplit._models.source import layer_count
from orbitsplit._models.stage import StageModel
from orbitsplit._models.twin import try_split
from orbitsplit._models.verdicts import try_architecture
from tests.support.tiny_encoder_decoders import (
    DECODER_LAYERS,
    ENCODER_DECODERS,
    ENCODER_LAYERS,
    LAYERS,
    encoder_decoder_config,
    encoder_prompts,
    save_encoder_decoder,
)

MIDDLE = ENCODER_LAYERS + 1


@pytest.fixture(scope="module", params=list(ENCODER_DECODERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model on disk, the same unsplit, and its kind."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    return folder, save_encoder_decoder(folder, request.param), request.param


def stages_of(folder: Path, cuts: list[int]) -> list[EncoderDecoderStage]:
    found = [StageModel.load(folder, start, stop).encoder_decoder for start, stop in pairwise(cuts)]
    assert all(stage is not None for stage in found)
    return [stage for stage in found if stage is not None]


def unsplit_logits(model: PreTrainedModel, prompt: dict[str, Tensor], ids: Tensor, first: int) -> list[Tensor]:
    """Return the logits behind the first tokens of the decoder, and behind each after them."""
    whole: Any = model
    with torch.no_grad():
        output = whole(**prompt, decoder_input_ids=ids[:, :first], use_cache=True)
        logits = [output.logits[:, -1]]
        for place in range(first, ids.shape[1]):
            cache = output.past_key_values
            one = ids[:, place, None]
            output = whole(**prompt, decoder_input_ids=one, past_key_values=cache, use_cache=True)
            logits.append(output.logits[:, -1])
    return logits


@pytest.mark.parametrize(
    "cuts", [[0, LAYERS + 2], [0, 2, MIDDLE, MIDDLE + 2, LAYERS + 2], list(range(LAYERS + 3))], ids=len
)
def test_stages_give_the_logits_of_the_whole_model(subject: Any, cuts: list[int]) -> None:
    folder, model, kind = subject
    prompt = encoder_prompts(kind)
    ids = torch.randint(3, 90, (3, 6), generator=torch.Generator().manual_seed(4))
    expected = unsplit_logits(model, prompt, ids, 2)
    stages = stages_of(folder, cuts)
    caches = [stage.new_cache() for stage in stages]
    x: Tensor | None = None
    for stage, cache in zip(stages, caches, strict=True):
        # Past the first stage only shapes and the mask are read.
        seen = {name: value if name == "attention_mask" else value * 0 for name, value in prompt.items()}
        x = stage.forward_prompt(x, prompt if x is None else seen, ids[:, :2], cache)
    found = [x]
    for place in range(2, ids.shape[1]):
        x = ids[:, place, None]
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward_step(x, prompt.get("attention_mask"), cache)
        found.append(x)
    torch.testing.assert_close(found, expected)


def test_replayed_tokens_leave_the_caches_of_steps(subject: Any) -> None:
    folder, _, kind = subject
    prompt, ids = encoder_prompts(kind), torch.randint(3, 90, (3, 5), generator=torch.Generator().manual_seed(5))
    stages = stages_of(folder, [0, MIDDLE + 1, LAYERS + 2])
    first, last = (stage.new_cache() for stage in stages)
    between = stages[0].forward_prompt(None, prompt, ids, first, replayed=3)
    memory = between.shape[1] - ids.shape[1]
    assert memory == (16 if kind == "whisper" else 7)
    found = stages[1].forward_prompt(between, prompt, ids, last, replayed=3)
    step_first, step_last = (stage.new_cache() for stage in stages)
    x = stages[0].forward_prompt(None, prompt, ids[:, :2], step_first)
    expected = stages[1].forward_prompt(x, prompt, ids[:, :2], step_last)
    for place in range(2, 5):
        x = stages[0].forward_step(ids[:, place, None], prompt.get("attention_mask"), step_first)
        expected = stages[1].forward_step(x, prompt.get("attention_mask"), step_last)
    assert torch.equal(found, expected)  # to the last bit
    for one, other in ((first, step_first), (last, step_last)):
        own = zip(one.self_attention_cache.layers, other.self_attention_cache.layers, strict=True)
        assert all(torch.equal(a.keys, b.keys) for a, b in own)


def test_a_small_model_is_exact() -> None:
    # Pipelines try one of each family when they load it.
    verdict, _ = try_architecture(encoder_decoder_config("whisper"))
    assert verdict.kind == "exact", verdict


def test_positions_that_a_stage_does_not_get_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # T5's first layers have the embeddings of relative positions for all of them.
    monkeypatch.setattr(model_part, "_share_first", lambda *_: None)
    verdict = try_split(encoder_decoder_config("t5"))
    assert verdict.kind == "wrong"


def test_layers_are_counted_over_both_sides() -> None:
    for kind in ENCODER_DECODERS:
        config = encoder_decoder_config(kind)
        layout = find_layout(config)
        assert layer_count(config) == layout.layer_count == LAYERS
        assert layout.encoder is not None
        assert layout.encoder.middle_layer == MIDDLE
        assert any("embed_tokens" in name for name in layout.encoder.middle)
        assert layout.encoder.positions == (None if kind == "t5" else 64)
    assert example_prompt(encoder_decoder_config("whisper"), rows=1, tokens=5)["input_features"].shape == (1, 8, 32)


@pytest.mark.parametrize(
    ("kind", "changes", "name", "reason"),
    [
        ("t5", {}, "T5EncoderModel", "of encoder-decoder models those that generate are split alone"),
        ("bart", {}, "BartForSequenceClassification", "of encoder-decoder models those that generate are split alone"),
    ],
)
def test_models_that_generate_nothing_are_refused(kind: str, changes: dict[str, Any], name: str, reason: str) -> None:
    config = encoder_decoder_config(kind, **changes)
    config.architectures = [name]
    with pytest.raises(ValueError, match=f"^{name} cannot be split into stages: {reason}"):
        find_layout(config)


def test_a_profile_has_the_costs_of_both_sides() -> None:
    for kind in ENCODER_DECODERS:
        profile = osp.profile(encoder_decoder_config(kind), prompt_tokens=11)
        assert profile.prompt_tokens == (16 if kind == "whisper" else 11)
        assert profile.encoder_layers == ENCODER_LAYERS
        assert [layer.name for layer in profile.layers][MIDDLE : MIDDLE + 2] == [
            "decoder embeddings",
            "decoder layer 0",
        ]
        encoder, decoder = profile.layers[: MIDDLE + 1], profile.layers[MIDDLE + 1 : -1]
        assert all(layer.decode_flop == layer.kv_bytes_per_token == 0 for layer in encoder)
        # Keys and values of the own tokens, or of the encoder's: 2 x 32 floats.
        assert [layer.kv_bytes_per_token for layer in decoder] == [256] * DECODER_LAYERS
        # What a token takes, a prefill takes too, and with it keys and values of what the encoder made.
        assert all(layer.prefill_flop > 2 * layer.decode_flop > 0 for layer in decoder)
        assert osp.ModelProfile.from_dict(profile.to_dict()) == profile
        assert profile.tied_bytes == 97 * 32 * 4  # of the head


def test_a_problem_has_the_bytes_of_prompts_and_of_steps() -> None:
    profile = osp.profile(encoder_decoder_config("t5"), prompt_tokens=11)
    nodes = tuple(osp.Node(name=name, memory_bytes=10**9, flop_per_s=1e9) for name in "ab")
    network = osp.Network(name="two", nodes=nodes, links=(osp.Link("a", "b", 1e6, 0.1), osp.Link("b", "a", 1e6, 0.1)))
    workload = osp.Workload(prompt_tokens=11, new_tokens=9, batch_size=1, micro_batches=2)
    problem = osp.build_problem(profile, network, workload)
    token = 32 * 4
    assert list(problem.cut_bytes) == [11 * token] * MIDDLE + [12 * token] * (LAYERS + 1 - MIDDLE)
    assert list(problem.cut_decode_bytes) == [8] * MIDDLE + [token] * (LAYERS + 1 - MIDDLE)
    times = torch.tensor(problem.layer_decode_time_s)
    assert bool((times[:, :MIDDLE] == 0).all())
    assert bool((times[:, MIDDLE + 1 :] > 0).all())
    # A layer of the decoder keeps those of 11 tokens that the encoder made, and of 9 of its own.
    kept = problem.layer_memory_bytes[MIDDLE + 1] - profile.layers[MIDDLE + 1].weight_bytes
    assert kept >= 2 * 256 * (11 + 9)
    plan = osp.plan(profile, network, workload)
    assert plan.prediction is not None
    with pytest.raises(ValueError, match="has an encoder, and its tokens are generated one at a time"):
        osp.plan(profile, network, replace(workload, acceptance=0.5))
    with pytest.raises(ValueError, match="which has an encoder, do not share forwards: plan for a batch"):
        osp.plan(profile, network, replace(workload, arrivals_per_s=0.5))


def test_a_measured_profile_has_no_seconds_of_the_encoder_in_a_step(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path, "whisper")
    profile = osp.profile(tmp_path, prompt_tokens=7, measure=True, rows=2)
    prefill = [layer.prefill_s for layer in profile.layers]
    decode = [layer.decode_s for layer in profile.layers]
    assert len(prefill) == LAYERS + 2
    assert all(seconds is not None and seconds > 0 for seconds in prefill)
    assert decode[:MIDDLE] == [0.0] * MIDDLE
    assert all(seconds is not None and seconds > 0 for seconds in decode[MIDDLE:])
    assert [step.rows for step in profile.rows] == [2]
    assert profile.prompt_tokens == 16


def test_a_stage_of_the_encoder_alone_has_no_overhead_in_a_step(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path, "t5")
    profile = osp.profile(tmp_path, prompt_tokens=7, measure=True, rows=1)
    profile = replace(profile, overhead_prefill_s=0.5, overhead_decode_s=10.0)
    nodes = tuple(osp.Node(name=name, memory_bytes=10**9, slowdown=2.0) for name in ("a", "b"))
    network = osp.Network(name="two", nodes=nodes, links=(osp.Link("a", "b", 1e9, 0.0), osp.Link("b", "a", 1e9, 0.0)))
    workload = osp.Workload(prompt_tokens=profile.prompt_tokens, new_tokens=4)
    pins: dict[str, list[str | int]] = {"a": list(range(MIDDLE)), "b": list(range(MIDDLE, LAYERS + 2))}
    plan = osp.plan(profile, network, workload, pins=pins, order="fixed")
    assert plan.prediction is not None
    assert [stage.stop for stage in plan.stages] == [MIDDLE, LAYERS + 2]
    assert min(plan.prediction.stage_s) > 0.5 * 2.0
    assert plan.prediction.decode_stage_s[0] == 0.0
    of_decoder = len(nodes) * (LAYERS + 2 - MIDDLE) / (LAYERS + 2)  # as if both nodes had equally many layers
    assert plan.prediction.decode_stage_s[1] == pytest.approx(10.0 * 2.0 * of_decoder, rel=0.01)


def test_what_is_for_one_side_alone_is_refused(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path, "t5")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder and a decoder, and codecs are fit"):
        osp.calibrate(tmp_path, ["a"])
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder and a decoder, and weights are"):
        osp.convert(tmp_path, tmp_path / "converted", weights="int8")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder and a decoder, and plans are exp"):
        replace(osp.Plan.manual(cuts=[2], layers=LAYERS), model=str(tmp_path)).export("accelerate")
