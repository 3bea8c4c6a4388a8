"""Stages of tiny models: together they must be the unsplit model, alone they must hold only their own weights."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from orbitsplit._models.source import demo_model, load_tokenizer
from orbitsplit._models.stage import StageModel
from tests.support.tiny_encoders import ENCODERS, VISION, save_tiny_encoder, tiny_images, tiny_texts
from tests.support.tiny_models import FAMILIES, HIDDEN, LAYERS, VOCABULARY, save_tiny_model, tiny_config, tiny_prompts

pytestmark = pytest.mark.usefixtures("single_thread")

TOP = LAYERS + 2  # the number of layers as a problem counts them
STEPS = 6
PARTITIONS = [(3,), (1, 5), (1, 2, 3), (1, 2, 3, 5)]  # two to five stages


def load_stages(directory: Path, cuts: tuple[int, ...], top: int = TOP) -> list[StageModel]:
    return [StageModel.load(directory, start, stop) for start, stop in pairwise((0, *cuts, top))]


def run_stages(stages: list[StageModel], ids: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Decode greedily, handing the hidden state from stage to stage; return all tokens and each step's logits."""
    caches = [stage.new_cache() for stage in stages]
    tokens, logits, step_ids = ids, [], ids
    for _ in range(steps):
        x = step_ids
        for stage, cache in zip(stages, caches, strict=True):
            x = stage.forward(x, mask, cache)
        logits.append(x)
        step_ids = x.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, step_ids], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return tokens, logits


