"""Stages of tiny models: together they must be the unsplit model, alone they must hold only their own weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, HIDDEN, LAYERS, VOCABULARY, save_tiny_model, tiny_config, tiny_prompts
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, T5Config

from orbitsplit._model import demo_model, load_tokenizer
from orbitsplit._stage import StageModel

TOP = LAYERS + 2  # the number of layers as a problem counts them
STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny operations are slower on two threads than on one, much slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-5)


def assert_equal_to_generate(model: PreTrainedModel, stages: list[StageModel], lengths: tuple[int, ...]) -> None:
    ids, mask = tiny_prompts(lengths)
    assert_equal(run_stages(stages, ids, mask, STEPS), unsplit(model, ids, mask))


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
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)


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


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=8, num_layers=2, architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration cannot be split into stages: encoder-decoder"):
        StageModel.load(tmp_path, 0, 1)


_PEAK = """
import resource, sys
from orbitsplit._stage import StageModel
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stage = StageModel.load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
print(stage.weight_bytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_a_stage_never_holds_the_weights_of_others(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, "llama", hidden_size=512, vocab_size=60_000)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert whole > 240e6
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path), "1", "4"], capture_output=True, text=True, timeout=100, check=True
    )
    weight_bytes, peak_bytes = (int(value) for value in done.stdout.split())
    # What transformers and torch allocate for themselves while they load is a few tens of megabytes.
    assert peak_bytes < weight_bytes + 60e6


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


def test_families_are_as_tiny_as_the_tests_assume() -> None:
    for family in FAMILIES:
        config = tiny_config(family)
        assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (LAYERS, HIDDEN, VOCABULARY)