def unsplit(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The judge: the same from transformers' own generate."""
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=STEPS,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.sequences, list(output.logits)


def assert_equal(ours: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    # The same kernels, shapes, threads and weights in memory: equal to the last bit, whatever the processor.
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(torch.stack(ours[1]), torch.stack(expected[1]))


def assert_equal_to_generate(model: PreTrainedModel, stages: list[StageModel], lengths: tuple[int, ...]) -> None:
    ids, mask = tiny_prompts(lengths)
    assert_equal(run_stages(stages, ids, mask, STEPS), unsplit(model, ids, mask))


def run_once(stages: list[StageModel], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hand the hidden state of whole sequences from stage to stage; return what the last one puts out."""
    x: Tensor | dict[str, Tensor] | None = None
    for stage in stages:
        assert not isinstance(x, dict)
        seen = {"attention_mask", "position_ids"} if stage.start > 0 else inputs.keys()
        x = stage.forward_once(x, {k: v if k in seen else torch.zeros_like(v) for k, v in inputs.items()})
    assert isinstance(x, dict)
    return x


def assert_equal_to_forward(model: PreTrainedModel, stages: list[StageModel], inputs: dict[str, Tensor]) -> None:
    """Compare the stages with one forward of the whole model."""
    with torch.no_grad():
        output = model(**inputs, use_cache=False) if stages[0].generates else model(**inputs)
    expected = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    found = run_once(stages, inputs)
    assert found.keys() == expected.keys() != set()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert float((found[name] - value).abs().max()) <= 1e-4 * float(value.abs().max())


def assert_partitions_equal_to_forward(
    directory: Path, model: PreTrainedModel, *inputs: dict[str, Tensor]
) -> list[StageModel]:
    """Compare every partition with the whole model; return the stages of the last."""
    spans = {span for cuts in PARTITIONS for span in pairwise((0, *cuts, TOP))}
    loaded = {span: StageModel.load(directory, *span) for span in spans}
    for cuts in PARTITIONS:
        stages = [loaded[span] for span in pairwise((0, *cuts, TOP))]
        for one in inputs:
            assert_equal_to_forward(model, stages, one)
    return stages


def own_bytes(model: PreTrainedModel, stages: list[StageModel]) -> tuple[int, int]:
    """Return the bytes that all stages hold together, and those of the model with a tied head counted twice."""
    tied = {source for source in (model.all_tied_weights_keys or {}).values() if "embed" in source}
    twice = sum(parameter.nbytes for name, parameter in model.named_parameters() if name in tied)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    return sum(stage.weight_bytes for stage in stages), whole + twice


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_run_whole_sequences_padded_on_either_side(family: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, family)
    ids, mask = tiny_prompts((3, 9, 5, 1))
    left, whole = {"input_ids": ids, "attention_mask": mask}, {"input_ids": tiny_prompts((7, 7))[0]}
    assert_partitions_equal_to_forward(tmp_path, model, left, tiny_texts((3, 9, 5, 1)), whole)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_the_unsplit_model(name: str, tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path, name)
    padded, whole = tiny_texts((3, 9, 5, 1)), {"input_ids": tiny_texts((7, 7))["input_ids"]}
    stages = assert_partitions_equal_to_forward(tmp_path, model, padded, whole)
    assert [(stage.generates, stage.generation_config) for stage in stages] == [(False, None)] * len(stages)
    held, expected = own_bytes(model, stages)
    assert held == expected


@pytest.mark.parametrize("name", VISION)
def test_vision_transformers_equal_the_unsplit_model(name: str, tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path, name)
    stages = assert_partitions_equal_to_forward(tmp_path, model, {"pixel_values": tiny_images(3, channels=3)[0]})
    held, expected = own_bytes(model, stages)
    assert held == expected


@pytest.mark.parametrize("name", ["gemma3_text", "ModernBertForSequenceClassification", "ViTForImageClassification"])
def test_whole_sequences_may_be_cut_anywhere(name: str, tmp_path: Path) -> None:
    inputs = {"pixel_values": tiny_images(2, channels=3)[0]} if name in VISION else tiny_texts((2, 8, 5))
    model = save_tiny_model(tmp_path, name) if name in FAMILIES else save_tiny_encoder(tmp_path, name)
    loaded = {span: StageModel.load(tmp_path, *span) for span in combinations(range(TOP + 1), 2)}
    for count in range(1, TOP + 1):
        for cuts in combinations(range(1, TOP), count - 1):
            assert_equal_to_forward(model, [loaded[span] for span in pairwise((0, *cuts, TOP))], inputs)


def test_inputs_that_belong_to_positions_are_used_on_every_stage(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, "llama")
    ids, mask = tiny_prompts((3, 6))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    assert_equal_to_forward(model, load_stages(tmp_path, (2, 4)), inputs)


def test_segments_of_texts_are_those_of_the_first_stage(tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path, "BertModel")
    inputs = tiny_texts((6, 3))
    inputs["token_type_ids"] = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    assert_equal_to_forward(model, load_stages(tmp_path, (2, 4)), inputs)


def test_past_the_first_stage_pixels_are_looked_at_by_nobody(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path, "ViTModel")
    first, last = load_stages(tmp_path, (2,))
    hidden = first.forward_once(None, {"pixel_values": tiny_images(2, channels=3)[0]})
    assert isinstance(hidden, Tensor)
    assert hidden.shape == (2, 17, HIDDEN)
    zeros, other = (last.forward_once(hidden, {"pixel_values": torch.full((2, 3, 8, 8), v)}) for v in (0.0, torch.nan))
    torch.testing.assert_close(zeros, other, rtol=0, atol=0)


def test_an_end_without_weights_is_a_stage(tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path, "DistilBertModel")
    *_, end = stages = load_stages(tmp_path, (TOP - 1,))
    assert end.weight_bytes == 0
    assert_equal_to_forward(model, stages, tiny_texts((4, 2)))


def test_encoders_in_bfloat16(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path, "ViTModel")
    first, last = (StageModel.load(tmp_path, a, b, dtype=torch.bfloat16) for a, b in ((0, 3), (3, TOP)))
    pixels = {"pixel_values": tiny_images(2, channels=3)[0]}
    hidden = first.forward_once(None, pixels)
    assert isinstance(hidden, Tensor)
    output = last.forward_once(hidden, pixels)
    assert isinstance(output, dict)
    assert hidden.dtype == output["pooler_output"].dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_three_stages_equal_the_unsplit_model(family: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, family)
    stages = load_stages(tmp_path, (2, 4))
    assert_equal_to_generate(model, stages, (7,))
    assert_equal_to_generate(model, stages, (3, 9, 5, 1))


def test_every_cut_position_equals_the_unsplit_model(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, "gemma3_text")
    ids, mask = tiny_prompts((2, 8, 5))
    expected = unsplit(model, ids, mask)
    loaded = {span: StageModel.load(tmp_path, *span) for span in combinations(range(TOP + 1), 2)}
    for count in range(1, 5):
        for cuts in combinations(range(1, TOP), count - 1):
            stages = [loaded[span] for span in pairwise((0, *cuts, TOP))]
            assert_equal(run_stages(stages, ids, mask, STEPS), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_can_be_stages_of_their_own(family: str, tied: bool, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, family, tie_word_embeddings=tied)
    embeddings, middle, head = load_stages(tmp_path, (1, TOP - 1))
    assert_equal_to_generate(model, [embeddings, middle, head], (4, 6))
    layer_bytes = sum(p.nbytes for name, p in model.named_parameters() if ".layers." in name or ".h." in name)
    assert middle.weight_bytes == layer_bytes
    shared = VOCABULARY * model.get_output_embeddings().weight.shape[1] * 4 if tied else 0
    total = sum(stage.weight_bytes for stage in (embeddings, middle, head))
    assert total == sum(p.nbytes for p in model.parameters()) + shared


def test_shapes_and_roles(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    ids, mask = tiny_prompts((5, 5))
    first, last = load_stages(tmp_path, (3,))
    assert (first.is_first, first.is_last, last.is_first, last.is_last) == (True, False, False, True)
    assert (first.layers, first.hidden_size, last.generation_config.eos_token_id) == (TOP, HIDDEN, 2)
    hidden = first.forward(ids, mask, first.new_cache())
    assert hidden.shape == (2, 5, HIDDEN)
    assert last.forward(hidden, mask, last.new_cache()).shape == (2, VOCABULARY)


def test_two_caches_do_not_mix(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (stage,) = load_stages(tmp_path, ())
    ids, mask = tiny_prompts((6, 6))
    together = stage.forward(ids, mask, stage.new_cache())
    caches = [stage.new_cache(), stage.new_cache()]
    alone = [stage.forward(ids[row : row + 1], mask[row : row + 1], caches[row]) for row in (0, 1)]
    # Kernels for one row and for two may sum in another order: at most 64 products of float32 in each of four layers.
    # What is read from the wrong cache changes the first digit.
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 3, 9])
def test_where_a_hidden_state_lies_in_memory_changes_nothing(tokens: int, tmp_path: Path) -> None:
    # What is received lies anywhere. Without a norm before it, a matrix product summed it in another order then.
    save_tiny_model(tmp_path, "opt", do_layer_norm_before=False)
    stage = StageModel.load(tmp_path, 1, TOP)
    x, mask = torch.randn(2, tokens, HIDDEN), torch.ones(2, tokens, dtype=torch.int64)
    expected = stage.forward(x, mask, stage.new_cache())
    memory = torch.empty(x.numel() + 16)
    for offset in range(16):
        moved = memory[offset : offset + x.numel()].view_as(x).copy_(x)
        assert torch.equal(stage.forward(moved, mask, stage.new_cache()), expected)


def test_bfloat16(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    stages = [StageModel.load(tmp_path, a, b, dtype=torch.bfloat16) for a, b in ((0, 3), (3, TOP))]
    ids, mask = tiny_prompts((5,))
    hidden = stages[0].forward(ids, mask, stages[0].new_cache())
    assert hidden.dtype == torch.bfloat16
    assert stages[0].weight_bytes * 2 == StageModel.load(tmp_path, 0, 3).weight_bytes


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2), (0, TOP + 1)])
def test_a_range_outside_the_model_is_refused(start: int, stop: int, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pytest.raises(ValueError, match=rf"stage \[{start}, {stop}\) is not .* the model's {TOP} layers"):
        StageModel.load(tmp_path, start, stop)


def test_a_checkpoint_without_a_weight_of_the_stage_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(shard).items() if "layers.2.mlp.up_proj" not in name}
        save_file(kept, shard, metadata={"format": "pt"})
    StageModel.load(tmp_path, 0, 3)  # has layers 0 and 1 only
    with pytest.raises(ValueError, match=r"stage \[3, 4\).* lacks 1 weights, .*layers.2.mlp.up_proj"):
        StageModel.load(tmp_path, 3, 4)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        tensors = {
            name: tensor * float("nan") if "down_proj" in name else tensor for name, tensor in load_file(shard).items()
        }
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        StageModel.load(tmp_path, 1, 2)


_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGES = {**_SIZES, "image_size": 8, "patch_size": 2}
_TEXTS = {**_SIZES, "vocab_size": VOCABULARY}
_DPT = {**_IMAGES, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
_T5 = {"d_model": HIDDEN, "num_layers": LAYERS, "num_heads": 4, "d_kv": 8, "d_ff": 64, "vocab_size": VOCABULARY}


@pytest.mark.parametrize(
    ("name", "model_type", "fields", "reason"),
    [
        ("AlbertModel", "albert", _TEXTS, "no list of 4 layers .* layers share weights"),
        ("T5EncoderModel", "t5", {**_T5, "is_encoder_decoder": False}, "layer 1 takes more than"),
        ("T5EncoderModel", "t5", _T5, "of encoder-decoder models those that generate are split alone"),
        ("CLIPTextModel", "clip_text_model", {**_TEXTS, "eos_token_id": 2}, "what comes after the layers takes more"),
        ("ViTMAEModel", "vit_mae", _IMAGES, "what comes after the layers takes more than the hidden state"),
        ("DPTForDepthEstimation", "dpt", _DPT, "what comes after the layers takes more than the hidden state of the"),
        (
            "SwinModel",
            "swin",
            {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
            "the hidden state has another shape behind layer 0",
        ),
        ("Wav2Vec2Model", "wav2vec2", _SIZES, "it takes input_values of no known size, not token ids or images"),
    ],
)
def test_a_model_that_would_be_something_else_split_is_refused(
    name: str, model_type: str, fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type, **fields, architectures=[name]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name} cannot be split into stages: .*{reason}.*$"):
        StageModel.load(tmp_path, 0, 1)


# Loads each stage in a process of its own, forked before anything is loaded: a peak does not go down again.
_PEAKS = """
import os, resource, sys
from orbitsplit._models import lazy_imports
lazy_imports.install()  # as workers do
import torch
from orbitsplit._models.stage import StageModel

for dtype, start, stop in (("float32", 1, 5), ("bfloat16", 1, 6)):
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stage = StageModel.load(sys.argv[1], start, stop, dtype=getattr(torch, dtype))
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        print(dtype, stage.weight_bytes, peak, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_stage_never_holds_the_weights_of_others(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, "llama", hidden_size=512, vocab_size=60_000, tie_word_embeddings=True)
    head = model.lm_head.weight.numel()
    assert sum(parameter.nbytes for parameter in model.parameters()) > 4 * head > 120e6
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(tmp_path)], capture_output=True, text=True, timeout=100, check=True
    )
    peaks = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines()}
    assert peaks["float32"][0] < head  # neither embeddings nor head
    # In another dtype than the file's, the head was there three times while it was loaded: 184 MB.
    assert peaks["bfloat16"][0] > 2 * head
    for weight_bytes, peak_bytes in peaks.values():
        # What transformers and torch allocate for themselves while they load is a few tens of megabytes.
        assert peak_bytes < weight_bytes + 60e6


@pytest.mark.parametrize(("stored", "wanted"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_weights_in_another_dtype_are_what_transformers_makes_of_them(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path, "gemma3_text").to(stored).save_pretrained(tmp_path)
    unsplit = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=wanted)
    expected = {**dict(unsplit.named_parameters(remove_duplicate=False)), **dict(unsplit.named_buffers())}
    for start, stop in ((0, 2), (1, LAYERS + 2), (LAYERS + 1, LAYERS + 2)):
        model = StageModel.load(tmp_path, start, stop, dtype=wanted).model
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert found
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])


@pytest.mark.real_model
def test_gemma_in_four_stages_continues_as_the_unsplit_model() -> None:
    directory = demo_model()
    tokenizer = load_tokenizer(directory)
    batch = tokenizer(["The capital of France is", "A satellite"], return_tensors="pt", padding=True)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        expected = whole.generate(**batch, max_new_tokens=8, do_sample=False)
    stages = load_stages(directory, (1, 7, 13), top=20)
    tokens, _ = run_stages(stages, batch["input_ids"], batch["attention_mask"], 8)
    assert torch.equal(tokens, expected)
    assert "the capital of" in tokenizer.decode(tokens[0, -8:])  # the converted weights and tokenizer make sense


@pytest.mark.real_model
def test_mini_lm_in_three_stages_embeds_as_the_unsplit_model() -> None:
    from all_minilm_l6_v2 import get_model_path

    directory = get_model_path()
    texts = ["A satellite passes over the station.", "Rain.", "The link is down until the next contact window opens."]
    inputs = dict(AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt"))
    whole = AutoModel.from_pretrained(directory, dtype=torch.float32)
    stages = load_stages(directory, (2, 5), top=8)
    assert_equal_to_forward(whole, stages, inputs)
    assert sum(stage.weight_bytes for stage in stages) == sum(parameter.nbytes for parameter in whole.parameters())


def test_families_are_as_tiny_as_the_tests_assume() -> None:
    for family in FAMILIES:
        config = tiny_config(family)
        assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (LAYERS, HIDDEN, VOCABULARY)
